// Bilinear -> dilated depthwise 3x3 -> ReLU -> 1x1 of the low branch, plus the 1x1 of the high
// branch -> ReLU; the upsampled map never exists.
//
// A block owns 8 x 16 output pixels and 128 outputs. Chunks of the low branch become the GEMM's A
// in shared memory, by one of two ways:
//   commuted  at scale 4, half-pixel, dilation 4 the depthwise of the upsampled map is the
//             upsampled depthwise of the low map where no tap leaves the map and no sample is
//             clamped: all but a frame of 6 pixels. 4 x 6 depthwise sums serve the tile.
//   sampled   everywhere else: the tile with its halo is upsampled into shared memory and convolved
// 4 x 2 warps multiply, 32 pixels x 64 outputs each; the high branch follows as more chunks.
// Weights come in the order of fragments, from L2 once per block.
// Bound by tensor cores and L2: 2 (cl + ch) o flops per pixel, weights of every block.
#pragma once

#include "common.cuh"
#include "kernels.h"

namespace fastscnn {

struct FeatureFusionLayout {
    static constexpr int kThreads = 256, kTileH = 8, kTileW = 16, kPixels = kTileH * kTileW;
    static constexpr int kOut = 128, kOutRow = kOut + kPad;     // words
    static constexpr int kWide = 64, kWideRow = kWide + kPad;   // channels of a chunk, commuted
    static constexpr int kRow = kChunk + kPad;                  // of a pixel sampled
    static constexpr int kScale = 4, kFrame = 6;
    // Commuted: depthwise sums around the tile and the low pixels that they need.
    static constexpr int kSumsH = kTileH / kScale + 2, kSumsW = kTileW / kScale + 2;
    static constexpr int kLowH = kSumsH + 2, kLowW = kSumsW + 2, kLow = kLowH * kLowW;
    static constexpr int kSumsRow = kWide + 4;  // floats
    static constexpr int kStrip = 3, kRun = 8;
    static constexpr int kTilesM = 2, kTilesN = 8;  // of a warp

    __host__ __device__ static constexpr int halo_h(int dilation) { return kTileH + 2 * dilation; }
    __host__ __device__ static constexpr int halo_w(int dilation) { return kTileW + 2 * dilation; }
    // Byte offsets. The sampled tile lies over all of the commuted way.
    static constexpr int kA = 0, kLowTile = kA + kPixels * kWideRow * 2, kSampled = kLowTile;
    static constexpr int kSums = kLowTile + kLow * kWideRow * 2;
    static constexpr int kHigh = kSums + kSumsH * kSumsW * kSumsRow * 4;
    static constexpr int kFixed = kHigh + kPixels * kWideRow * 2;
    __host__ __device__ static constexpr int axis_at(int dilation) {
        const int end = kSampled + halo_h(dilation) * halo_w(dilation) * kRow * 2;
        return end > kFixed ? end : kFixed;
    }
    __host__ __device__ static constexpr int taps_at(int dilation) {
        return axis_at(dilation) + round_up((halo_h(dilation) + halo_w(dilation)) * 8, 16);
    }
    __host__ __device__ static constexpr int bytes(int dilation, int cl) {
        return taps_at(dilation) + 9 * round_up(cl, kWide) * 2;
    }

    static_assert(kPixels * kOutRow * 2 <= kFixed, "results fit over what is done");
    static_assert(kSumsW % kStrip == 0 && kTileH * kTileW / kRun * (kWide / 4) == kThreads);
    static_assert(kTilesM * 16 * 4 == kPixels && kTilesN * 8 * 2 == kOut);
    static_assert(kSums % 16 == 0 && kHigh % 16 == 0 && kFixed % 16 == 0);
};

// The way of a row of upsampled pixels: lerps between two rows of the low map, one per column, of
// which neighbours are kept.
template <class T>
struct SampledRow {
    const uint16_t* row[2];  // this thread's four channels of column 0, above and below
    float weight;            // of the row below
    int pitch, last;         // words from column to column, the last column
    int have = -2;
    float left[4], right[4];

    __device__ __forceinline__ void blend(float (&v)[4], int x) const {
        float a[4], b[4];
        unpack4<T>(a, load_global<uint2>(row[0] + x * pitch));
        unpack4<T>(b, load_global<uint2>(row[1] + x * pitch));
#pragma unroll
        for (int c = 0; c < 4; ++c) v[c] = fmaf(weight, b[c] - a[c], a[c]);
    }
    __device__ __forceinline__ void sample(float (&v)[4], float2 at) {
        const int x = static_cast<int>(at.x);
        if (x != have) {
            if (x == have + 1) {
#pragma unroll
                for (int c = 0; c < 4; ++c) left[c] = right[c];
            } else {
                blend(left, x);
            }
            blend(right, min(x + 1, last));
            have = x;
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) v[c] = fmaf(at.y, right[c] - left[c], left[c]);
    }
};

template <class T>
__global__ void __launch_bounds__(FeatureFusionLayout::kThreads, 2)
    feature_fusion_kernel(FeatureFusionParams p) {
    if (!has_tensor_cores<T>()) return;
    using L = FeatureFusionLayout;
    char* shared = shared_memory();
    auto words = [&](int at) { return reinterpret_cast<uint16_t*>(shared + at); };
    uint16_t* const a = words(L::kA);
    uint16_t* const high = words(L::kHigh);
    uint16_t* const taps = words(L::taps_at(p.dilation));
    float2* const axis = reinterpret_cast<float2*>(shared + L::axis_at(p.dilation));

    const int tid = threadIdx.x, warp = tid / kWarpSize, lane = tid % kWarpSize;
    const int tiles_x = ceil_div(p.w, L::kTileW);
    const int y0 = blockIdx.x / tiles_x * L::kTileH, x0 = blockIdx.x % tiles_x * L::kTileW;
    const int o0 = blockIdx.y * L::kOut;
    const int cl_stride = round_up(p.cl, L::kWide), ch_stride = round_up(p.ch, L::kWide);
    const uint16_t* const low = p.low + static_cast<int64_t>(blockIdx.z) * p.lh * p.lw * p.cl;
    const bool commuted = p.depthwise && p.dilation == L::kScale && !p.align_corners &&
                          p.h == L::kScale * p.lh && p.w == L::kScale * p.lw &&
                          y0 >= L::kFrame && y0 + L::kTileH + L::kFrame <= p.h &&
                          x0 >= L::kFrame && x0 + L::kTileW + L::kFrame <= p.w;

    auto load_high = [&](int c0) {
        const uint16_t* const map = p.high + static_cast<int64_t>(blockIdx.z) * p.h * p.w * p.ch;
#pragma unroll 1
        for (int i = tid; i < L::kPixels * (L::kWide / kVector); i += L::kThreads) {
            const int pixel = i / (L::kWide / kVector), v = i % (L::kWide / kVector) * kVector;
            const int y = y0 + pixel / L::kTileW, x = x0 + pixel % L::kTileW;
            uint16_t* const to = high + pixel * L::kWideRow + v;
            if (y < p.h && x < p.w && c0 + v < p.ch)
                copy_async(to, map + static_cast<int64_t>(y * p.w + x) * p.ch + c0 + v);
            else
                store_shared(to, make_uint4(0, 0, 0, 0));
        }
    };
    auto load_low = [&](int c0) {
#pragma unroll 1
        for (int i = tid; i < L::kLow * (L::kWide / kVector); i += L::kThreads) {
            const int pixel = i / (L::kWide / kVector), v = i % (L::kWide / kVector) * kVector;
            const int y = y0 / L::kScale - 2 + pixel / L::kLowW;
            const int x = x0 / L::kScale - 2 + pixel % L::kLowW;
            uint16_t* const to = words(L::kLowTile) + pixel * L::kWideRow + v;
            if (c0 + v < p.cl)
                copy_async(to, low + (y * p.lw + x) * p.cl + c0 + v);
            else
                store_shared(to, make_uint4(0, 0, 0, 0));
        }
    };

    // This warp's part of the product.
    const int m0 = warp % 4 * 32, n0 = warp / 4 * (L::kOut / 2);
    float acc[L::kTilesM][L::kTilesN][4];
    set_zero(acc);
    auto multiply = [&](const uint16_t* tile, const uint16_t* weight, int c0, int steps) {
        const int step = p.o_stride / 16 * kWarpSize;
        const uint16_t* const mine = tile + (m0 + lane % 16) * L::kWideRow + lane / 16 * 8;
        const uint16_t* const rows[2] = {mine, mine + 16 * L::kWideRow};
        multiply_fragments<T>(acc, rows,
                              reinterpret_cast<const uint4*>(weight) + c0 / 16 * step +
                                  (o0 + n0) / 16 * kWarpSize + lane,
                              step, steps);
    };

    if (p.depthwise)
        for (int i = tid; i < 9 * cl_stride / kVector; i += L::kThreads)
            copy_async(taps + i * kVector, p.depthwise + i * kVector);
    const Bounds relu{0.f, INFINITY};
    if (commuted) {
        load_high(0);
        load_low(0);
        commit_copies();
        float* const sums = reinterpret_cast<float*>(shared + L::kSums);
        const int channel = tid % (L::kWide / 4) * 4, unit = tid / (L::kWide / 4);
#pragma unroll 1
        for (int c0 = 0; c0 < cl_stride; c0 += L::kWide) {
            wait_copies<0>();
            __syncthreads();  // the low tile is here; everyone has multiplied the previous chunk
            if (unit < L::kSumsH * L::kSumsW / L::kStrip) {
                const int y = unit / (L::kSumsW / L::kStrip);
                const int x = unit % (L::kSumsW / L::kStrip) * L::kStrip;
                const float4 bias = load_global<float4>(p.depthwise_bias + c0 + channel);
                float sum[L::kStrip][4];
#pragma unroll
                for (int t = 0; t < L::kStrip; ++t)
                    sum[t][0] = bias.x, sum[t][1] = bias.y, sum[t][2] = bias.z, sum[t][3] = bias.w;
                add_depthwise<T, 1>(
                    sum, words(L::kLowTile) + (y * L::kLowW + x) * L::kWideRow + channel,
                    L::kLowW * L::kWideRow, L::kWideRow, taps + c0 + channel, cl_stride);
#pragma unroll
                for (int t = 0; t < L::kStrip; ++t)
                    store_shared(sums + (y * L::kSumsW + x + t) * L::kSumsRow + channel,
                                 make_float4(sum[t][0], sum[t][1], sum[t][2], sum[t][3]));
            }
            __syncthreads();  // the sums are complete, the low tile is free
            if (c0 + L::kWide < cl_stride) load_low(c0 + L::kWide);
            commit_copies();

            // Eight pixels of a row lie between four sums: the first two left of the second.
            const int y = unit % L::kTileH, x = unit / L::kTileH * L::kRun;
            const float fy = ((y + 2) % L::kScale + 0.5f) / L::kScale;
            const float* from = sums + channel +
                                ((y + 2) / L::kScale * L::kSumsW + x / L::kScale) * L::kSumsRow;
            float column[4][4];
#pragma unroll
            for (int i = 0; i < 4; ++i, from += L::kSumsRow) {
                const float4 u = load_shared<float4>(from);
                const float4 v = load_shared<float4>(from + L::kSumsW * L::kSumsRow);
                column[i][0] = fmaf(fy, v.x - u.x, u.x), column[i][1] = fmaf(fy, v.y - u.y, u.y);
                column[i][2] = fmaf(fy, v.z - u.z, u.z), column[i][3] = fmaf(fy, v.w - u.w, u.w);
            }
#pragma unroll
            for (int t = 0; t < L::kRun; ++t) {
                const int i = (t + 2) / L::kScale;
                const float fx = ((t + 2) % L::kScale + 0.5f) / L::kScale;
                float v[4];
#pragma unroll
                for (int c = 0; c < 4; ++c)
                    v[c] = larger(fmaf(fx, column[i + 1][c] - column[i][c], column[i][c]), 0.f);
                store_shared(a + (y * L::kTileW + x + t) * L::kWideRow + channel,
                             make_uint2(pack<T>(v[0], v[1]), pack<T>(v[2], v[3])));
            }
            __syncthreads();  // A is complete
            multiply(a, p.low_weight, c0, L::kWide / 16);
        }
    } else {
        const int d = p.dilation, halo_h = L::halo_h(d), halo_w = L::halo_w(d);
        commit_copies();
        for (int i = tid; i < halo_h + halo_w; i += L::kThreads) {
            const bool is_row = i < halo_h;
            const int at = is_row ? y0 - d + i : x0 - d + i - halo_h, out = is_row ? p.h : p.w;
            store_shared(axis + i, axis_sample(min(max(at, 0), out - 1), is_row ? p.lh : p.lw, out,
                                               p.align_corners));
        }
        uint16_t* const sampled = words(L::kSampled);
        const int channel = tid % (kChunk / 4) * 4, unit = tid / (kChunk / 4);
#pragma unroll 1
        for (int c0 = 0; c0 < round_up(p.cl, kChunk); c0 += kChunk) {
            wait_copies<0>();
            __syncthreads();  // taps and axes are here; everyone has multiplied the previous chunk
            // Half a row of the tile and its halo at a time.
            const int columns = halo_w / 2;
#pragma unroll 1
            for (int i = unit; i < 2 * halo_h; i += L::kThreads / (kChunk / 4)) {
                const int row = i / 2, first = i % 2 * columns, y = y0 - d + row;
                const bool known = y >= 0 && y < p.h && c0 + channel < p.cl;
                const float2 at = load_shared<float2>(axis + row);
                const int above = static_cast<int>(at.x), below = min(above + 1, p.lh - 1);
                SampledRow<T> samples;
                samples.row[0] = low + above * p.lw * p.cl + c0 + channel;
                samples.row[1] = low + below * p.lw * p.cl + c0 + channel;
                samples.weight = at.y, samples.pitch = p.cl, samples.last = p.lw - 1;
#pragma unroll 1
                for (int j = first; j < first + columns; ++j) {
                    const int x = x0 - d + j;
                    float v[4] = {0.f, 0.f, 0.f, 0.f};
                    if (known && x >= 0 && x < p.w)
                        samples.sample(v, load_shared<float2>(axis + halo_h + j));
                    if (p.depthwise)
                        store_shared(sampled + (row * halo_w + j) * L::kRow + channel,
                                     make_uint2(pack<T>(v[0], v[1]), pack<T>(v[2], v[3])));
                    else
                        store_shared(a + (row * L::kTileW + j) * L::kWideRow + channel,
                                     pack4<T>(v, relu));
                }
            }
            __syncthreads();  // the sampled tile is complete
            if (p.depthwise) {
                // Strips of 4 outputs of a row: `d` apart where they then share taps.
                const bool shares = d == 1 || d == 2 || d == 4;
                const int apart = shares ? d : 1, y = unit / 4, strip = unit % 4;
                const int x = strip / apart * 4 * apart + strip % apart;
                const float4 bias = load_global<float4>(p.depthwise_bias + c0 + channel);
                float sum[4][4];
#pragma unroll
                for (int t = 0; t < 4; ++t)
                    sum[t][0] = bias.x, sum[t][1] = bias.y, sum[t][2] = bias.z, sum[t][3] = bias.w;
                const uint16_t* const from = sampled + (y * halo_w + x) * L::kRow + channel;
                if (shares)
                    add_depthwise<T, 1>(sum, from, d * halo_w * L::kRow, d * L::kRow,
                                        taps + c0 + channel, cl_stride);
                if (!shares)  // apart: as an `else` it costs a spill on sm_80
                    add_any_depthwise<T>(sum, from, L::kRow, d * L::kRow, d * halo_w * L::kRow,
                                         taps + c0 + channel, cl_stride);
#pragma unroll
                for (int t = 0; t < 4; ++t)
                    store_shared(a + (y * L::kTileW + x + t * apart) * L::kWideRow + channel,
                                 pack4<T>(sum[t], relu));
                __syncthreads();  // A is complete, the sampled tile free
            }
            multiply(a, p.low_weight, c0, kChunk / 16);
        }
    }

    // The high branch; its tile lies where the sampled one did.
    for (int c0 = 0; c0 < ch_stride; c0 += L::kWide) {
        if (c0 > 0) __syncthreads();  // everyone has multiplied the previous chunk
        if (c0 > 0 || !commuted) load_high(c0);
        commit_copies();
        wait_copies<0>();
        __syncthreads();
        multiply(high, p.high_weight, c0, L::kWide / 16);
    }

    __syncthreads();  // all tiles are done with
    uint16_t* const stage = words(0);
    each_pair(acc, [&](int row, int column, float u, float v) {
        const float2 bias = load_global<float2>(p.bias + o0 + n0 + column);
        store_shared(stage + (m0 + row) * L::kOutRow + n0 + column,
                     pack<T>(larger(u + bias.x, 0.f), larger(v + bias.y, 0.f)));
    });
    __syncthreads();
    const int64_t pixels = static_cast<int64_t>(blockIdx.z) * p.h * p.w;  // of the images before
    for (int i = tid; i < L::kPixels * (L::kOut / kVector); i += L::kThreads) {
        const int pixel = i / (L::kOut / kVector), v = i % (L::kOut / kVector) * kVector;
        const int y = y0 + pixel / L::kTileW, x = x0 + pixel % L::kTileW;
        if (y < p.h && x < p.w && o0 + v < p.o)
            store_global(p.y + (pixels + y * p.w + x) * p.o + o0 + v,
                         load_shared<uint4>(stage + pixel * L::kOutRow + v));
    }
}

}  // namespace fastscnn
