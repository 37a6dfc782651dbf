// The inner loops of every depthwise convolution.

#include "depthwise.h"

namespace fastscnn::FASTSCNN_ISA {
namespace {

// R neighbouring output pixels of one vector of channels (n < kLanes of them where kPartial), all
// taps inside the row. Bound by loads from L1: with kDense (dilation 1) a row's taps overlap, so
// that 4 pixels of stride 1 take 3 x (3 weights + 6 inputs) loads for 36 multiply-adds.
template <int R, int kStride, bool kDense, bool kPartial>
FASTSCNN_INLINE void depthwise_tile(const DepthwiseRow& d, int column, float* y, int c, int n) {
    Vec sum[R];
    for (int i = 0; i < R; ++i) sum[i] = load<Vec>(d.bias + c);
#pragma GCC unroll 3
    for (int ky = 0; ky < 3; ++ky) {
        const float* x = d.row[ky] + (int64_t(column) * kStride - d.dilation) * d.x_stride[ky] + c;
        Vec w[3];
        for (int kx = 0; kx < 3; ++kx) w[kx] = load<Vec>(d.w + (3 * ky + kx) * d.w_pitch + c);
        if constexpr (kDense) {
#pragma GCC unroll 9
            for (int j = 0; j < (R - 1) * kStride + 3; ++j, x += d.x_stride[ky]) {
                const Vec in = kPartial ? load_first<Vec>(x, n, 0.f) : load<Vec>(x);
#pragma GCC unroll 4
                for (int i = 0; i < R; ++i) {
                    const int kx = j - i * kStride;
                    if (kx >= 0 && kx < 3) sum[i] += in * w[kx];
                }
            }
        } else {
#pragma GCC unroll 3
            for (int kx = 0; kx < 3; ++kx, x += d.dilation * d.x_stride[ky]) {
#pragma GCC unroll 4
                for (int i = 0; i < R; ++i) {
                    const float* at = x + i * kStride * d.x_stride[ky];
                    sum[i] += (kPartial ? load_first<Vec>(at, n, 0.f) : load<Vec>(at)) * w[kx];
                }
            }
        }
    }
    for (int i = 0; i < R; ++i, y += d.y_stride) {
        const Vec v = min(Vec{} + d.act.high, max(Vec{} + d.act.low, sum[i]));
        if (kPartial)
            store_first(y + c, v, n);
        else
            store(y + c, v);
    }
}

template <int R, int kStride, bool kDense>
FASTSCNN_INLINE void depthwise_pixels(const DepthwiseRow& d, int column, float* y) {
    int c = 0;
    for (; c + kLanes <= d.channels; c += kLanes)
        depthwise_tile<R, kStride, kDense, false>(d, column, y, c, kLanes);
    if (c < d.channels) depthwise_tile<R, kStride, kDense, true>(d, column, y, c, d.channels - c);
}

// One pixel some of whose taps lie outside the row.
void depthwise_edge(const DepthwiseRow& d, int column, float* y) {
    for (int c = 0; c < d.channels; c += kLanes) {
        const int n = d.channels - c < kLanes ? d.channels - c : kLanes;
        Vec sum = load<Vec>(d.bias + c);
        for (int ky = 0; ky < 3; ++ky) {
            for (int kx = 0; kx < 3; ++kx) {
                const int x = column * d.stride + (kx - 1) * d.dilation;
                if (x < 0 || x >= d.width) continue;
                sum += load_first<Vec>(d.row[ky] + x * d.x_stride[ky] + c, n, 0.f) *
                       load<Vec>(d.w + (3 * ky + kx) * d.w_pitch + c);
            }
        }
        store_first(y + c, min(Vec{} + d.act.high, max(Vec{} + d.act.low, sum)), n);
    }
}

template <int kStride, bool kDense>
void depthwise_inside(const DepthwiseRow& d, int begin, int end, float* y) {
    int x = begin;
    for (; x + 4 <= end; x += 4, y += 4 * d.y_stride) depthwise_pixels<4, kStride, kDense>(d, x, y);
    for (; x < end; ++x, y += d.y_stride) depthwise_pixels<1, kStride, kDense>(d, x, y);
}

}  // namespace

void depthwise_row(const DepthwiseRow& d, int begin, int end) {
    const auto clamp = [&](int x) { return x < begin ? begin : x > end ? end : x; };
    const int safe_begin = clamp((d.dilation + d.stride - 1) / d.stride);
    const int safe_end = clamp(d.width > d.dilation ? (d.width - 1 - d.dilation) / d.stride + 1 : 0);
    const auto at = [&](int x) { return d.y + (x - begin) * d.y_stride; };
    if (safe_begin >= safe_end) {
        for (int x = begin; x < end; ++x) depthwise_edge(d, x, at(x));
        return;
    }
    for (int x = begin; x < safe_begin; ++x) depthwise_edge(d, x, at(x));
    if (d.stride == 2)
        (d.dilation == 1 ? depthwise_inside<2, true> : depthwise_inside<2, false>)(
            d, safe_begin, safe_end, at(safe_begin));
    else
        (d.dilation == 1 ? depthwise_inside<1, true> : depthwise_inside<1, false>)(
            d, safe_begin, safe_end, at(safe_begin));
    for (int x = safe_end; x < end; ++x) depthwise_edge(d, x, at(x));
}

}  // namespace fastscnn::FASTSCNN_ISA
