// 1x1 convolutions (and 3x3 ones on padded rows) as products with packed weights.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace fastscnn::FASTSCNN_ISA {

// A tile of pixels x vectors of output channels lives in registers: 32 of them with AVX-512 and
// NEON, 16 otherwise. Each step loads the tile's weights once and broadcasts one input per pixel.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kMaxVecs = 4;
constexpr int tile_pixels(int vecs) { return vecs == 4 ? 6 : vecs == 3 ? 8 : 12; }
#else
constexpr int kMaxVecs = 2;
constexpr int tile_pixels(int vecs) { return vecs == 2 ? 6 : 8; }
#endif

// Inputs that a step of the product takes: one float, or where the CPU multiplies bfloat16 a pair of
// them. A pair is kept where a float would be: the same loads and broadcasts move both.
#if defined(__AVX512BF16__)
constexpr int kStep = 2;
#else
constexpr int kStep = 1;
#endif
constexpr int steps(int k) { return (k + kStep - 1) / kStep; }

// Rows are worked on in runs of this many pixels, so that a run stays in the L1 cache from one
// stage of a fused block to the next. A multiple of every tile_pixels.
constexpr int kRun = 48;

constexpr int round_up(int n, int step) { return (n + step - 1) / step * step; }
constexpr int pitch_of(int channels) { return round_up(channels, kLanes); }

// Floats between the pixels of rows whose neighbours are read a vector of channels at a time: not a
// power of two, so that they fall into all sets of L1.
constexpr int spread(int channels) { return pitch_of(channels) + kLanes; }

// Output channels come in panels of up to kMaxVecs vectors, as equal as possible. A panel holds its
// weights as [k][vectors of the panel]; missing channels of the last vector are zeros.
struct Panels {
    int vecs, count;
    explicit Panels(int channels)
        : vecs(pitch_of(channels) / kLanes), count((vecs + kMaxVecs - 1) / kMaxVecs) {}
    // First vector of panel i; begin(count) == vecs.
    int begin(int i) const { return vecs * i / count; }
};

struct Gemm {
    const float* x[3];   // first pixel of every segment (the rows of a 3x3 convolution)
    int segments;        // 1..3
    int k;               // inputs per segment and pixel
    int64_t x_stride;    // floats between pixels
    const float* w;      // packed weights
    int w_steps;         // of a panel, >= segments * steps(k)
    int k_begin;         // first input of every panel to use, a multiple of kStep
    const float* bias;   // [padded channels]: where the sum starts, or null
    const float* add;    // [pixels, add_stride]: added at the start, or null
    int64_t add_stride;  // floats between pixels
    float* y;            // [pixels, y_stride]
    int64_t y_stride;    // floats between pixels
    int channels;        // output channels that may be written
    Activation act;
    bool in_steps;  // x holds steps already, not floats; what lies behind an odd k is finite
};

// Panels first .. last - 1 for `pixels` pixels; g.y, g.bias and g.add are those of channel 0.
void gemm(const Gemm& g, const Panels& panels, int first, int last, int pixels);

// y[p] = act(w * x[p] + bias) for `pixels` pixels.
FASTSCNN_INLINE Gemm matrix_product(const Matrix& w, const float* x, float* y, int64_t y_stride,
                                    Activation act) {
    return {{x, nullptr, nullptr},
            1,
            w.k,
            w.k,
            w.data,
            steps(w.k),
            0,
            w.bias,
            nullptr,
            0,
            y,
            y_stride,
            w.out,
            act,
            false};
}

// Makes g the product of a 3x3 convolution: rows of k inputs from g.x[0..2].
FASTSCNN_INLINE void three_rows(Gemm& g, int k, int64_t x_stride) {
    g.segments = 3;
    g.k = k;
    g.w_steps = 3 * steps(k);
    g.x_stride = x_stride;
}

FASTSCNN_INLINE void gemm(const Gemm& g, int pixels) {
    const Panels panels(g.channels);
    gemm(g, panels, 0, panels.count, pixels);
}

}  // namespace fastscnn::FASTSCNN_ISA
