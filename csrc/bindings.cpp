// The one file that knows Python. Callers pass addresses and sizes that they have checked
// (fastscnn_kernels/cpu.py); every call releases the interpreter lock.

#include <omp.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>

#include "cpu/axis.h"
#include "cpu/isa.h"
#ifdef FASTSCNN_WITH_CUDA
#include "cuda/device.h"
#endif

namespace py = pybind11;
using namespace fastscnn;

namespace {

template <class T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

AxisView view(const Axis& a) {
    return {a.in, a.out, a.index.data(), a.w0.data(), a.w1.data(), a.first.data()};
}

void argmax_head(uintptr_t scores, uintptr_t labels, uintptr_t confidence, int batch, int classes,
                 const Axis& y, const Axis& x, int threads, const std::string& isa) {
    const Kernels& kernels = find_kernels(isa);
    kernels.argmax_head({pointer<const float>(scores), pointer<uint8_t>(labels),
                         pointer<float>(confidence), batch, classes, view(y), view(x), threads});
}

void dense_head(uintptr_t scores, uintptr_t out, int batch, int classes, bool softmax,
                const Axis& y, const Axis& x, int threads, const std::string& isa) {
    const Kernels& kernels = find_kernels(isa);
    const std::unique_ptr<float[]> scratch(new float[size_t(threads) * classes * x.out]);
    kernels.dense_head({pointer<const float>(scores), pointer<float>(out), scratch.get(), batch,
                        classes, softmax, view(y), view(x), threads});
}

py::dict device_info() {
    py::list names;
    for (const Kernels* k : available_kernels()) names.append(k->name);
    py::dict info;
    info["cpu_instruction_sets"] = names;
    info["cpu_instruction_set"] = find_kernels("").name;
    info["cpu_lanes"] = find_kernels("").lanes;
    info["openmp_threads"] = omp_get_max_threads();
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
    const auto unlocked = py::call_guard<py::gil_scoped_release>();
    m.def("device_info", &device_info, "What this build and this machine can run.");

    py::class_<Axis>(m, "Axis").def(py::init<int, int, bool>(), py::arg("in_size"),
                                    py::arg("out_size"), py::arg("align_corners"));
    m.def("argmax_head", &argmax_head, unlocked);
    m.def("dense_head", &dense_head, unlocked);
}
