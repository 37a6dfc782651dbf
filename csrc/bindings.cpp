// The one file that knows Python. Callers pass addresses and sizes that they have checked
// (fastscnn_kernels/cpu/operations.py), in the order of the Params structs of cpu/kernels.h; every call
// releases the interpreter lock.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <sys/mman.h>

#include <array>
#include <thread>
#include <tuple>

#include "cpu/bindings.h"
#include "cpu/packed_int8.h"
#ifdef FASTSCNN_WITH_CUDA
#include "cuda/bindings.h"
#include "cuda/device.h"
#endif

namespace py = pybind11;
using namespace fastscnn;

namespace {

using Address = uintptr_t;

template <class T = float>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

AxisView view(const Axis& a) {
    return {a.in, a.out, a.index.data(), a.w0.data(), a.w1.data(), a.first.data()};
}

Activation activation(std::array<float, 2> bounds) { return {bounds[0], bounds[1]}; }

// Asks the kernel for its scratch size, provides it, runs the kernel.
template <class Params>
void run(int64_t (*kernel)(const Params&), Params params, Workspace& workspace) {
    params.scratch = nullptr;
    params.scratch = workspace.reserve(kernel(params));
    kernel(params);
}

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

// --- training ---------------------------------------------------------------------------------

// Returns the sum of the losses, that of the labelled pixels' weights, and a pixel whose label is
// no class (or -1).
std::tuple<double, double, int64_t> cross_entropy_head(
    Address scores, Address labels, bool labels_are_bytes, Address weight, Address pixel_grad,
    int64_t ignore, float smoothing, Address loss, Address grad, int batch, int classes,
    const Axis& y, const Axis& x, int threads, const std::string& isa, Workspace& ws) {
    double sums[2];
    int64_t invalid;
    CrossEntropyHeadParams p{};
    p.scores = pointer(scores);
    if (labels_are_bytes)
        p.labels8 = pointer<const uint8_t>(labels);
    else
        p.labels64 = pointer<const int64_t>(labels);
    p.weight = pointer(weight), p.pixel_grad = pointer(pixel_grad);
    p.ignore = ignore, p.smoothing = smoothing;
    p.loss = pointer(loss), p.sums = sums, p.grad = pointer(grad), p.invalid = &invalid;
    p.batch = batch, p.classes = classes, p.y = view(y), p.x = view(x);
    p.pool = &ws.pool(), p.threads = threads;
    run(find_kernels(isa).cross_entropy_head, p, ws);
    return {sums[0], sums[1], invalid};
}

// A fresh map of tens of megabytes costs more in page faults than in arithmetic: asks the system
// for large pages, where it has them.
void prefer_large_pages(Address address, int64_t bytes) {
#ifdef MADV_HUGEPAGE
    constexpr Address kLarge = Address(1) << 21;
    const Address begin = (address + kLarge - 1) / kLarge * kLarge;
    const Address end = (address + Address(bytes)) / kLarge * kLarge;
    if (end > begin) madvise(pointer<void>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)address, (void)bytes;
#endif
}

void moments(Address x, bool bf16, int64_t pixels, int channels, Address mean, Address var,
             int threads, const std::string& isa, Workspace& ws) {
    run(find_kernels(isa).moments,
        {pointer<void>(x), bf16, pixels, channels, pointer(mean), pointer(var), &ws.pool(), threads,
         nullptr},
        ws);
}

// `addresses` of weight, bias, mean and variance; all 0 for no batch norm.
Norm make_norm(std::array<Address, 4> addresses, float eps, bool batch_moments,
               std::array<float, 2> act) {
    return {pointer(addresses[0]), pointer(addresses[1]), pointer(addresses[2]),
            pointer(addresses[3]), eps,                   batch_moments,
            activation(act)};
}

// `share` of the elements, by a seed.
Dropout dropout(std::pair<double, uint64_t> of) {
    const auto [share, seed] = of;
    return {uint32_t(share * 4294967296.0), {uint32_t(seed), uint32_t(seed >> 32)},
            float(1.0 / (1.0 - share))};
}

void batch_norm(Address x, bool bf16, int64_t pixels, int channels, const Norm& norm,
                std::pair<double, uint64_t> drop, Address y, int threads, const std::string& isa,
                Workspace& ws) {
    run(find_kernels(isa).batch_norm,
        {pointer<void>(x), bf16, pixels, channels, norm, dropout(drop), pointer<void>(y),
         &ws.pool(), threads, nullptr},
        ws);
}

void batch_norm_backward(Address dy, Address x, bool bf16, int64_t pixels, int channels,
                         const Norm& norm, std::pair<double, uint64_t> drop, Address dx,
                         Address dweight, Address dbias, int threads, const std::string& isa,
                         Workspace& ws) {
    run(find_kernels(isa).batch_norm_backward,
        {pointer<void>(dy), pointer<void>(x), bf16, pixels, channels, norm, dropout(drop), nullptr,
         pointer<void>(dx), pointer(dweight), pointer(dbias), &ws.pool(), threads, nullptr},
        ws);
}

NormDepthwiseParams norm_depthwise_params(Address x, bool bf16, std::array<int, 4> shape,
                                          int stride, int dilation, const Norm& norm, Address taps,
                                          Address bias, int threads) {
    NormDepthwiseParams p{};
    p.x = pointer<void>(x), p.bf16 = bf16;
    p.batch = shape[0], p.h = shape[1], p.w = shape[2], p.channels = shape[3];
    p.stride = stride, p.dilation = dilation, p.norm = norm;
    p.taps = pointer(taps), p.bias = pointer(bias), p.threads = threads;
    return p;
}

// `mean` and `var` of y may be 0.
void norm_depthwise(NormDepthwiseParams p, Address y, Address mean, Address var,
                    const std::string& isa, Workspace& ws) {
    p.y = pointer<void>(y), p.mean = pointer(mean), p.var = pointer(var), p.pool = &ws.pool();
    run(find_kernels(isa).norm_depthwise, p, ws);
}

// `gradients` of the norm's weight and bias (0 without one), of the taps and their bias.
void norm_depthwise_backward(NormDepthwiseParams of, Address dy, Address dx,
                             std::array<Address, 4> gradients, const std::string& isa,
                             Workspace& ws) {
    NormDepthwiseBackwardParams p{of,
                                  pointer<void>(dy),
                                  pointer<void>(dx),
                                  pointer(gradients[0]),
                                  pointer(gradients[1]),
                                  pointer(gradients[2]),
                                  pointer(gradients[3])};
    const auto kernel = find_kernels(isa).norm_depthwise_backward;
    p.of.pool = &ws.pool();
    p.of.scratch = nullptr;
    p.of.scratch = ws.reserve(kernel(p));
    kernel(p);
}

void overlay(Address labels, Address frame, Address colors, int classes, int alpha, Address y,
             int64_t rows, int width, int threads, const std::string& isa, Workspace& ws) {
    find_kernels(isa).overlay({pointer<uint8_t>(labels), pointer<uint8_t>(frame), 3 * int64_t(width),
                               pointer<uint8_t>(colors), classes, alpha, pointer<uint8_t>(y), rows,
                               width, &ws.pool(), threads});
}

void resize_frame(Address frame, int batch, const ByteAxis& y, const ByteAxis& x, Address out,
                  int threads, const std::string& isa, Workspace& ws) {
    const auto view = [](const ByteAxis& a) {
        return ByteAxisView{a.in, a.out, a.index.data(), a.w0.data(), a.w1.data(), a.bits};
    };
    run(find_kernels(isa).resize_frame,
        {pointer<uint8_t>(frame), 3 * int64_t(x.in), false, batch, view(y), view(x),
         pointer<uint8_t>(out), &ws.pool(), threads, nullptr},
        ws);
}

// --- int8 -------------------------------------------------------------------------------------

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
        {bytes ? nullptr : pointer(x), bytes ? pointer<uint8_t>(x) : nullptr, batch, h, w, stride, quantizer(in), expand.view(), taps.view(), project.view(),
         residual, pointer(y), &ws.pool(), threads, nullptr},
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
    const auto unlocked = py::call_guard<py::gil_scoped_release>();
    m.def("device_info", &device_info, "What this build and this machine can run.");

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

    m.def("stem_conv", &stem_conv, unlocked);
    m.def("depthwise_conv", &depthwise_conv, unlocked);
    m.def("pointwise_conv", &pointwise_conv, unlocked);
    m.def("dsconv", &dsconv, unlocked);
    m.def("classifier", &classifier, unlocked);
    m.def("learning_to_downsample", &learning_to_downsample, unlocked);
    m.def("inverted_residual", &inverted_residual, unlocked);
    m.def("pyramid_pool", &pyramid_pool, unlocked);
    m.def("feature_fusion", &feature_fusion, unlocked);
    py::class_<PackedMatrixInt8>(m, "MatrixInt8", "Packed int8 weights of a 1x1 convolution.")
        .def(py::init(&make_matrix_int8));
    py::class_<PackedTapsInt8>(m, "TapsInt8", "Packed int8 weights of a depthwise convolution.")
        .def(py::init(&make_taps_int8));
    m.def("inverted_residual_int8", &inverted_residual_int8, unlocked);
    m.def("feature_fusion_int8", &feature_fusion_int8, unlocked);
    m.def("classifier_int8", &classifier_int8, unlocked);
    m.def("argmax_head", &argmax_head, unlocked);
    m.def("dense_head", &dense_head, unlocked);
    m.def("cross_entropy_head", &cross_entropy_head, unlocked);
    m.def("prefer_large_pages", &prefer_large_pages);
    m.def("moments", &moments, unlocked);
    m.def("batch_norm", &batch_norm, unlocked);
    m.def("batch_norm_backward", &batch_norm_backward, unlocked);
    py::class_<Norm>(m, "Norm", "Batch norm and an activation.").def(py::init(&make_norm));
    py::class_<NormDepthwiseParams>(m, "NormDepthwise", "Batch norm and a depthwise convolution.")
        .def(py::init(&norm_depthwise_params));
    m.def("norm_depthwise", &norm_depthwise, unlocked);
    m.def("norm_depthwise_backward", &norm_depthwise_backward, unlocked);
    m.def("overlay", &overlay, unlocked);
    m.def("resize_frame", &resize_frame, unlocked);
    bind_network(m);
#ifdef FASTSCNN_WITH_CUDA
    bind_cuda(m);
#endif
}
