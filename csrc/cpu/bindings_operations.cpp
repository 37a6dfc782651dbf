// The operations of inference in float32, for Python.

#include "bindings.h"

#include <pybind11/stl.h>

namespace py = pybind11;

namespace fastscnn {
namespace {

PackedMatrix make_matrix(Address weight, Address bias, int out, int inputs, int taps,
                         const std::string& isa) {
    return {pointer(weight), pointer(bias), out, inputs, taps, isa};
}

PackedTaps make_taps(Address weight, Address bias, int channels, const std::string& isa) {
    return {pointer(weight), pointer(bias), channels, isa};
}

// `address` is a uint8 frame or, where is_frame is false, normalised floats.
StemParams stem_params(Address address, bool is_frame, std::array<float, 3> scale,
                       std::array<float, 3> shift, int batch, int h, int w, int top, int left,
                       int out_h, int out_w, const PackedMatrix& weight, std::array<float, 2> act) {
    StemParams p{};
    if (is_frame)
        p.frame = pointer<const uint8_t>(address);
    else
        p.x = pointer(address);
    for (int i = 0; i < 3; ++i) p.scale[i] = scale[i], p.shift[i] = shift[i];
    p.batch = batch, p.h = h, p.w = w, p.top = top, p.left = left;
    p.out_h = out_h, p.out_w = out_w;
    p.weight = weight.view();
    p.act = activation(act);
    return p;
}

void stem_conv(StemParams p, const PackedMatrix& weight, Address y, int threads, Workspace& ws) {
    p.y = pointer(y), p.pool = &ws.pool(), p.threads = threads;
    run(weight.kernels->stem_conv, p, ws);
}

void depthwise_conv(Address x, int batch, int h, int w, int stride, int dilation,
                    const PackedTaps& taps, std::array<float, 2> act, Address y, int threads,
                    Workspace& ws) {
    run(taps.kernels->depthwise_conv,
        {pointer(x), batch, h, w, stride, dilation, taps.view(), activation(act), pointer(y),
         &ws.pool(), threads, nullptr},
        ws);
}

void pointwise_conv(Address x, Address residual, int64_t pixels, const PackedMatrix& weight,
                    std::array<float, 2> act, Address y, int threads, Workspace& ws) {
    run(weight.kernels->pointwise_conv,
        {pointer(x), pointer(residual), pixels, weight.view(), activation(act), pointer(y),
         &ws.pool(), threads, nullptr},
        ws);
}

void dsconv(Address x, int batch, int h, int w, int stride, int dilation, const PackedTaps& taps,
            std::array<float, 2> mid_act, const PackedMatrix& weight, std::array<float, 2> act,
            const PackedMatrix* last, Address y, int threads, Workspace& ws) {
    run(weight.kernels->dsconv,
        {pointer(x), batch, h, w, stride, dilation, taps.view(), activation(mid_act), weight.view(),
         activation(act), last ? last->view() : Matrix{}, pointer(y), &ws.pool(), threads, nullptr},
        ws);
}

void classifier(Address x, int batch, int h, int w, const PackedTaps& taps1,
                const PackedMatrix& weight1, const PackedTaps& taps2, const PackedMatrix& weight2,
                const PackedMatrix& last, std::array<float, 2> mid_act, std::array<float, 2> act,
                Address y, int threads, Workspace& ws) {
    run(weight1.kernels->classifier,
        {pointer(x), batch, h, w, taps1.view(), weight1.view(), taps2.view(), weight2.view(),
         last.view(), activation(mid_act), activation(act), pointer(y), &ws.pool(), threads,
         nullptr},
        ws);
}

void learning_to_downsample(const StemParams& stem, const PackedTaps& taps1,
                            const PackedMatrix& weight1, const PackedTaps& taps2,
                            const PackedMatrix& weight2, std::array<float, 2> mid_act,
                            std::array<float, 2> act, Address y, int threads, Workspace& ws) {
    run(weight1.kernels->learning_to_downsample,
        {stem, taps1.view(), weight1.view(), taps2.view(), weight2.view(), activation(mid_act),
         activation(act), pointer(y), &ws.pool(), threads, nullptr},
        ws);
}

void inverted_residual(Address x, int batch, int h, int w, int stride, const PackedMatrix& expand,
                       const PackedTaps& taps, const PackedMatrix& project,
                       std::array<float, 2> act, bool residual, Address y, int threads,
                       Workspace& ws) {
    run(expand.kernels->inverted_residual,
        {pointer(x), batch, h, w, stride, expand.view(), taps.view(), project.view(),
         activation(act), residual, pointer(y), &ws.pool(), threads, nullptr},
        ws);
}

// `branches`, `rows`, `cols` by ascending bin. `slices` (1x1 join) holds the join's part of every
// branch; `offsets` (3x3 join) the first channel of every branch, then of x.
void pyramid_pool(Address x, int batch, int h, int w, int channels,
                  const std::vector<const PackedMatrix*>& branches,
                  const std::vector<const Axis*>& rows, const std::vector<const Axis*>& cols,
                  int join_kernel, const PackedMatrix& join,
                  const std::vector<const PackedMatrix*>& slices, const std::vector<int>& offsets,
                  Address y, int threads, Workspace& ws) {
    PyramidPoolParams p{};
    p.x = pointer(x), p.batch = batch, p.h = h, p.w = w, p.channels = channels;
    p.branches = int(branches.size());
    for (int i = 0; i < p.branches; ++i) {
        p.bins[i] = rows[i]->in;
        p.branch[i] = branches[i]->view();
        p.rows[i] = view(*rows[i]), p.cols[i] = view(*cols[i]);
        if (join_kernel == 1) p.slice[i] = slices[i]->view();
    }
    for (size_t i = 0; i < offsets.size(); ++i) p.offset[i] = offsets[i];
    p.join_kernel = join_kernel, p.join = join.view();
    p.y = pointer(y), p.pool = &ws.pool(), p.threads = threads;
    run(join.kernels->pyramid_pool, p, ws);
}

void feature_fusion(Address high, Address low, int batch, const Axis& rows, const Axis& cols,
                    const PackedTaps* taps, int dilation, const PackedMatrix& low_weight,
                    const PackedMatrix& high_weight, Address y, int threads, Workspace& ws) {
    run(low_weight.kernels->feature_fusion,
        {pointer(high), pointer(low), batch, view(rows), view(cols), taps ? taps->view() : Taps{},
         dilation, low_weight.view(), high_weight.view(), pointer(y), &ws.pool(), threads, nullptr},
        ws);
}

void argmax_head(Address scores, Address labels, Address confidence, int batch, int classes,
                 const Axis& y, const Axis& x, int threads, const std::string& isa, Workspace& ws) {
    find_kernels(isa).argmax_head({pointer(scores), pointer<uint8_t>(labels), pointer(confidence),
                                   batch, classes, view(y), view(x), &ws.pool(), threads});
}

void dense_head(Address scores, Address out, int batch, int classes, bool softmax, const Axis& y,
                const Axis& x, int threads, const std::string& isa, Workspace& ws) {
    run(find_kernels(isa).dense_head,
        {pointer(scores), pointer(out), batch, classes, softmax, view(y), view(x), &ws.pool(),
         threads, nullptr},
        ws);
}

void overlay(Address labels, Address frame, Address colors, int classes, int alpha, Address y,
             int64_t rows, int width, int threads, const std::string& isa, Workspace& ws) {
    find_kernels(isa).overlay({pointer<uint8_t>(labels), pointer<uint8_t>(frame), 3 * int64_t(width),
                               pointer<uint8_t>(colors), classes, alpha, pointer<uint8_t>(y), rows,
                               width, &ws.pool(), threads});
}

void resize_frame(Address frame, bool bgr, int batch, const ByteAxis& y, const ByteAxis& x,
                  Address out, int threads, const std::string& isa, Workspace& ws) {
    run(find_kernels(isa).resize_frame,
        {pointer<uint8_t>(frame), 3 * int64_t(x.in), bgr, batch, view(y), view(x),
         pointer<uint8_t>(out), &ws.pool(), threads, nullptr},
        ws);
}

}  // namespace

void bind_operations(py::module_& m) {
    py::class_<Axis>(m, "Axis", "Bilinear sampling of an axis: (in, out, align_corners).")
        .def(py::init<int, int, bool>());
    py::class_<ByteAxis>(m, "ByteAxis", "Bilinear sampling of an axis of bytes: (in, out).")
        .def(py::init<int, int>());
    py::class_<PackedMatrix>(m, "Matrix", "Packed weights of a dense convolution.")
        .def(py::init(&make_matrix));
    py::class_<PackedTaps>(m, "Taps", "Packed weights of a 3x3 depthwise convolution.")
        .def(py::init(&make_taps));
    py::class_<Workspace>(m, "Workspace", "Scratch memory, kept between calls.")
        .def(py::init())
        .def_property_readonly("bytes", &Workspace::bytes);
    py::class_<StemParams>(m, "Stem", "A frame and the first convolution.")
        .def(py::init(&stem_params));
    m.def("stem_conv", &stem_conv, Unlocked());
    m.def("depthwise_conv", &depthwise_conv, Unlocked());
    m.def("pointwise_conv", &pointwise_conv, Unlocked());
    m.def("dsconv", &dsconv, Unlocked());
    m.def("classifier", &classifier, Unlocked());
    m.def("learning_to_downsample", &learning_to_downsample, Unlocked());
    m.def("inverted_residual", &inverted_residual, Unlocked());
    m.def("pyramid_pool", &pyramid_pool, Unlocked());
    m.def("feature_fusion", &feature_fusion, Unlocked());
    m.def("argmax_head", &argmax_head, Unlocked());
    m.def("dense_head", &dense_head, Unlocked());
    m.def("overlay", &overlay, Unlocked());
    m.def("resize_frame", &resize_frame, Unlocked());
}

}  // namespace fastscnn
