// The operations of inference in int8, for Python.

#include "bindings.h"

#include <pybind11/stl.h>

#include "packed_int8.h"

namespace py = pybind11;

namespace fastscnn {
namespace {

PackedMatrixInt8 make_matrix_int8(Address weight, Address start, Address scale, Address bias,
                                  int out, int inputs) {
    return {pointer<int8_t>(weight),
            pointer<int32_t>(start),
            pointer(scale),
            pointer(bias),
            out,
            inputs};
}

PackedTapsInt8 make_taps_int8(Address weight, Address start, Address scale, int channels) {
    return {pointer<int8_t>(weight), pointer<int32_t>(start), pointer(scale), channels};
}

Quantizer quantizer(const std::pair<float, int>& q) { return {q.first, q.second}; }

void inverted_residual_int8(Address x, bool bytes, int batch, int h, int w, int stride,
                            std::pair<float, int> in, const PackedMatrixInt8& expand,
                            const PackedTapsInt8& taps, const PackedMatrixInt8& project,
                            bool residual, Address y, const std::string& isa, int threads,
                            Workspace& ws) {
    run(find_kernels_int8(isa).inverted_residual,
        {bytes ? nullptr : pointer(x), bytes ? pointer<uint8_t>(x) : nullptr, batch, h, w, stride,
         quantizer(in), expand.view(), taps.view(), project.view(), residual, pointer(y),
         &ws.pool(), threads, nullptr},
        ws);
}

void feature_fusion_int8(Address high, Address low, int batch, int low_channels,
                         int high_channels, const Axis& rows, const Axis& cols, int dilation,
                         std::pair<float, int> low_in,
                         const PackedTapsInt8* taps, const PackedMatrixInt8& weight, Address y,
                         const std::string& isa, int threads, Workspace& ws) {
    run(find_kernels_int8(isa).feature_fusion,
        {pointer<uint8_t>(high), pointer(low), batch, low_channels, high_channels, view(rows),
         view(cols), quantizer(low_in), taps ? taps->view() : TapsInt8{}, dilation,
         weight.view(), pointer<uint8_t>(y), &ws.pool(), threads, nullptr},
        ws);
}

void classifier_int8(Address x, int batch, int h, int w, const PackedTapsInt8& taps1,
                     const PackedMatrixInt8& weight1, const PackedTapsInt8& taps2,
                     const PackedMatrixInt8& weight2, const PackedMatrixInt8& last, Address y,
                     const std::string& isa, int threads, Workspace& ws) {
    run(find_kernels_int8(isa).classifier,
        {pointer<uint8_t>(x), batch, h, w, taps1.view(), weight1.view(), taps2.view(),
         weight2.view(), last.view(), pointer(y), &ws.pool(), threads, nullptr},
        ws);
}

}  // namespace

void bind_int8(py::module_& m) {
    py::class_<PackedMatrixInt8>(m, "MatrixInt8", "Packed int8 weights of a 1x1 convolution.")
        .def(py::init(&make_matrix_int8));
    py::class_<PackedTapsInt8>(m, "TapsInt8", "Packed int8 weights of a depthwise convolution.")
        .def(py::init(&make_taps_int8));
    m.def("inverted_residual_int8", &inverted_residual_int8, Unlocked());
    m.def("feature_fusion_int8", &feature_fusion_int8, Unlocked());
    m.def("classifier_int8", &classifier_int8, Unlocked());
}

}  // namespace fastscnn
