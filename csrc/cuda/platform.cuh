// The one seam: on a GPU, PTX; in the tests, the same names on the CPU.
#pragma once

#include "launch.cuh"

#ifdef FASTSCNN_CUDA_ON_HOST
#include "cuda_on_host.h"
#else
#include "ptx.cuh"
#endif
