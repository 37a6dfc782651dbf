#include "pyramid_pool.cuh"

namespace fastscnn {

namespace {

template <int kKernelSize>
std::string run_pool_join(Type type, const PyramidPoolParams& p, Stream stream) {
    using L = PoolJoinLayout<kKernelSize>;
    const dim3 grid(ceil_div(p.h, L::kTileH) * ceil_div(p.w, L::kTileW), ceil_div(p.o, L::kOut),
                    p.n);
    auto kernel = type == Type::kF16 ? pool_join_kernel<F16, kKernelSize>
                                     : pool_join_kernel<BF16, kKernelSize>;
    return launch("pool_join", kernel, grid, L::kThreads,
                  L::bytes(p.c, p.width, p.branches, p.cells), stream, p);
}

}  // namespace

std::string pyramid_pool(Type type, PyramidPoolParams p, Stream stream) {
    const Device device = present_device();
    if (type == Type::kBF16 && device.capability < 80)
        throw std::invalid_argument(
            "pyramid_pool: bfloat16 needs compute capability 8.0 or newer; use float16");
    if (p.n > 65535) throw std::invalid_argument("pyramid_pool: a batch of at most 65535 images");
    p.segments = p.cells = 0;
    for (int b = 0; b < p.branches; ++b) p.segments += p.bins[b], p.cells += p.bins[b] * p.bins[b];
    if (p.segments > kMaxSegments)
        throw std::invalid_argument("pyramid_pool: bins that add up to " +
                                    std::to_string(p.segments) + ", expected at most " +
                                    std::to_string(kMaxSegments));
    const int bytes = p.kernel == 3 ? PoolJoinLayout<3>::bytes(p.c, p.width, p.branches, p.cells)
                                    : PoolJoinLayout<1>::bytes(p.c, p.width, p.branches, p.cells);
    if (bytes > device.shared)
        throw std::invalid_argument(
            "pyramid_pool: " + std::to_string(p.c) + " channels and branches of " +
            std::to_string(p.width) + " need " + std::to_string(bytes) +
            " bytes of shared memory, this GPU has " + std::to_string(device.shared));

    using L = PoolRowsLayout;
    const dim3 grid(p.n * p.h, ceil_div(p.c, L::kChannels));
    auto kernel = type == Type::kF16 ? pool_rows_kernel<F16> : pool_rows_kernel<BF16>;
    const std::string error = launch("pool_rows", kernel, grid, L::kThreads, L::kBytes, stream, p);
    if (!error.empty()) return error;
    return p.kernel == 3 ? run_pool_join<3>(type, p, stream) : run_pool_join<1>(type, p, stream);
}

}  // namespace fastscnn
