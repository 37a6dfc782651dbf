// stem_conv: normalisation and 3x3 convolution of stride 2 of the frame.

#include "stem.h"

namespace fastscnn::FASTSCNN_ISA {

// A unit is a band of output rows. Bound by multiply-adds and the writes of its output.
int64_t stem_conv(const StemParams& p) {
    const int64_t thread_floats = padded(StemRows::floats(p));
    if (!p.scratch) return p.threads * thread_floats;
    const int bands = 4 * p.threads;
    share(p, bands, [&](int unit, int worker) {
        StemRows rows(p, p.scratch + worker * thread_floats);
        const Share band(p.batch * p.out_h, unit, bands);
        for (int i = band.begin; i < band.end; ++i)
            rows.convolve(i / p.out_h, i % p.out_h, p.y + int64_t(i) * p.out_w * p.weight.out,
                          p.weight.out);
    });
    return 0;
}

}  // namespace fastscnn::FASTSCNN_ISA
