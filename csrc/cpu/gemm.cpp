// The micro-kernel of every dense convolution.

#include "gemm.h"

namespace fastscnn::FASTSCNN_ISA {
namespace {

// Rounded inputs that are in work at a time.
[[maybe_unused]] constexpr int kBlockFloats = 6144;

FASTSCNN_INLINE Vec multiply_add(Vec sum, float a, Vec b) {
#if defined(__AVX512BF16__)
    const __m512 pairs = _mm512_set1_ps(a);
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)pairs, (__m512bh)b);
#else
    return sum + a * b;
#endif
}

// Every loop over the sums is unrolled: an index that is not a constant would put them in memory.
template <int R, int V, bool kPartial>
FASTSCNN_INLINE void gemm_tile(const Gemm& g, const float* w, int64_t pixel, int channel) {
    const int last = g.channels - channel - (V - 1) * kLanes;  // channels in the last vector
    Vec sum[R][V];
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) {
        const Vec start = g.bias ? load<Vec>(g.bias + channel + j * kLanes) : Vec{};
#pragma GCC unroll 12
        for (int i = 0; i < R; ++i) sum[i][j] = start;
    }
    if (g.add) {
        const float* from = g.add + pixel * g.add_stride + channel;
#pragma GCC unroll 12
        for (int i = 0; i < R; ++i, from += g.add_stride) {
#pragma GCC unroll 4
            for (int j = 0; j < V; ++j)
                sum[i][j] += kPartial && j == V - 1 ? load_first<Vec>(from + j * kLanes, last, 0.f)
                                                    : load<Vec>(from + j * kLanes);
        }
    }
    const int count = steps(g.k);
    for (int s = 0; s < g.segments; ++s) {
        const float* x = g.x[s] + pixel * g.x_stride;
        for (int k = 0; k < count; ++k, w += V * kLanes) {
            Vec b[V];
#pragma GCC unroll 4
            for (int j = 0; j < V; ++j) b[j] = load<Vec>(w + j * kLanes);
#pragma GCC unroll 12
            for (int i = 0; i < R; ++i) {
                const float a = x[i * g.x_stride + k];
#pragma GCC unroll 4
                for (int j = 0; j < V; ++j) sum[i][j] = multiply_add(sum[i][j], a, b[j]);
            }
        }
    }
    const Vec low = Vec{} + g.act.low, high = Vec{} + g.act.high;
    float* to = g.y + pixel * g.y_stride + channel;
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i, to += g.y_stride) {
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j) {
            const Vec v = min(high, max(low, sum[i][j]));
            if (kPartial && j == V - 1)
                store_first(to + j * kLanes, v, last);
            else
                store(to + j * kLanes, v);
        }
    }
}

template <int V, bool kPartial>
void gemm_panel(const Gemm& g, const float* w, int pixels, int channel) {
    constexpr int R = tile_pixels(V);
    int p = 0;
    for (; p + R <= pixels; p += R) gemm_tile<R, V, kPartial>(g, w, p, channel);
    if constexpr (R > 8)
        for (; p + 8 <= pixels; p += 8) gemm_tile<8, V, kPartial>(g, w, p, channel);
    for (; p + 4 <= pixels; p += 4) gemm_tile<4, V, kPartial>(g, w, p, channel);
    for (; p < pixels; ++p) gemm_tile<1, V, kPartial>(g, w, p, channel);
}

template <int V>
void gemm_panel(const Gemm& g, const float* w, int pixels, int channel) {
    const bool partial = channel + V * kLanes > g.channels;
    (partial ? gemm_panel<V, true> : gemm_panel<V, false>)(g, w, pixels, channel);
}

void run_panels(const Gemm& g, const Panels& panels, int first, int last, int pixels) {
    for (int i = first; i < last; ++i) {
        const int begin = panels.begin(i), vecs = panels.begin(i + 1) - begin;
        const float* w = g.w + (int64_t(begin) * g.w_steps + int64_t(g.k_begin / kStep) * vecs) * kLanes;
        switch (vecs) {
            case 1:
                gemm_panel<1>(g, w, pixels, begin * kLanes);
                break;
            case 2:
                gemm_panel<2>(g, w, pixels, begin * kLanes);
                break;
#if defined(__AVX512F__) || defined(__aarch64__)
            case 3:
                gemm_panel<3>(g, w, pixels, begin * kLanes);
                break;
            case 4:
                gemm_panel<4>(g, w, pixels, begin * kLanes);
                break;
#endif
        }
    }
}

#if defined(__AVX512BF16__)
// Rounds the inputs of some pixels to bfloat16, zeros behind an odd k.
void round_inputs(const Gemm& g, int64_t pixel, int pixels, float* to) {
    for (int p = 0; p < pixels; ++p) {
        for (int s = 0; s < g.segments; ++s, to += steps(g.k)) {
            const float* x = g.x[s] + (pixel + p) * g.x_stride;
            for (int k = 0; k < g.k; k += 2 * kLanes) {
                const int n = g.k - k < 2 * kLanes ? g.k - k : 2 * kLanes;
                const uint32_t some = n == 32 ? ~0u : (1u << n) - 1;
                const __m512 a = _mm512_maskz_loadu_ps(__mmask16(some), x + k);
                const __m512 b = _mm512_maskz_loadu_ps(__mmask16(some >> 16), x + k + kLanes);
                _mm512_mask_storeu_ps(to + k / 2, __mmask16((1u << (n + 1) / 2) - 1),
                                      (__m512)_mm512_cvtne2ps_pbh(b, a));
            }
        }
    }
}
#endif

}  // namespace

void gemm(const Gemm& g, const Panels& panels, int first, int last, int pixels) {
#if defined(__AVX512BF16__)
    if (!g.in_steps) {  // in blocks that stay in L1 while all panels read them
        const int pitch = g.segments * steps(g.k);
        const int most = kBlockFloats / pitch > kRun ? kRun : kBlockFloats / pitch + 1;
        float* rounded = static_cast<float*>(__builtin_alloca(sizeof(float) * most * pitch));
        for (int p = 0; p < pixels; p += most) {
            const int n = pixels - p < most ? pixels - p : most;
            round_inputs(g, p, n, rounded);
            Gemm block = g;
            for (int s = 0; s < g.segments; ++s) block.x[s] = rounded + s * steps(g.k);
            block.x_stride = pitch;
            block.in_steps = true;
            block.y += p * g.y_stride;
            if (g.add) block.add += p * g.add_stride;
            run_panels(block, panels, first, last, n);
        }
        return;
    }
#endif
    run_panels(g, panels, first, last, pixels);
}

}  // namespace fastscnn::FASTSCNN_ISA
