// feature_fusion_int8: bilinear + dilated depthwise + ReLU of the low branch, then the 1x1 of both
// branches side by side, ReLU.

#include "gemm_int8.h"

namespace fastscnn::FASTSCNN_ISA {
namespace {

struct Worker {
    const FeatureFusionInt8Params& p;
    int channels;         // of the low branch
    int wide;             // bytes of a pixel of both branches
    float* blend;         // [cols.in, channels]: between two low rows
    float* run;           // [kRunInt8, channels]
    uint8_t* rows;        // three upsampled rows [cols.out, channels]
    uint8_t* mid;         // [kRunInt8, wide]: what the product reads
    uint8_t* outside;     // [channels]

    Worker(const FeatureFusionInt8Params& params, Arena& arena)
        : p(params), channels(p.low_channels), wide(channels + blocks(p.high_channels)) {
        blend = arena.take(int64_t(p.cols.in) * channels);
        run = arena.take(int64_t(kRunInt8) * channels);
        rows = take_bytes(arena, 3 * int64_t(p.cols.out) * channels);
        mid = take_bytes(arena, kRunInt8 * wide);
        outside = take_bytes(arena, channels);
    }

    // Samples row y of the upsampled map, in bytes.
    void upsample(const float* low, int y, uint8_t* to) {
        const AxisView &ry = p.rows, &cx = p.cols;
        const int64_t source = int64_t(cx.in) * channels;
        const float* top = low + ry.index[y] * source;
        const float* bottom = ry.index[y] + 1 < ry.in ? top + source : top;
        for (int64_t i = 0; i < source; ++i) blend[i] = ry.w0[y] * top[i] + ry.w1[y] * bottom[i];
        for (int x = 0; x < cx.out; x += kRunInt8, to += kRunInt8 * channels) {
            const int pixels = cx.out - x < kRunInt8 ? cx.out - x : kRunInt8;
            for (int i = 0; i < pixels; ++i) {
                const float* left = blend + int64_t(cx.index[x + i]) * channels;
                const float* right = cx.index[x + i] + 1 < cx.in ? left + channels : left;
                const float w0 = cx.w0[x + i], w1 = cx.w1[x + i];
                float* sampled = run + int64_t(i) * channels;
                for (int c = 0; c < channels; ++c) sampled[c] = w0 * left[c] + w1 * right[c];
            }
            quantize(run, pixels, channels, p.low_in, to, channels, channels);
        }
    }

    // An output row, with the rows of the low branch in d.
    void fuse(DepthwiseRowInt8 d, const uint8_t* high, uint8_t* to) {
        const int width = p.cols.out, outs = blocks(p.weight.out), rest = wide - channels;
        d.y = mid, d.y_stride = wide;
        for (int x = 0; x < width; x += kRunInt8) {
            const int pixels = width - x < kRunInt8 ? width - x : kRunInt8;
            for (int i = 0; i < pixels; ++i)
                std::memcpy(mid + i * wide + channels, high + int64_t(x + i) * rest, rest);
            if (p.taps.data)
                depthwise_row_int8(d, x, x + pixels);
            else
                for (int i = 0; i < pixels; ++i)
                    std::memcpy(mid + i * wide, d.row[1] + int64_t(x + i) * channels, channels);
            gemm_int8({mid, wide, p.weight, nullptr, nullptr, 0, to + int64_t(x) * outs, outs},
                      pixels);
        }
    }
};

}  // namespace

// A unit is a run of output rows y, y + dilation, y + 2 * dilation, ...: they share their rows of
// the upsampled map, three of which stay in L2 as bytes.
int64_t feature_fusion_int8(const FeatureFusionInt8Params& p) {
    const int height = p.rows.out, width = p.cols.out;
    const int step = p.taps.data ? p.dilation : 1;
    Arena count{nullptr};
    Worker(p, count);
    if (!p.scratch) return p.threads * count.used;

    const int classes = step < height ? step : height;  // of rows that share
    const int runs = (4 * p.threads + classes - 1) / classes;
    share(p, int64_t(p.batch) * classes * runs, [&](int unit, int thread) {
        Arena arena{p.scratch + thread * count.used};
        Worker w(p, arena);
        std::memset(w.outside, p.low_in.zero, w.channels);
        const int64_t row_bytes = int64_t(width) * w.channels;
        const int n = unit / (classes * runs), first = unit / runs % classes;
        const Share run(strided(height - first, step), unit % runs, runs);
        const float* low = p.low + int64_t(n) * p.rows.in * p.cols.in * w.channels;
        const int around = p.taps.data ? 1 : 0;                      // rows needed above and below
        int made = run.begin - around < 0 ? 0 : run.begin - around;  // rows of this class below it
        TapsInt8 taps = p.taps;
        taps.pitch = w.channels;
        DepthwiseRowInt8 d = {{}, {}, w.outside, width, taps, 1, p.dilation, nullptr, 0};
        for (int i = run.begin; i < run.end; ++i) {
            for (; made <= i + around && first + made * step < height; ++made)
                w.upsample(low, first + made * step, w.rows + made % 3 * row_bytes);
            for (int ky = 0; ky < 3; ++ky)
                set_row(d, ky, w.rows + (i + ky + 2) % 3 * row_bytes, first + (i + ky - 1) * step,
                        height);
            const int64_t row = int64_t(n) * height + first + i * step;
            w.fuse(d, p.high + row * width * blocks(p.high_channels),
                   p.y + row * width * blocks(p.weight.out));
        }
    });
    return 0;
}

}  // namespace fastscnn::FASTSCNN_ISA
