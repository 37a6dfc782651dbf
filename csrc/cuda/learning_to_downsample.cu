#include "learning_to_downsample.cuh"

namespace fastscnn {

namespace {

template <class L>
std::string run_learning_to_downsample(Type type, LearningToDownsampleParams p, Stream stream) {
    const dim3 grid(ceil_div(p.w3, L::kTileW), ceil_div(p.h3, L::kTileH), p.n);
    auto kernel = type == Type::kF16 ? learning_to_downsample_kernel<F16, L>
                                     : learning_to_downsample_kernel<BF16, L>;
    return launch("learning_to_downsample", kernel, grid, L::kThreads, L::kBytes, stream, p);
}

}  // namespace

std::string learning_to_downsample(Type type, LearningToDownsampleParams p, Stream stream) {
    const Device device = present_device();
    if (type == Type::kBF16 && device.capability < 80)
        throw std::invalid_argument(
            "learning_to_downsample: bfloat16 needs compute capability 8.0 or newer; use float16");
    if (p.n > 65535)
        throw std::invalid_argument("learning_to_downsample: a batch of at most 65535 images");

    using Large = LearningToDownsampleLayout<4, 8>;
    using Small = LearningToDownsampleLayout<4, 4>;
    constexpr int kTuring = 64 * 1024;
    static_assert(Small::kBytes <= kTuring);
    return Large::kBytes <= device.shared ? run_learning_to_downsample<Large>(type, p, stream)
                                          : run_learning_to_downsample<Small>(type, p, stream);
}

}  // namespace fastscnn
