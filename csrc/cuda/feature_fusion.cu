#include "feature_fusion.cuh"

namespace fastscnn {

std::string feature_fusion(Type type, FeatureFusionParams p, Stream stream) {
    using L = FeatureFusionLayout;
    const Device device = present_device();
    if (type == Type::kBF16 && device.capability < 80)
        throw std::invalid_argument(
            "feature_fusion: bfloat16 needs compute capability 8.0 or newer; use float16");
    if (p.n > 65535)
        throw std::invalid_argument("feature_fusion: a batch of at most 65535 images");
    // Beyond 64, sizes in bytes would leave what an int holds.
    const int bytes = p.dilation > 64 ? device.shared + 1 : L::bytes(p.dilation, p.cl);
    if (bytes > device.shared)
        throw std::invalid_argument(
            "feature_fusion: dilation=" + std::to_string(p.dilation) + " on " +
            std::to_string(p.cl) + " channels needs " + std::to_string(bytes) +
            " bytes of shared memory or more, this GPU has " + std::to_string(device.shared));

    const dim3 grid(ceil_div(p.h, L::kTileH) * ceil_div(p.w, L::kTileW), p.o_stride / L::kOut, p.n);
    auto kernel = type == Type::kF16 ? feature_fusion_kernel<F16> : feature_fusion_kernel<BF16>;
    return launch("feature_fusion", kernel, grid, L::kThreads, bytes, stream, p);
}

}  // namespace fastscnn
