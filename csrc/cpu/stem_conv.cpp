// stem_conv: normalisation and 3x3 convolution of stride 2 of the frame.

#include "stem.h"

namespace fastscnn::FASTSCNN_ISA {

// A thread owns a band of output rows. Bound by multiply-adds and the writes of its output.
int64_t stem_conv(const StemParams& p) {
    const int64_t thread_floats = padded(StemRows::floats(p));
    if (!p.scratch) return p.threads * thread_floats;
#pragma omp parallel num_threads(p.threads)
    {
        const int thread = omp_get_thread_num();
        StemRows rows(p, p.scratch + thread * thread_floats);
        const Share share(p.batch * p.out_h, thread, omp_get_num_threads());
        for (int unit = share.begin; unit < share.end; ++unit)
            rows.convolve(unit / p.out_h, unit % p.out_h,
                          p.y + int64_t(unit) * p.out_w * p.weight.out, p.weight.out);
    }
    return 0;
}

}  // namespace fastscnn::FASTSCNN_ISA
