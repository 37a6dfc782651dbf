// classifier: two depthwise separable convolutions and a 1x1 to class scores, in one pass.

#include "rows.h"

namespace fastscnn::FASTSCNN_ISA {
namespace {

// Bands per thread: smaller ones share the work more evenly, and repeat two rows of the first
// convolution each.
constexpr int kBands = 2;

struct Pieces {
    float* between;  // three rows of the map between the convolutions, [w, spread(channels)]
    float* mid;      // [kRun, widest taps]
    float* last;     // [kRun, padded outputs of the second]
    float* zero;     // a pixel of zeros
};

}  // namespace

// A unit is a band of output rows. Three rows of the map between the convolutions stay in L2 (0.4
// MB for a map 256 wide with 128 channels): memory sees the first map and the scores only. Bound by
// multiply-adds.
int64_t classifier(const ClassifierParams& p) {
    const int channels = p.taps1.channels, between = p.taps2.channels;
    const int wide = pitch_of(p.weight2.out), spread_ = spread(between);
    const int pitch = p.taps1.pitch > p.taps2.pitch ? p.taps1.pitch : p.taps2.pitch;
    const int64_t row_floats = padded(int64_t(p.w) * spread_);
    const auto layout = [&](Arena& arena) {
        return Pieces{arena.take(3 * row_floats), arena.take(int64_t(kRun) * pitch),
                      arena.take(int64_t(kRun) * wide), arena.take(pitch)};
    };
    Arena count{nullptr};
    layout(count);
    if (!p.scratch) return p.threads * count.used;

    const int bands = p.threads == 1 ? 1 : p.h < kBands * p.threads ? p.h : kBands * p.threads;
    share(p, int64_t(p.batch) * bands, [&](int unit, int thread) {
        Arena arena{p.scratch + thread * count.used};
        const Pieces at = layout(arena);
        fill_zero(at.zero, pitch);
        const int n = unit / bands;
        const Share band(p.h, unit % bands, bands);
        const float* image = p.x + int64_t(n) * p.h * p.w * channels;
        Ring ring{at.between, row_floats, spread_, p.h, band.begin > 0 ? band.begin - 1 : 0};
        DepthwiseRow first = depthwise(p.taps1, p.w, 1, 1, p.mid_act);
        DepthwiseRow second = depthwise(p.taps2, p.w, 1, 1, p.mid_act);
        for (int y = band.begin; y < band.end; ++y) {
            for (; ring.next <= y + 1 && ring.next < p.h; ++ring.next) {
                for (int ky = 0; ky < 3; ++ky) {
                    const int row = ring.next + ky - 1;
                    set_row(first, ky, image + int64_t(row) * p.w * channels, channels, row, p.h,
                            at.zero);
                }
                dsconv_row(first, p.weight1, p.act, 0, p.w, at.mid, ring.row(ring.next), spread_);
            }
            for (int ky = 0; ky < 3; ++ky) {
                const int row = y + ky - 1;
                set_row(second, ky, ring.row(row < 0 ? 0 : row), spread_, row, p.h, at.zero);
            }
            float* out = p.y + (int64_t(n) * p.h + y) * p.w * p.last.out;
            for (int x = 0; x < p.w; x += kRun, out += int64_t(kRun) * p.last.out) {
                const int end = p.w - x < kRun ? p.w : x + kRun;
                dsconv_row(second, p.weight2, p.act, x, end, at.mid, at.last, wide);
                Gemm g = matrix_product(p.last, at.last, out, p.last.out, kNone);
                g.x_stride = wide;
                gemm(g, end - x);
            }
        }
    });
    return 0;
}

}  // namespace fastscnn::FASTSCNN_ISA
