// dsconv_int8: depthwise 3x3 and pointwise 1x1, optionally a second 1x1 of floats.

#include "gemm_int8.h"

namespace fastscnn::FASTSCNN_ISA {

// A unit is a band of rows, three of which stay in L2 as bytes; neighbouring bands quantize two
// rows twice. Bound by the products and by reading and writing the maps.
int64_t dsconv_int8(const DsconvInt8Params& p) {
    const int channels = p.taps.channels, pitch = p.taps.pitch, out = p.weight.out;
    const int64_t row_bytes = int64_t(p.w) * pitch;
    const auto layout = [&](Arena& arena, uint8_t*& rows, uint8_t*& mid, uint8_t*& outside,
                            float*& before_last) {
        rows = take_bytes(arena, 3 * row_bytes);
        mid = take_bytes(arena, int64_t(kRunInt8) * pitch);
        outside = take_bytes(arena, pitch);
        before_last = arena.take(p.last.data ? int64_t(kRunInt8) * out : 0);
    };
    uint8_t *rows, *mid, *outside;
    float* before_last;
    Arena count{nullptr};
    layout(count, rows, mid, outside, before_last);
    if (!p.scratch) return p.threads * count.used;

    const int bands = p.threads == 1 ? 1 : p.h < 4 * p.threads ? p.h : 4 * p.threads;
    share(p, int64_t(p.batch) * bands, [&](int unit, int thread) {
        Arena arena{p.scratch + thread * count.used};
        uint8_t *rows, *mid, *outside;
        float* before_last;
        layout(arena, rows, mid, outside, before_last);
        std::memset(outside, p.in.zero, pitch);
        const int n = unit / bands;
        const Share band(p.h, unit % bands, bands);
        DepthwiseRowInt8 d = {{}, {}, outside, p.w, p.taps, 1, 1, mid};
        int next = band.begin - 1 < 0 ? 0 : band.begin - 1;
        for (int y = band.begin; y < band.end; ++y) {
            for (; next <= y + 1 && next < p.h; ++next)
                quantize(p.x + (int64_t(n) * p.h + next) * p.w * channels, p.w, channels, p.in,
                         rows + next % 3 * row_bytes, pitch);
            for (int ky = 0; ky < 3; ++ky)
                set_row(d, ky, rows + (y + ky + 2) % 3 * row_bytes, y + ky - 1, p.h);
            for (int x = 0; x < p.w; x += kRunInt8) {
                const int pixels = p.w - x < kRunInt8 ? p.w - x : kRunInt8;
                depthwise_row_int8(d, x, x + pixels);
                const int64_t at = (int64_t(n) * p.h + y) * p.w + x;
                float* to = p.last.data ? before_last : p.y + at * out;
                gemm_int8({mid, pitch, p.weight, nullptr, to, out, nullptr, 0, p.act}, pixels);
                if (p.last.data)
                    gemm(matrix_product(p.last, to, p.y + at * p.last.out, p.last.out, kNone),
                         pixels);
            }
        }
    });
    return 0;
}

}  // namespace fastscnn::FASTSCNN_ISA
