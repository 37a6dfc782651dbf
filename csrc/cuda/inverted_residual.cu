#include "inverted_residual.cuh"

namespace fastscnn {

namespace {

int output_width(int o) { return o <= 64 ? 64 : o <= 96 ? 96 : 128; }

// f(T{}, layout{}) for the layout that the plan chose.
template <class F>
auto with_layout(int tile_h, int stride, int o, F f) {
    auto by_width = [&](auto tile, auto step) {
        constexpr int kTile = decltype(tile)::value, kStep = decltype(step)::value;
        if (output_width(o) == 64) return f(InvertedResidualLayout<kTile, kStep, 64>{});
        if (output_width(o) == 96) return f(InvertedResidualLayout<kTile, kStep, 96>{});
        return f(InvertedResidualLayout<kTile, kStep, 128>{});
    };
    using std::integral_constant;
    if (stride == 2) return by_width(integral_constant<int, 4>{}, integral_constant<int, 2>{});
    if (tile_h == 8) return by_width(integral_constant<int, 8>{}, integral_constant<int, 1>{});
    return by_width(integral_constant<int, 4>{}, integral_constant<int, 1>{});
}

}  // namespace

// Large tiles waste less on halos. A map with fewer tiles than the GPU has multiprocessors gives
// each tile to several blocks, each with at least two chunks; maps too small even for that get
// small tiles.
InvertedResidualPlan plan_inverted_residual(const InvertedResidualParams& p) {
    constexpr int kMaxSplit = 8;
    const Device device = present_device();
    const int c = round_up(p.c, 16), chunks = p.hidden_stride / kChunk;
    InvertedResidualPlan plan{};
    for (int tile_h : {8, 4}) {
        if (p.stride == 2 && tile_h == 8) continue;
        plan.tile_h = tile_h;
        plan.shared = with_layout(tile_h, p.stride, p.o, [&](auto l) { return l.bytes(c); });
        plan.tiles = ceil_div(p.oh, tile_h) * ceil_div(p.ow, 8);
        const int wanted = device.multiprocessors / (plan.tiles * p.n);
        const int most = chunks / 2 < kMaxSplit ? chunks / 2 : kMaxSplit;
        plan.split = wanted < 1 || most < 1 ? 1 : wanted < most ? wanted : most;
        plan.split = ceil_div(chunks, ceil_div(chunks, plan.split));  // none without a share
        const bool fills = 2 * plan.tiles * p.n * plan.split >= device.multiprocessors;
        if (fills && plan.shared <= device.shared) break;
    }
    if (plan.split > 1) {
        plan.counters = plan.tiles * p.n;
        plan.partial = int64_t(plan.counters) * plan.split * plan.tile_h * 8 * output_width(p.o);
    }
    return plan;
}

std::string inverted_residual(Type type, InvertedResidualParams p, Stream stream) {
    const Device device = present_device();
    if (type == Type::kBF16 && device.capability < 80)
        throw std::invalid_argument(
            "inverted_residual: bfloat16 needs compute capability 8.0 or newer; use float16");
    if (p.n > 65535)
        throw std::invalid_argument("inverted_residual: a batch of at most 65535 images");
    const InvertedResidualPlan plan = plan_inverted_residual(p);
    if (plan.shared > device.shared || p.o > 128)
        throw std::invalid_argument(
            "inverted_residual: " + std::to_string(p.c) + " -> " + std::to_string(p.o) +
            " channels need " + std::to_string(plan.shared) + " bytes of shared memory (this GPU " +
            "has " + std::to_string(device.shared) + ") and at most 128 outputs");

    p.split = plan.split, p.share = ceil_div(p.hidden_stride / kChunk, plan.split);
    const dim3 grid(plan.tiles, plan.split, p.n);
    return with_layout(plan.tile_h, p.stride, p.o, [&](auto layout) {
        using L = decltype(layout);
        auto kernel = type == Type::kF16 ? inverted_residual_kernel<F16, L>
                                         : inverted_residual_kernel<BF16, L>;
        return launch("inverted_residual", kernel, grid, L::kThreads, plan.shared, stream, p);
    });
}

}  // namespace fastscnn
