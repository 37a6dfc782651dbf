// The inner loops of every depthwise convolution.

#include "depthwise.h"

namespace fastscnn::FASTSCNN_ISA {
namespace {

// n channels of a pixel: all lanes, or the first ones.
template <bool kPartial>
FASTSCNN_INLINE Vec get(const float* p, int n) {
    return kPartial ? load_first<Vec>(p, n, 0.f) : load<Vec>(p);
}

template <bool kPartial, bool kInSteps>
FASTSCNN_INLINE void put(float* p, Vec low, Vec high, Vec sum, int n) {
    const Vec v = min(high, max(low, sum));
#if defined(__AVX512BF16__)
    if constexpr (kInSteps) {
        const __m256bh rounded = _mm512_cvtneps_pbh((__m512)v);
        std::memcpy(p, &rounded, sizeof rounded);
        return;
    }
#endif
    if (kPartial)
        store_first(p, v, n);
    else
        store(p, v);
}

// One vector of channels of a row: its nine weights stay in registers.
template <int kStride, bool kPartial, bool kInSteps>
struct Channels {
    const float* row[3];                // at the first channel
    int64_t step[3], apart[3], across;  // floats between columns, taps and output pixels
    int dilation, width, n;             // n: channels, where not all lanes
    Vec w[9], bias, low, high;

    FASTSCNN_INLINE Channels(const DepthwiseRow& d, int c, int n)
        : across(d.y_stride), dilation(d.dilation), width(d.width), n(n) {
        for (int ky = 0; ky < 3; ++ky) {
            row[ky] = d.row[ky] + c;
            step[ky] = d.x_stride[ky];
            apart[ky] = d.x_stride[ky] * d.dilation;
        }
#pragma GCC unroll 9
        for (int i = 0; i < 9; ++i) w[i] = load<Vec>(d.w + i * d.w_pitch + c);
        bias = load<Vec>(d.bias + c);
        low = Vec{} + d.act.low;
        high = Vec{} + d.act.high;
    }

    // R output pixels, all taps inside the row. They lie a dilation apart, so that their taps
    // overlap: 4 pixels of stride 1 take 18 loads for 36 multiply-adds.
    template <int R>
    FASTSCNN_INLINE void pixels(int column, float* y) const {
        Vec sum[R];
#pragma GCC unroll 4
        for (int i = 0; i < R; ++i) sum[i] = bias;
#pragma GCC unroll 3
        for (int ky = 0; ky < 3; ++ky) {
            const float* x = row[ky] + column * kStride * step[ky] - apart[ky];
constexpr int kColumns = (R - 1) * kStride + 3;
            Vec in[kColumns];
#pragma GCC unroll 9
            for (int j = 0; j < kColumns; ++j, x += apart[ky])
                in[j] = in_register(get<kPartial>(x, n));
#pragma GCC unroll 3
            for (int kx = 0; kx < 3; ++kx)
#pragma GCC unroll 4
                for (int i = 0; i < R; ++i) sum[i] += in[i * kStride + kx] * w[3 * ky + kx];
        }
#pragma GCC unroll 4
        for (int i = 0; i < R; ++i, y += dilation * across) put<kPartial, kInSteps>(y, low, high, sum[i], n);
    }

    // One pixel some of whose taps lie outside the row.
    FASTSCNN_INLINE void edge(int column, float* y) const {
        Vec sum = bias;
        for (int ky = 0; ky < 3; ++ky) {
            for (int kx = 0; kx < 3; ++kx) {
                const int x = column * kStride + (kx - 1) * dilation;
                if (x >= 0 && x < width)
                    sum += get<kPartial>(row[ky] + x * step[ky], n) * w[3 * ky + kx];
            }
        }
        put<kPartial, kInSteps>(y, low, high, sum, n);
    }
};

// Columns inner_begin .. inner_end - 1 have all taps inside.
template <int kStride, bool kPartial, bool kInSteps>
void channels(const DepthwiseRow& d, int begin, int end, int inner_begin, int inner_end, int c,
              int n) {
    const Channels<kStride, kPartial, kInSteps> channels(d, c, n);
    const int dilation = d.dilation;
    float* y = d.y + (kInSteps ? c / kStep : c) - begin * d.y_stride;
    const int64_t across = d.y_stride;
    int x = begin;
    for (; x < inner_begin; ++x) channels.edge(x, y + x * across);
    for (; x + 4 * dilation <= inner_end; x += 4 * dilation)
        for (int phase = x; phase < x + dilation; ++phase)
            channels.template pixels<4>(phase, y + phase * across);
    for (; x < inner_end; ++x) channels.template pixels<1>(x, y + x * across);
    for (; x < end; ++x) channels.edge(x, y + x * across);
}

template <int kStride, bool kInSteps>
void row(const DepthwiseRow& d, int begin, int end) {
    const auto clamp = [&](int x) { return x < begin ? begin : x > end ? end : x; };
    const int inner_begin = clamp((d.dilation + kStride - 1) / kStride);
    const int after = d.width > d.dilation ? (d.width - 1 - d.dilation) / kStride + 1 : 0;
    const int inner_end = after > inner_begin ? clamp(after) : inner_begin;
    int c = 0;
    for (; c + kLanes <= d.channels; c += kLanes)
        channels<kStride, false, kInSteps>(d, begin, end, inner_begin, inner_end, c, kLanes);
    if (c < d.channels)
        channels<kStride, true, kInSteps>(d, begin, end, inner_begin, inner_end, c, d.channels - c);
}

}  // namespace

void depthwise_row(const DepthwiseRow& d, int begin, int end) {
    if (kStep > 1 && d.in_steps)
        (d.stride == 2 ? row<2, true> : row<1, true>)(d, begin, end);
    else
        (d.stride == 2 ? row<2, false> : row<1, false>)(d, begin, end);
}

}  // namespace fastscnn::FASTSCNN_ISA
