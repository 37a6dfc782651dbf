// The CPU's part of the Python module. Callers pass addresses and sizes that they have checked
// (fastscnn_kernels/cpu), in the order of the Params structs of kernels.h; every call releases the
// interpreter lock.
#pragma once

#include <pybind11/pybind11.h>

#include <array>

#include "packed.h"

namespace fastscnn {

using Address = uintptr_t;
using Unlocked = pybind11::call_guard<pybind11::gil_scoped_release>;

template <class T = float>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

inline Activation activation(std::array<float, 2> bounds) { return {bounds[0], bounds[1]}; }

// Asks the kernel for its scratch size, provides it, runs the kernel.
template <class Params>
void run(int64_t (*kernel)(const Params&), Params params, Workspace& workspace) {
    params.scratch = nullptr;
    params.scratch = workspace.reserve(kernel(params));
    kernel(params);
}

void bind_operations(pybind11::module_& m);
void bind_int8(pybind11::module_& m);
void bind_training(pybind11::module_& m);
void bind_network(pybind11::module_& m);

}  // namespace fastscnn
