// The one seam: on a GPU, PTX and the CUDA runtime; in the tests, the same names on the CPU.
#pragma once

#ifdef FASTSCNN_CUDA_ON_HOST
#include "cuda_on_host.h"
#else
#include "launch.cuh"
#include "ptx.cuh"
#endif
