// feature_fusion: bilinear + dilated depthwise + ReLU + 1x1 of the low branch, plus the 1x1 of the
// high branch, ReLU. The upsampled map never exists.

#include "rows.h"

namespace fastscnn::FASTSCNN_ISA {
namespace {

struct Worker {
    const FeatureFusionParams& p;
    int channels;  // of the low branch
    float* blend;  // [cols.in, channels]: between two low rows
    float* rows;   // three upsampled rows [cols.out, channels]
    float* mid;    // [kRun, channels]
    float* zero;   // a pixel of zeros
    int64_t row_floats;
    int pitch;  // floats between upsampled pixels

    // Samples row y of the upsampled map.
    void upsample(const float* low, int y, float* to) {
        const AxisView &ry = p.rows, &cx = p.cols;
        const int64_t source = int64_t(cx.in) * channels;
        const float* top = low + ry.index[y] * source;
        const float* bottom = ry.index[y] + 1 < ry.in ? top + source : top;
        for (int64_t i = 0; i < source; ++i) blend[i] = ry.w0[y] * top[i] + ry.w1[y] * bottom[i];
        for (int x = 0; x < cx.out; ++x, to += pitch) {
            const float* left = blend + int64_t(cx.index[x]) * channels;
            const float* right = cx.index[x] + 1 < cx.in ? left + channels : left;
            const float w0 = cx.w0[x], w1 = cx.w1[x];
            for (int c = 0; c < channels; ++c) to[c] = w0 * left[c] + w1 * right[c];
        }
    }

    // Output row y, with the rows of the low branch in d.
    void fuse(DepthwiseRow& d, const float* high, float* out) {
        const int width = p.cols.out, outs = p.low_weight.out;
        to_product(d, mid, pitch_of(channels));
        if (!p.taps.data) d.in_steps = false, d.y_stride = channels;
        for (int x = 0; x < width; x += kRun) {
            const int n = width - x < kRun ? width - x : kRun;
            float* to = out + int64_t(x) * outs;
            gemm(
                matrix_product(p.high_weight, high + int64_t(x) * p.high_weight.k, to, outs, kNone),
                n);
            if (p.taps.data) {
                depthwise_row(d, x, x + n);
            } else {
                const float* from = d.row[1] + int64_t(x) * pitch;
                for (int i = 0; i < n; ++i)
                    for (int c = 0; c < channels; ++c)
                        mid[i * channels + c] = from[i * pitch + c] < 0.f ? 0.f : from[i * pitch + c];
            }
            Gemm g = product_of(d, p.low_weight, to, outs, kRelu);
            g.in_steps = d.in_steps;
            g.add = to;
            g.add_stride = outs;
            gemm(g, n);
        }
    }
};

}  // namespace

// A unit is a run of output rows y, y + dilation, y + 2 * dilation, ...: they share their rows of
// the upsampled map, three of which stay in L2 (0.4 MB for a map 256 x 128 channels). Bound by
// multiply-adds.
int64_t feature_fusion(const FeatureFusionParams& p) {
    const int channels = p.low_weight.k, height = p.rows.out, width = p.cols.out;
    const int step = p.taps.data ? p.dilation : 1;
    const int pitch = spread(channels);
    const int64_t row_floats = padded(int64_t(width) * pitch);
    const int64_t blend = padded(int64_t(p.cols.in) * channels);
    const int64_t mid = padded(int64_t(kRun) * pitch_of(channels));
    const int64_t zero = padded(pitch_of(channels));
    const int64_t thread_floats = blend + 3 * row_floats + mid + zero;
    if (!p.scratch) return p.threads * thread_floats;

    const int classes = step < height ? step : height;  // of rows that share
    const int runs = (4 * p.threads + classes - 1) / classes;
    share(p, int64_t(p.batch) * classes * runs, [&](int unit, int thread) {
        Arena arena{p.scratch + thread * thread_floats};
        Worker w{p,
                 channels,
                 arena.take(blend),
                 arena.take(3 * row_floats),
                 arena.take(mid),
                 arena.take(zero),
                 row_floats,
                 pitch};
        fill_zero(w.zero, zero);
        const int n = unit / (classes * runs), first = unit / runs % classes;
        const Share run(strided(height - first, step), unit % runs, runs);
        const float* low = p.low + int64_t(n) * p.rows.in * p.cols.in * channels;
        const int around = p.taps.data ? 1 : 0;                      // rows needed above and below
        int made = run.begin - around < 0 ? 0 : run.begin - around;  // rows of this class below it
        for (int i = run.begin; i < run.end; ++i) {
            for (; made <= i + around && first + made * step < height; ++made)
                w.upsample(low, first + made * step, w.rows + made % 3 * row_floats);
            DepthwiseRow d = depthwise(p.taps, width, 1, p.dilation, kRelu);
            for (int ky = 0; ky < 3; ++ky) {
                const int j = i + ky - 1;
                set_row(d, ky, w.rows + (j + 3) % 3 * row_floats, pitch, first + j * step,
                        height, w.zero);
            }
            const int64_t row = int64_t(n) * height + first + i * step;
            w.fuse(d, p.high + row * width * p.high_weight.k, p.y + row * width * p.low_weight.out);
        }
    });
    return 0;
}

}  // namespace fastscnn::FASTSCNN_ISA
