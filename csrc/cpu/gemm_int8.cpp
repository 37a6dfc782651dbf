// The micro-kernels of the int8 blocks.

#include "gemm_int8.h"

namespace fastscnn::FASTSCNN_ISA {
namespace {

// What becomes of the sums of a tile.
enum class To { kBytes, kFloats, kSomeFloats };  // the last: not all channels of the last vector

template <int R, int V, To kTo>
FASTSCNN_INLINE void tile(const GemmInt8& g, const int8_t* w, int64_t pixel, int channel) {
    Int16 sum[R][V];
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) {
        const Int16 start = load_as<Int16>(g.w.start + channel + j * kSums);
#pragma GCC unroll 12
        for (int i = 0; i < R; ++i) sum[i][j] = start;
    }
    const uint8_t* x = g.x + pixel * g.x_stride;
    for (int k = 0; k < g.w.k; k += 4, w += V * 4 * kSums) {
        Int16 b[V];
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j) b[j] = load_as<Int16>(w + j * 4 * kSums);
#pragma GCC unroll 12
        for (int i = 0; i < R; ++i) {
            const Int16 a = splat4(x + i * g.x_stride + k);
#pragma GCC unroll 4
            for (int j = 0; j < V; ++j) sum[i][j] = dot4(sum[i][j], a, b[j]);
        }
    }
    if constexpr (kTo == To::kBytes) {
        for (int i = 0; i < R; ++i)
            store_bytes(g.bytes + (pixel + i) * g.bytes_stride + channel, sum[i],
                        g.w.scale + channel);
        return;
    }
    const int last = g.w.out - channel - (V - 1) * kSums;  // channels in the last vector
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) {
        const bool some = kTo == To::kSomeFloats && j == V - 1;
        const int c = channel + j * kSums;
        const Float16 scale = load_as<Float16>(g.w.scale + c),
                      bias = load_as<Float16>(g.w.bias + c);
#pragma GCC unroll 12
        for (int i = 0; i < R; ++i) {
            const int64_t at = (pixel + i) * g.y_stride + c;
            Float16 v = to_floats(sum[i][j]) * scale + bias;
            if (g.add)
                v += some ? load_first<Float16>(g.add + at, last, 0.f)
                          : load_as<Float16>(g.add + at);
            if (some)
                store_first(g.y + at, v, last);
            else
                store(g.y + at, v);
        }
    }
}

template <int V, To kTo>
void panel(const GemmInt8& g, const int8_t* w, int pixels, int channel) {
#if defined(__AVX512F__)
    constexpr int R = V == 4 ? 6 : V == 3 ? 8 : 12;
#else
    constexpr int R = 1;  // sums fill the registers
#endif
    int p = 0;
    for (; p + R <= pixels; p += R) tile<R, V, kTo>(g, w, p, channel);
    if constexpr (R > 4)
        for (; p + 4 <= pixels; p += 4) tile<4, V, kTo>(g, w, p, channel);
    for (; p < pixels; ++p) tile<1, V, kTo>(g, w, p, channel);
}

template <int V>
void panel(const GemmInt8& g, const int8_t* w, int pixels, int channel) {
    const bool some = channel + V * kSums > g.w.out;
    (some ? panel<V, To::kSomeFloats> : panel<V, To::kFloats>)(g, w, pixels, channel);
}

FASTSCNN_INLINE void column(const DepthwiseRowInt8& d, int x, int c, Int16 to[4]) {
    if (x >= 0 && x < d.width)
        interleave(d.row[0] + x * d.x_stride[0] + c, d.row[1] + x * d.x_stride[1] + c,
                   d.row[2] + x * d.x_stride[2] + c, to);
    else
        interleave(d.outside + c, d.outside + c, d.outside + c, to);
}

// A block of channels of a row. Columns of taps overlap: kStride new ones for each output pixel,
// where outputs are taken a dilation apart.
template <int kStride>
void block(const DepthwiseRowInt8& d, int begin, int end, int c) {
    const int apart = kStride == 1 ? d.dilation : 1;
    Int16 w[3][4], in[3][4];
    for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 4; ++j)
            w[i][j] = load_as<Int16>(d.taps.data + 12 * int64_t(c) + (4 * i + j) * 4 * kSums);
    for (int phase = begin; phase < begin + apart && phase < end; ++phase) {
        for (int i = kStride; i < 3; ++i)
            column(d, phase * kStride + (i - 1 - kStride) * d.dilation, c, in[i]);
        for (int x = phase; x < end; x += apart) {
            Int16 sum[4];
#pragma GCC unroll 3
            for (int i = 0; i < 3; ++i) {
                if (i + kStride < 3) {
                    for (int j = 0; j < 4; ++j) in[i][j] = in[i + kStride][j];
                } else {
                    column(d, x * kStride + (i - 1) * d.dilation, c, in[i]);
                }
            }
            for (int j = 0; j < 4; ++j) {
                sum[j] = load_as<Int16>(d.taps.start + c + j * kSums);
                for (int i = 0; i < 3; ++i) sum[j] = dot4(sum[j], in[i][j], w[i][j]);
            }
            store_bytes(d.y + (x - begin) * d.y_stride + c, sum, d.taps.scale + c);
        }
    }
}

}  // namespace

void gemm_int8(const GemmInt8& g, int pixels) {
    const int vecs = round_up(g.w.out, kSums) / kSums, groups = (g.w.k + 3) / 4;
    if (!g.y) {
        for (int c = 0; c < g.w.out; c += kBlock)
            panel<4, To::kBytes>(g, g.w.data + 4 * int64_t(c) * groups, pixels, c);
        return;
    }
    const int panels = (vecs + 3) / 4;
    for (int i = 0; i < panels; ++i) {
        const int first = vecs * i / panels, channel = first * kSums;
        const int8_t* w = g.w.data + 4 * int64_t(channel) * groups;
        switch (vecs * (i + 1) / panels - first) {
            case 1:
                panel<1>(g, w, pixels, channel);
                break;
            case 2:
                panel<2>(g, w, pixels, channel);
                break;
            case 3:
                panel<3>(g, w, pixels, channel);
                break;
            case 4:
                panel<4>(g, w, pixels, channel);
                break;
        }
    }
}

void depthwise_row_int8(const DepthwiseRowInt8& d, int begin, int end) {
    for (int c = 0; c < d.taps.channels; c += kBlock)
        (d.stride == 2 ? block<2> : block<1>)(d, begin, end, c);
}

}  // namespace fastscnn::FASTSCNN_ISA
