// pointwise_conv: 1x1 convolution with optional residual and activation.

#include "rows.h"

namespace fastscnn::FASTSCNN_ISA {

// A unit is a run of pixels with all its output channels. Bound by multiply-adds from 64 channels
// on, by memory below.
int64_t pointwise_conv(const PointwiseParams& p) {
    if (!p.scratch) return 1;
    const int64_t units = (p.pixels + kRun - 1) / kRun;
    share(p, units, [&](int unit, int) {
        const int64_t at = int64_t(unit) * kRun;
        Gemm g = matrix_product(p.weight, p.x + at * p.weight.k, p.y + at * p.weight.out,
                                p.weight.out, p.act);
        if (p.residual) g.add = p.residual + at * p.weight.out, g.add_stride = p.weight.out;
        gemm(g, p.pixels - at < kRun ? int(p.pixels - at) : kRun);
    });
    return 0;
}

}  // namespace fastscnn::FASTSCNN_ISA
