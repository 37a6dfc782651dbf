// dsconv: depthwise 3x3 and pointwise 1x1, optionally a second 1x1, in one pass over the map.

#include "rows.h"

namespace fastscnn::FASTSCNN_ISA {

// A unit is an output row, worked on in runs of kRun pixels whose middle tensors stay in L1. Bound
// by multiply-adds: a map is read once (three rows at a time, from L2) and written once.
int64_t dsconv(const DsconvParams& p) {
    const int out_h = strided(p.h, p.stride), out_w = strided(p.w, p.stride);
    const int channels = p.taps.channels, wide = pitch_of(p.weight.out);
    const int64_t mid_floats = padded(int64_t(kRun) * p.taps.pitch);
    const int64_t last_floats = p.last.data ? padded(int64_t(kRun) * wide) : 0;
    const int64_t zero_floats = padded(p.taps.pitch);
    if (!p.scratch) return zero_floats + p.threads * (mid_floats + last_floats);
    fill_zero(p.scratch, zero_floats);
    share(p, int64_t(p.batch) * out_h, [&](int unit, int worker) {
        float* mid = p.scratch + zero_floats + worker * (mid_floats + last_floats);
        float* before_last = mid + mid_floats;
        const int n = unit / out_h, y = unit % out_h;
        DepthwiseRow d = depthwise(p.taps, p.w, p.stride, p.dilation, p.mid_act);
        for (int ky = 0; ky < 3; ++ky) {
            const int row = y * p.stride + (ky - 1) * p.dilation;
            set_row(d, ky, p.x + (int64_t(n) * p.h + row) * p.w * channels, channels, row, p.h,
                    p.scratch);
        }
        if (!p.last.data) {
            float* out = p.y + int64_t(unit) * out_w * p.weight.out;
            dsconv_row(d, p.weight, p.act, 0, out_w, mid, out, p.weight.out);
            return;
        }
        float* out = p.y + int64_t(unit) * out_w * p.last.out;
        for (int x = 0; x < out_w; x += kRun) {
            const int end = out_w - x < kRun ? out_w : x + kRun;
            dsconv_row(d, p.weight, p.act, x, end, mid, before_last, wide);
            Gemm g = matrix_product(p.last, before_last, out + int64_t(x) * p.last.out, p.last.out,
                                    kNone);
            g.x_stride = wide;
            gemm(g, end - x);
        }
    });
    return 0;
}

}  // namespace fastscnn::FASTSCNN_ISA
