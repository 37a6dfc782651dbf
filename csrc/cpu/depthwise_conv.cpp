// depthwise_conv: 3x3 depthwise convolution of a whole map.

#include "rows.h"

namespace fastscnn::FASTSCNN_ISA {

// A unit is an output row. Bound by memory: 9 multiply-adds per element read.
int64_t depthwise_conv(const DepthwiseParams& p) {
    const int out_h = strided(p.h, p.stride), out_w = strided(p.w, p.stride);
    const int channels = p.taps.channels;
    if (!p.scratch) return p.taps.pitch;
    fill_zero(p.scratch, p.taps.pitch);
    share(p, int64_t(p.batch) * out_h, [&](int unit, int) {
        const int n = unit / out_h, y = unit % out_h;
        DepthwiseRow d = depthwise(p.taps, p.w, p.stride, p.dilation, p.act);
        for (int ky = 0; ky < 3; ++ky) {
            const int row = y * p.stride + (ky - 1) * p.dilation;
            set_row(d, ky, p.x + (int64_t(n) * p.h + row) * p.w * channels, channels, row, p.h,
                    p.scratch);
        }
        d.y = p.y + int64_t(unit) * out_w * channels;
        d.y_stride = channels;
        depthwise_row(d, 0, out_w);
    });
    return 0;
}

}  // namespace fastscnn::FASTSCNN_ISA
