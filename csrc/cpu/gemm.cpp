// The micro-kernel of every dense convolution.

#include "gemm.h"

namespace fastscnn::FASTSCNN_ISA {
namespace {

template <int R, int V>
FASTSCNN_INLINE void gemm_tile(const Gemm& g, const float* w, int64_t pixel, int channel) {
    const bool partial = channel + V * kLanes > g.channels;
    const int last = g.channels - channel - (V - 1) * kLanes;  // channels in the last vector
    Vec sum[R][V];
    for (int j = 0; j < V; ++j) {
        const Vec start = g.bias ? load<Vec>(g.bias + channel + j * kLanes) : Vec{};
        for (int i = 0; i < R; ++i) sum[i][j] = start;
    }
    if (g.add) {
        for (int i = 0; i < R; ++i) {
            const float* from = g.add + (pixel + i) * g.add_stride + channel;
            for (int j = 0; j < V; ++j)
                sum[i][j] += partial && j == V - 1 ? load_first<Vec>(from + j * kLanes, last, 0.f)
                                                   : load<Vec>(from + j * kLanes);
        }
    }
    for (int s = 0; s < g.segments; ++s) {
        const float* x = g.x[s] + pixel * g.x_stride;
        for (int k = 0; k < g.k; ++k, w += V * kLanes) {
            Vec b[V];
#pragma GCC unroll 4
            for (int j = 0; j < V; ++j) b[j] = load<Vec>(w + j * kLanes);
#pragma GCC unroll 12
            for (int i = 0; i < R; ++i) {
                const float a = x[i * g.x_stride + k];
#pragma GCC unroll 4
                for (int j = 0; j < V; ++j) sum[i][j] += a * b[j];
            }
        }
    }
    for (int i = 0; i < R; ++i) {
        float* to = g.y + (pixel + i) * g.y_stride + channel;
        for (int j = 0; j < V; ++j) {
            const Vec v = min(Vec{} + g.act.high, max(Vec{} + g.act.low, sum[i][j]));
            if (partial && j == V - 1)
                store_first(to + j * kLanes, v, last);
            else
                store(to + j * kLanes, v);
        }
    }
}

template <int V>
void gemm_panel(const Gemm& g, const float* w, int pixels, int channel) {
    constexpr int R = tile_pixels(V);
    int p = 0;
    for (; p + R <= pixels; p += R) gemm_tile<R, V>(g, w, p, channel);
    if constexpr (R > 8)
        for (; p + 8 <= pixels; p += 8) gemm_tile<8, V>(g, w, p, channel);
    for (; p + 4 <= pixels; p += 4) gemm_tile<4, V>(g, w, p, channel);
    for (; p < pixels; ++p) gemm_tile<1, V>(g, w, p, channel);
}

}  // namespace

void gemm(const Gemm& g, const Panels& panels, int first, int last, int pixels) {
    for (int i = first; i < last; ++i) {
        const int begin = panels.begin(i), vecs = panels.begin(i + 1) - begin;
        const float* w = g.w + (int64_t(begin) * g.w_k + int64_t(g.k_begin) * vecs) * kLanes;
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

}  // namespace fastscnn::FASTSCNN_ISA
