// The Python module: what the build and the machine can run, and the parts of both devices.

#include <pybind11/pybind11.h>

#include <thread>

#include "cpu/bindings.h"
#include "cpu/packed_int8.h"
#ifdef FASTSCNN_WITH_CUDA
#include "cuda/bindings.h"
#include "cuda/device.h"
#endif

namespace py = pybind11;
using namespace fastscnn;

namespace {

py::dict device_info() {
    py::list names, bf16_names, int8_names;
    for (const Kernels* k : available_kernels()) names.append(k->name);
    for (const Kernels* k : available_kernels_bf16()) bf16_names.append(k->name);
    for (const KernelsInt8* k : available_kernels_int8()) int8_names.append(k->name);
    py::dict info;
    info["cpu_int8_instruction_sets"] = int8_names;
    info["cpu_instruction_sets"] = names;
    info["cpu_bf16_instruction_sets"] = bf16_names;
    info["cpu_instruction_set"] = find_kernels("").name;
    info["cpu_lanes"] = find_kernels("").lanes;
    info["cpu_threads"] = std::thread::hardware_concurrency();
#ifdef FASTSCNN_WITH_CUDA
    const CudaInfo cuda = cuda_info();
    info["cuda_built"] = true;
    info["cuda_runtime_version"] = cuda.runtime_version;
    info["cuda_driver_version"] = cuda.driver_version;
    info["cuda_devices"] = cuda.device_count;
#else
    info["cuda_built"] = false;
    info["cuda_runtime_version"] = 0;
    info["cuda_driver_version"] = 0;
    info["cuda_devices"] = 0;
#endif
    return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.def("device_info", &device_info, "What this build and this machine can run.");
    bind_operations(m);
    bind_int8(m);
    bind_training(m);
    bind_network(m);
#ifdef FASTSCNN_WITH_CUDA
    bind_cuda(m);
#endif
}
