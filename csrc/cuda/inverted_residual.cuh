// Expand 1x1 -> depthwise 3x3 -> project 1x1 (+ x); the hidden tensor exists in shared memory only,
// 32 channels at a time.
//
// A block owns kTileH x 8 output pixels, all their output channels, and a share of the hidden
// channels (all of them where the map fills the GPU). The input tile with its halo stays in shared
// memory. Per chunk of hidden channels:
//   expand     warps take 16 halo pixels x 16 or 32 channels each         -> hidden
//   A ---- barrier: hidden complete
//   depthwise  a thread sums a strip of pixels x 4 channels               -> a
//   B ---- barrier: a complete, hidden free
//   project    warps multiply 16 pixels x a share of the output channels, sums in registers
// Copies are issued after A(c) and waited for before A(c + 1): expand[c + 2] goes where expand[c]
// was, project[c + 1] and taps[c + 1] where those of c - 1 were; all threads are done with both.
// Shares of a tile meet in `partial`; the last block to arrive adds them in fixed order.
// Bound by tensor cores and shared memory: 2 hidden (halo c + o) flops per output pixel, weights
// from L2 once per block.
#pragma once

#include "common.cuh"
#include "kernels.h"

namespace fastscnn {

template <int kTileHeight, int kStrideStep, int kOutputs>
struct InvertedResidualLayout {
    static constexpr int kTileH = kTileHeight, kTileW = 8, kStride = kStrideStep, kOut = kOutputs;
    static constexpr int kPixels = kTileH * kTileW;
    static constexpr int kHaloH = (kTileH - 1) * kStride + 3, kHaloW = (kTileW - 1) * kStride + 3;
    static constexpr int kHalo = kHaloH * kHaloW, kHaloTiles = (kHalo + 15) / 16;
    static constexpr int kWarps = kPixels == 64 || kStride == 2 ? 8 : 4;
    static constexpr int kThreads = kWarps * kWarpSize;
    static constexpr int kUnitTiles = kStride == 2 ? 2 : 4;  // n8 tiles of a warp's expansion
    static constexpr int kParts = kChunk / 8 / kUnitTiles, kUnits = kHaloTiles * kParts;
    static constexpr int kStrip = kPixels * (kChunk / 4) / kThreads;
    static constexpr int kWarpsM = kPixels / 16, kWarpsN = kWarps / kWarpsM;
    static constexpr int kTilesN = kOut / 8 / kWarpsN;
    static constexpr int kRow = kChunk + kPad, kOutRow = kOut + kPad;  // words

    // Byte offsets; what depends on the input's channels comes last.
    static constexpr int kHidden = 0, kA = kHidden + kHaloTiles * 16 * kRow * 2;
    static constexpr int kTaps = kA + kPixels * kRow * 2, kProject = kTaps + 2 * 9 * kChunk * 2;
    static constexpr int kFlag = kProject + 2 * kChunk * kOutRow * 2, kExpand = kFlag + 16;
    static constexpr int kStage = kProject;  // results over the weights, when those are done
    __host__ __device__ static constexpr int x_at(int c) { return kExpand + 2 * c * kRow * 2; }
    __host__ __device__ static constexpr int bytes(int c) {
        return x_at(c) + kHaloTiles * 16 * (c + kPad) * 2;
    }

    static_assert(kStrip >= 1 && kTileW % kStrip == 0 && kThreads * kStrip == kPixels * 8);
    static_assert(kWarpsM * kWarpsN == kWarps && kTilesN * 8 * kWarpsN == kOut);
    static_assert(kPixels <= 2 * kChunk, "results fit over the weights");
    static_assert(kA % 16 == 0 && kTaps % 16 == 0 && kProject % 16 == 0 && kExpand % 16 == 0);
};

template <class T, class L>
__global__ void __launch_bounds__(L::kThreads) inverted_residual_kernel(InvertedResidualParams p) {
    if (!has_tensor_cores<T>()) return;
    const int cin = round_up(p.c, 16), x_row = cin + kPad;
    char* shared = shared_memory();
    auto words = [&](int at) { return reinterpret_cast<uint16_t*>(shared + at); };
    uint16_t* const hidden = words(L::kHidden);
    uint16_t* const a = words(L::kA);
    uint16_t* const x_tile = words(L::x_at(cin));
    auto taps = [&](int i) { return words(L::kTaps) + i % 2 * 9 * kChunk; };
    auto project = [&](int i) { return words(L::kProject) + i % 2 * kChunk * L::kOutRow; };
    auto expand = [&](int i) { return words(L::kExpand) + i % 2 * cin * L::kRow; };

    const int tid = threadIdx.x, warp = tid / kWarpSize;
    const int tiles_x = ceil_div(p.ow, L::kTileW);
    const int oy0 = blockIdx.x / tiles_x * L::kTileH, ox0 = blockIdx.x % tiles_x * L::kTileW;
    const int iy0 = oy0 * L::kStride - 1, ix0 = ox0 * L::kStride - 1;
    const int chunks = p.hidden_stride / kChunk;
    const int begin = blockIdx.y * chunks / p.split, end = (blockIdx.y + 1) * chunks / p.split;
    const int64_t image = blockIdx.z;

    auto in_image = [&](int pixel) {
        const int y = iy0 + pixel / L::kHaloW, x = ix0 + pixel % L::kHaloW;
        return pixel < L::kHalo && static_cast<unsigned>(y) < static_cast<unsigned>(p.h) &&
               static_cast<unsigned>(x) < static_cast<unsigned>(p.w);
    };
    constexpr int kVectors = kChunk / kVector;
    auto load_expand = [&](int chunk) {
        if (chunk >= end) return;
#pragma unroll 2
        for (int i = tid; i < cin * kVectors; i += L::kThreads) {
            const int row = i / kVectors, v = i % kVectors * kVector;
            copy_async(expand(chunk) + row * L::kRow + v,
                       p.expand + static_cast<int64_t>(row) * p.hidden_stride + chunk * kChunk + v);
        }
    };
    auto load_rest = [&](int chunk) {
        if (chunk >= end) return;
#pragma unroll 2
        for (int i = tid; i < kChunk * (L::kOut / kVector); i += L::kThreads) {
            const int row = i / (L::kOut / kVector), v = i % (L::kOut / kVector) * kVector;
            copy_async(project(chunk) + row * L::kOutRow + v,
                       p.project + static_cast<int64_t>(chunk * kChunk + row) * L::kOut + v);
        }
        if (tid < 9 * kVectors) {
            const int tap = tid / kVectors, v = tid % kVectors * kVector;
            copy_async(taps(chunk) + tap * kChunk + v,
                       p.depthwise + tap * p.hidden_stride + chunk * kChunk + v);
        }
    };

    const int x_vectors = cin / kVector;
#pragma unroll 1
    for (int i = tid; i < L::kHaloTiles * 16 * x_vectors; i += L::kThreads) {
        const int pixel = i / x_vectors, v = i % x_vectors * kVector;
        const int64_t y = iy0 + pixel / L::kHaloW, x = ix0 + pixel % L::kHaloW;
        if (in_image(pixel) && v < p.c)
            copy_async(x_tile + pixel * x_row + v,
                       p.x + ((image * p.h + y) * p.w + x) * p.c + v);
        else
            store_shared(x_tile + pixel * x_row + v, make_uint4(0, 0, 0, 0));
    }
    load_expand(begin);
    load_expand(begin + 1);
    load_rest(begin);
    commit_copies();
    wait_copies<0>();
    __syncthreads();

    const Bounds bounds{p.low, p.high};
    const int channel = tid % (kChunk / 4) * 4, strip = tid / (kChunk / 4) * L::kStrip;
    const int m0 = warp % L::kWarpsM * 16, n0 = warp / L::kWarpsM * L::kTilesN * 8;
    float acc[1][L::kTilesN][4];
    set_zero(acc);

#pragma unroll 1
    for (int chunk = begin; chunk < end; ++chunk) {
#pragma unroll 1
        for (int unit = warp; unit < L::kUnits; unit += L::kWarps) {
            const int row0 = unit / L::kParts * 16, column0 = unit % L::kParts * L::kUnitTiles * 8;
            float sum[1][L::kUnitTiles][4];
            set_zero(sum);
            multiply_tiles<T>(sum, x_tile + row0 * x_row, x_row, expand(chunk) + column0, L::kRow,
                              cin / 16);
            each_pair(sum, [&](int row, int column, float u, float v) {
                const float2 bias =
                    load_global<float2>(p.expand_bias + chunk * kChunk + column0 + column);
                // The depthwise convolution pads with zeros, not with the expansion of zeros.
                const bool inside = in_image(row0 + row);
                const uint32_t word =
                    pack<T>(clamp(u + bias.x, bounds), clamp(v + bias.y, bounds));
                store_shared(hidden + (row0 + row) * L::kRow + column0 + column,
                             inside ? word : 0u);
            });
        }
        wait_copies<0>();
        __syncthreads();  // A
        load_expand(chunk + 2);
        load_rest(chunk + 1);
        commit_copies();

        const float4 bias = load_global<float4>(p.depthwise_bias + chunk * kChunk + channel);
        float sum[L::kStrip][4];
#pragma unroll
        for (int t = 0; t < L::kStrip; ++t)
            sum[t][0] = bias.x, sum[t][1] = bias.y, sum[t][2] = bias.z, sum[t][3] = bias.w;
        const int first = (strip / L::kTileW * L::kHaloW + strip % L::kTileW) * L::kStride;
        add_depthwise<T, L::kStride>(sum, hidden + first * L::kRow + channel, L::kHaloW * L::kRow,
                                     L::kRow, taps(chunk) + channel, kChunk);
#pragma unroll
        for (int t = 0; t < L::kStrip; ++t)
            store_shared(a + (strip + t) * L::kRow + channel, pack4<T>(sum[t], bounds));
        __syncthreads();  // B
        multiply_tiles<T>(acc, a + m0 * L::kRow, L::kRow, project(chunk) + n0, L::kOutRow,
                          kChunk / 16);
    }
    wait_copies<0>();

    if (p.split > 1) {
        const int64_t tile = image * gridDim.x + blockIdx.x;
        auto share = [&](int z, int j) {
            return p.partial + (((tile * p.split + z) * L::kTilesN + j) * L::kThreads + tid) * 4;
        };
#pragma unroll
        for (int j = 0; j < L::kTilesN; ++j)
            store_global(share(blockIdx.y, j), make_float4(acc[0][j][0], acc[0][j][1],
                                                           acc[0][j][2], acc[0][j][3]));
        __threadfence();
        __syncthreads();
        int* const flag = reinterpret_cast<int*>(shared + L::kFlag);
        if (tid == 0) store_shared(flag, add_global(p.counters + tile, 1));
        __syncthreads();
        if (load_shared<int>(flag) != p.split - 1) return;
        __threadfence();
        if (tid == 0) store_global(p.counters + tile, 0);
        set_zero(acc);
#pragma unroll 1
        for (int z = 0; z < p.split; ++z)
#pragma unroll
            for (int j = 0; j < L::kTilesN; ++j) {
                const float4 v = load_fresh<float4>(share(z, j));
                acc[0][j][0] += v.x, acc[0][j][1] += v.y, acc[0][j][2] += v.z, acc[0][j][3] += v.w;
            }
    }

    __syncthreads();  // the weights are done with
    uint16_t* const stage = words(L::kStage);
    each_pair(acc, [&](int row, int column, float u, float v) {
        const int pixel = m0 + row, o = n0 + column;
        const float2 bias = load_global<float2>(p.project_bias + o);
        u += bias.x, v += bias.y;
        if (p.residual && o < p.c) {
            const int at = (pixel / L::kTileW + 1) * L::kHaloW + pixel % L::kTileW + 1;
            const float2 r = unpack<T>(load_shared<uint32_t>(x_tile + at * x_row + o));
            u += r.x, v += r.y;
        }
        store_shared(stage + pixel * L::kOutRow + o, pack<T>(u, v));
    });
    __syncthreads();
    for (int i = tid; i < L::kPixels * (L::kOut / kVector); i += L::kThreads) {
        const int pixel = i / (L::kOut / kVector), v = i % (L::kOut / kVector) * kVector;
        const int oy = oy0 + pixel / L::kTileW, ox = ox0 + pixel % L::kTileW;
        if (oy < p.oh && ox < p.ow && v < p.o)
            store_global(p.y + ((image * p.oh + oy) * p.ow + ox) * p.o + v,
                         load_shared<uint4>(stage + pixel * L::kOutRow + v));
    }
}

}  // namespace fastscnn
