// The CPU network's part of the Python module.
#pragma once

#include <pybind11/pybind11.h>

namespace fastscnn {

void bind_network(pybind11::module_& m);

}  // namespace fastscnn
