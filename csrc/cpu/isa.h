// Instruction sets of this build and of this machine.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace fastscnn {

// Kernels that were built and that this machine can run, best first; never empty.
std::vector<const Kernels*> available_kernels();

// By name; "" is the best. Throws std::invalid_argument that lists the names.
const Kernels& find_kernels(const std::string& name);

}  // namespace fastscnn
