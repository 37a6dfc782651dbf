// The inner loops of every depthwise convolution.

#include "depthwise.h"

namespace fastscnn::FASTSCNN_ISA {
namespace {

// n channels of a pixel: all lanes, or the first ones.
template <bool kPartial>
FASTSCNN_INLINE Vec get(const float* p, int n) {
    return kPartial ? load_first<Vec>(p, n, 0.f) : load<Vec>(p);
}

template <bool kPartial>
FASTSCNN_INLINE void put(const DepthwiseRow& d, float* p, Vec sum, int n) {
    const Vec v = min(Vec{} + d.act.high, max(Vec{} + d.act.low, sum));
    if (kPartial)
        store_first(p, v, n);
    else
        store(p, v);
}

// R neighbouring output pixels of one vector of channels, all taps inside the row. With kDense
// (dilation 1) taps overlap: 4 pixels of stride 1 take 18 loads for 36 multiply-adds.
template <int R, int kStride, bool kDense, bool kPartial>
FASTSCNN_INLINE void pixels(const DepthwiseRow& d, const Vec* w, Vec bias, int column, float* y,
                            int c, int n) {
    Vec sum[R];
    for (int i = 0; i < R; ++i) sum[i] = bias;
#pragma GCC unroll 3
    for (int ky = 0; ky < 3; ++ky) {
        const int64_t step = d.x_stride[ky];
        const float* x = d.row[ky] + (int64_t(column) * kStride - d.dilation) * step + c;
        if constexpr (kDense) {
#pragma GCC unroll 9
            for (int j = 0; j < (R - 1) * kStride + 3; ++j, x += step) {
                const Vec in = get<kPartial>(x, n);
#pragma GCC unroll 4
                for (int i = 0; i < R; ++i) {
                    const int kx = j - i * kStride;
                    if (kx >= 0 && kx < 3) sum[i] += in * w[3 * ky + kx];
                }
            }
        } else {
#pragma GCC unroll 3
            for (int kx = 0; kx < 3; ++kx, x += d.dilation * step) {
#pragma GCC unroll 4
                for (int i = 0; i < R; ++i)
                    sum[i] += get<kPartial>(x + i * kStride * step, n) * w[3 * ky + kx];
            }
        }
    }
    for (int i = 0; i < R; ++i) put<kPartial>(d, y + i * d.y_stride + c, sum[i], n);
}

// One pixel some of whose taps lie outside the row.
template <bool kPartial>
FASTSCNN_INLINE void edge(const DepthwiseRow& d, const Vec* w, Vec bias, int column, float* y,
                          int c, int n) {
    Vec sum = bias;
    for (int ky = 0; ky < 3; ++ky) {
        for (int kx = 0; kx < 3; ++kx) {
            const int x = column * d.stride + (kx - 1) * d.dilation;
            if (x >= 0 && x < d.width)
                sum += get<kPartial>(d.row[ky] + x * d.x_stride[ky] + c, n) * w[3 * ky + kx];
        }
    }
    put<kPartial>(d, y + c, sum, n);
}

// One vector of channels of a row: its nine weights stay in registers. Columns inner_begin ..
// inner_end - 1 have all taps inside.
template <int kStride, bool kDense, bool kPartial>
void channels(const DepthwiseRow& d, int begin, int end, int inner_begin, int inner_end, int c,
              int n) {
    Vec w[9];
    for (int i = 0; i < 9; ++i) w[i] = load<Vec>(d.w + i * d.w_pitch + c);
    const Vec bias = load<Vec>(d.bias + c);
    float* y = d.y;
    int x = begin;
    for (; x < inner_begin; ++x, y += d.y_stride) edge<kPartial>(d, w, bias, x, y, c, n);
    for (; x + 4 <= inner_end; x += 4, y += 4 * d.y_stride)
        pixels<4, kStride, kDense, kPartial>(d, w, bias, x, y, c, n);
    for (; x < inner_end; ++x, y += d.y_stride)
        pixels<1, kStride, kDense, kPartial>(d, w, bias, x, y, c, n);
    for (; x < end; ++x, y += d.y_stride) edge<kPartial>(d, w, bias, x, y, c, n);
}

template <int kStride, bool kDense>
void row(const DepthwiseRow& d, int begin, int end) {
    const auto clamp = [&](int x) { return x < begin ? begin : x > end ? end : x; };
    const int inner_begin = clamp((d.dilation + kStride - 1) / kStride);
    const int after = d.width > d.dilation ? (d.width - 1 - d.dilation) / kStride + 1 : 0;
    const int inner_end = after > inner_begin ? clamp(after) : inner_begin;
    int c = 0;
    for (; c + kLanes <= d.channels; c += kLanes)
        channels<kStride, kDense, false>(d, begin, end, inner_begin, inner_end, c, kLanes);
    if (c < d.channels)
        channels<kStride, kDense, true>(d, begin, end, inner_begin, inner_end, c, d.channels - c);
}

}  // namespace

void depthwise_row(const DepthwiseRow& d, int begin, int end) {
    if (d.stride == 2)
        (d.dilation == 1 ? row<2, true> : row<2, false>)(d, begin, end);
    else
        (d.dilation == 1 ? row<1, true> : row<1, false>)(d, begin, end);
}

}  // namespace fastscnn::FASTSCNN_ISA
