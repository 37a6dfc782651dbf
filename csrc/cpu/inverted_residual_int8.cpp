// inverted_residual_int8: expand 1x1, depthwise 3x3, project 1x1, optionally plus the input.

#include "gemm_int8.h"

namespace fastscnn::FASTSCNN_ISA {

// A unit is a band of output rows. Three rows of hidden bytes stay in L2 (0.3 MB for a map 256 wide
// with 384 channels), so that all hidden channels are made at once; neighbouring bands repeat two
// rows of the expansion. Bound by the products.
int64_t inverted_residual_int8(const InvertedResidualInt8Params& p) {
    const int out_h = strided(p.h, p.stride), out_w = strided(p.w, p.stride);
    const int k = p.expand.k, in_pitch = blocks(k), pitch = p.taps.pitch;
    const int64_t row_bytes = int64_t(p.w) * pitch;
    const auto layout = [&](Arena& arena, uint8_t*& in, uint8_t*& hidden, uint8_t*& mid,
                            uint8_t*& outside) {
        in = take_bytes(arena, int64_t(kRunInt8) * in_pitch);
        hidden = take_bytes(arena, 3 * row_bytes);
        mid = take_bytes(arena, int64_t(kRunInt8) * pitch);
        outside = take_bytes(arena, pitch);
    };
    uint8_t *in, *hidden, *mid, *outside;
    Arena count{nullptr};
    layout(count, in, hidden, mid, outside);
    if (!p.scratch) return p.threads * count.used;

    const int per_image = (p.threads + p.batch - 1) / p.batch;
    const int bands = out_h < per_image ? out_h : per_image;
    share(p, int64_t(p.batch) * bands, [&](int unit, int thread) {
        Arena arena{p.scratch + thread * count.used};
        uint8_t *in, *hidden, *mid, *outside;
        layout(arena, in, hidden, mid, outside);
        std::memset(outside, 0, pitch);
        const int n = unit / bands;
        const Share band(out_h, unit % bands, bands);
        const float* image = p.x ? p.x + int64_t(n) * p.h * p.w * k : nullptr;
        float* out = p.y + int64_t(n) * out_h * out_w * p.project.out;
        DepthwiseRowInt8 d = {{}, {}, outside, p.w, p.taps, p.stride, 1, mid, pitch};
        int next = band.begin * p.stride - 1 < 0 ? 0 : band.begin * p.stride - 1;
        for (int y = band.begin; y < band.end; ++y) {
            for (; next <= y * p.stride + 1 && next < p.h; ++next) {
                for (int x = 0; x < p.w; x += kRunInt8) {
                    const int pixels = p.w - x < kRunInt8 ? p.w - x : kRunInt8;
                    const int64_t at = int64_t(next) * p.w + x;
                    const uint8_t* from = in;
                    if (image)
                        quantize(image + at * k, pixels, k, p.in, in, in_pitch, in_pitch);
                    else
                        from = p.bytes + (int64_t(n) * p.h * p.w + at) * in_pitch;
                    gemm_int8({from, in_pitch, p.expand, nullptr, nullptr, 0,
                               hidden + next % 3 * row_bytes + int64_t(x) * pitch, pitch},
                              pixels);
                }
            }
            for (int ky = 0; ky < 3; ++ky) {
                const int row = y * p.stride + ky - 1;
                set_row(d, ky, hidden + (row + 3) % 3 * row_bytes, row, p.h);
            }
            for (int x = 0; x < out_w; x += kRunInt8) {
                const int pixels = out_w - x < kRunInt8 ? out_w - x : kRunInt8;
                depthwise_row_int8(d, x, x + pixels);
                const int64_t at = (int64_t(y) * out_w + x) * p.project.out;
                gemm_int8({mid, pitch, p.project, p.residual ? image + at : nullptr, out + at,
                           p.project.out, nullptr, 0},
                          pixels);
            }
        }
    });
    return 0;
}

}  // namespace fastscnn::FASTSCNN_ISA
