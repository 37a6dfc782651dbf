// The operations of training, for Python.

#include "bindings.h"

#include <pybind11/stl.h>
#include <sys/mman.h>

#include <tuple>

namespace py = pybind11;

namespace fastscnn {
namespace {

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

}  // namespace

void bind_training(py::module_& m) {
    py::class_<Norm>(m, "Norm", "Batch norm and an activation.").def(py::init(&make_norm));
    py::class_<NormDepthwiseParams>(m, "NormDepthwise", "Batch norm and a depthwise convolution.")
        .def(py::init(&norm_depthwise_params));
    m.def("prefer_large_pages", &prefer_large_pages);
    m.def("cross_entropy_head", &cross_entropy_head, Unlocked());
    m.def("moments", &moments, Unlocked());
    m.def("batch_norm", &batch_norm, Unlocked());
    m.def("batch_norm_backward", &batch_norm_backward, Unlocked());
    m.def("norm_depthwise", &norm_depthwise, Unlocked());
    m.def("norm_depthwise_backward", &norm_depthwise_backward, Unlocked());
}

}  // namespace fastscnn
