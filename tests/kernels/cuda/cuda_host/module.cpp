// The CUDA operations on the CPU as a Python module, with the switches of the pretended device.
#include <pybind11/pybind11.h>

#include "bindings.h"
#include "cuda_on_host.h"
#include "cuda_runtime.h"

PYBIND11_MODULE(cuda_on_host, m) {
    fastscnn::bind_cuda(m);
    m.def("set", [](unsigned seed, int capability, int multiprocessors, int shared) {
        on_host::settings = {seed, capability, multiprocessors, shared};
    });
    m.def("fail", [](int earlier, int code) {  // from now on, until the next `set`
        on_host::settings.earlier_error = earlier;
        on_host::settings.code_error = code;
    });
    m.def("clear_buffers", &on_host::clear_buffers);
    m.def("add_buffer", &on_host::add_buffer);
    m.def("record", [](bool on) { on_host::recording = on; });  // launches, instead of running them
    m.def("recorded", [] {
        namespace py = pybind11;
        py::list launches;
        for (const on_host::Recorded& r : on_host::recorded)
            launches.append(py::make_tuple(r.function, py::make_tuple(r.grid.x, r.grid.y, r.grid.z),
                                           r.threads, r.shared, py::bytes(r.params)));
        on_host::recorded.clear();
        return launches;
    });
}
