// The CUDA half of the bindings.
#pragma once

#include <pybind11/pybind11.h>

namespace fastscnn {

// Adds the operations of kernels.h; they take addresses, sizes and a stream handle.
void bind_cuda(pybind11::module_& m);

}  // namespace fastscnn
