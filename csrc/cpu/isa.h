// Instruction sets of this build and of this machine.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace fastscnn {

// Kernels that were built and that this machine can run, best first; never empty.
std::vector<const Kernels*> available_kernels();

// Those of which every dense convolution multiplies bfloat16 and sums float32, where it is fast.
std::vector<const Kernels*> available_kernels_bf16();

// By name; "" is the best of float32. Throws std::invalid_argument that lists the names.
const Kernels& find_kernels(const std::string& name);

}  // namespace fastscnn
