// Expand 1x1 -> depthwise 3x3 -> project 1x1 (+ x); the hidden tensor exists in shared memory only,
// 32 channels at a time.
//
// A block owns kTileH x 8 output pixels, all their output channels, and a share of the hidden
// channels (all of them where the map fills the GPU). The input tile with its halo stays in shared
// memory. Per chunk of hidden channels:
//   expand     a warp keeps 32 halo pixels in registers, takes half of the channels  -> hidden
//   A ---- barrier: hidden complete
//   depthwise  warps take 4 rows of 8 pixels x 8 channels                            -> a
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
    static constexpr int kHalo = kHaloH * kHaloW, kHaloTiles = ceil_div(kHalo, 32) * 2;
    // Expansion: 32 halo pixels x 16 channels a warp; the first inputs stay in registers.
    static constexpr int kWarps = kHaloTiles, kThreads = kWarps * kWarpSize;
    static constexpr int kExpandN = kChunk / 2 / 8, kHeld = kStride == 2 ? 32 : 64;
    // Depthwise: 2 or 4 rows of pixels x 8 channels a warp.
    static constexpr int kDepthwiseM = kStride == 2 ? 1 : 2, kGroups = kChunk / 8;
    static constexpr int kDepthwiseWarps = kTileH / (2 * kDepthwiseM) * kGroups;
    // Projection.
    static constexpr int kWarpsM = kPixels / 16, kWarpsN = kTileH == 8 || kStride == 1 ? 2 : 4;
    static constexpr int kProjectWarps = kWarpsM * kWarpsN;
    static constexpr int kTilesN = kOut / 8 / kWarpsN;
    static constexpr int kRow = kChunk + kPad, kOutRow = kOut + kPad;  // words

    // Byte offsets; what depends on the input's channels comes last.
    using Hidden = Columns<kStride, kHaloW>;
    static constexpr int kHiddenEnd = kHaloH * Hidden::kPitch;  // pixels; past them what is no halo
    static constexpr int kHiddenPixels = kHiddenEnd + kHaloTiles * 16 - kHalo;
    static constexpr int kHidden = 0, kA = kHidden + kHiddenPixels * kRow * 2;
    static constexpr int kTaps = kA + kPixels * kRow * 2, kProject = kTaps + 2 * 9 * kChunk * 2;
    static constexpr int kFlag = kProject + 2 * kChunk * kOutRow * 2, kExpand = kFlag + 16;
    static constexpr int kStage = kProject;  // results over the weights, when those are done
    __host__ __device__ static constexpr int place(int pixel) {  // of a halo pixel in `hidden`
        return pixel < kHalo ? pixel / kHaloW * Hidden::kPitch + Hidden::at(pixel % kHaloW)
                             : kHiddenEnd + pixel - kHalo;
    }
    __host__ __device__ static constexpr int x_at(int c) { return kExpand + 2 * c * kRow * 2; }
    __host__ __device__ static constexpr int bytes(int c) {
        return x_at(c) + kHaloTiles * 16 * (c + kPad) * 2;
    }

    static_assert(kTileW == 8 && kTileH % (2 * kDepthwiseM) == 0 && kDepthwiseWarps <= kWarps);
    static_assert(kProjectWarps <= kWarps && kTilesN * 8 * kWarpsN == kOut);
    static_assert(kPixels <= 2 * kChunk, "results fit over the weights");
    static_assert(kA % 16 == 0 && kTaps % 16 == 0 && kProject % 16 == 0 && kExpand % 16 == 0);
};

template <class T, class L>
__global__ void __launch_bounds__(L::kThreads, 2)
    inverted_residual_kernel(InvertedResidualParams p) {
    if (!has_tensor_cores<T>()) return;
    const int cin = round_up(p.c, 16), x_row = cin + kPad;
    char* shared = shared_memory();
    auto words = [&](int at) { return reinterpret_cast<uint16_t*>(shared + at); };
    uint16_t* const hidden = words(L::kHidden);
    uint16_t* const a = words(L::kA);
    uint16_t* const x_tile = words(L::x_at(cin));
    auto taps = [&](int i) { return words(L::kTaps) + (i & 1) * 9 * kChunk; };
    auto project = [&](int i) { return words(L::kProject) + (i & 1) * kChunk * L::kOutRow; };
    auto expand = [&](int i) { return words(L::kExpand) + (i & 1) * cin * L::kRow; };

    const int tid = threadIdx.x, warp = tid / kWarpSize, lane = tid % kWarpSize;
    const int tiles_x = ceil_div(p.ow, L::kTileW);
    const int oy0 = blockIdx.x / tiles_x * L::kTileH, ox0 = blockIdx.x % tiles_x * L::kTileW;
    const int iy0 = oy0 * L::kStride - 1, ix0 = ox0 * L::kStride - 1;
    const int chunks = p.hidden_stride / kChunk;
    const int begin = blockIdx.y * p.share, end = min(begin + p.share, chunks);
    const int64_t image = blockIdx.z;

    auto in_image = [&](int pixel) {
        const int y = iy0 + pixel / L::kHaloW, x = ix0 + pixel % L::kHaloW;
        return pixel < L::kHalo && static_cast<unsigned>(y) < static_cast<unsigned>(p.h) &&
               static_cast<unsigned>(x) < static_cast<unsigned>(p.w);
    };
    // Where this thread's copies of a chunk begin.
    constexpr int kVectors = kChunk / kVector, kOutVectors = L::kOut / kVector;
    const int row = tid / kVectors, v = tid % kVectors * kVector;
    const unsigned first = row * p.hidden_stride + v;
    auto load_expand = [&](int chunk) {
        if (chunk >= end) return;
        constexpr int kRows = L::kThreads / kVectors;
        const uint16_t* const from = p.expand + chunk * kChunk;
        uint16_t* const to = expand(chunk) + row * L::kRow + v;
#pragma unroll 1
        for (int i = 0; i < cin; i += kRows)
            if (row < cin - i) copy_async(to + i * L::kRow, from + (first + i * p.hidden_stride));
    };
    auto load_rest = [&](int chunk) {
        if (chunk >= end) return;
        const uint16_t* const from = p.project + chunk * kChunk * L::kOut;
#pragma unroll
        for (int begin = 0; begin < kChunk * kOutVectors; begin += L::kThreads) {
            const int i = begin + tid;
            if (begin + L::kThreads <= kChunk * kOutVectors || i < kChunk * kOutVectors)
                copy_async(project(chunk) + i / kOutVectors * L::kOutRow +
                               i % kOutVectors * kVector,
                           from + i * kVector);
        }
        if (tid < 9 * kVectors)
            copy_async(taps(chunk) + row * kChunk + v, p.depthwise + chunk * kChunk + first);
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

    // Expansion: this warp's pixels and channels; places of this lane's rows, and which of them lie
    // outside the image: the depthwise convolution pads with zeros, not with the expansion of zeros.
    const PackedBounds bounds = pack_bounds<T>({p.low, p.high});
    const unsigned expand_n0 = warp % 2 * L::kExpandN * 8 + lane % 4 * 2;
    uint16_t* places[4];
    unsigned outside = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int pixel = warp / 2 * 32 + i * 8 + lane / 4;
        places[i] = hidden + L::place(pixel) * L::kRow + expand_n0;
        outside |= pixel >= L::kHalo || in_image(pixel) ? 0u : 1u << i;
    }
    auto place = [&](int i) {
        return L::kStride == 1 ? places[0] + i * 8 * L::kRow : places[i];
    };
    const uint16_t* const x_rows = x_tile + (warp / 2 * 32 + lane % 16) * x_row + lane / 16 * 8;
    const int expand_row = lane % 16 * L::kRow + lane / 16 * 8 + warp % 2 * L::kExpandN * 8;
    const bool holds = cin >= L::kHeld;
    const int rest = holds ? L::kHeld / 16 : 0, steps = cin / 16;
    uint32_t held[L::kHeld / 16][2][4];
    if (holds)
#pragma unroll
        for (int k = 0; k < L::kHeld / 16; ++k)
#pragma unroll
            for (int i = 0; i < 2; ++i) load_matrix(held[k][i], x_rows + i * 16 * x_row + k * 16);

    // Depthwise: this warp's rows and channels, this lane's pixel. Projection: pixels and outputs.
    const unsigned group = warp % L::kGroups * 8, dense_channel = group + lane % 4 * 2;
    const uint32_t diagonal = diagonal_mask();
    const int row0 = warp / L::kGroups * 2 * L::kDepthwiseM;
    const uint16_t* const dense =
        hidden + ((row0 * L::kStride + lane / 8) * L::Hidden::kPitch + lane % 8) * L::kRow + group;
    const int m0 = warp % L::kWarpsM * 16, n0 = warp / L::kWarpsM * L::kTilesN * 8;
    float acc[1][L::kTilesN][4];
    set_zero(acc);

#pragma unroll 1
    for (int chunk = begin; chunk < end; ++chunk) {
        {
            float sum[2][L::kExpandN][4];
            set_zero(sum);
            auto step = [&](const uint32_t(&left)[2][4], int k) {
                uint32_t right[4];
                load_matrix_transposed(right, expand(chunk) + expand_row + k * 16 * L::kRow);
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    multiply_add<T>(sum[i][0], left[i], right[0], right[1]);
                    multiply_add<T>(sum[i][1], left[i], right[2], right[3]);
                }
            };
            if (holds) {
#pragma unroll
                for (int k = 0; k < L::kHeld / 16; ++k) step(held[k], k);
            }
#pragma unroll 1
            for (int k = rest; k < steps; ++k) {
                uint32_t left[2][4];
                load_matrix(left[0], x_rows + k * 16);
                load_matrix(left[1], x_rows + 16 * x_row + k * 16);
                step(left, k);
            }
#pragma unroll
            for (int j = 0; j < L::kExpandN; ++j) {
                const float2 bias = load_global<float2>(p.expand_bias + chunk * kChunk +
                                                        (expand_n0 + j * 8));
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    store_shared(place(i) + j * 8,
                                 pack_clamped<T>(sum[i / 2][j][i % 2 * 2] + bias.x,
                                                 sum[i / 2][j][i % 2 * 2 + 1] + bias.y, bounds));
            }
            if (outside)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    for (int j = 0; j < L::kExpandN && outside >> i & 1; ++j)
                        store_shared(place(i) + j * 8, 0u);
        }
        wait_copies<0>();
        __syncthreads();  // A
        load_expand(chunk + 2);
        load_rest(chunk + 1);
        commit_copies();

        if (L::kDepthwiseWarps == L::kWarps || warp < L::kDepthwiseWarps) {
            const float2 bias =
                load_global<float2>(p.depthwise_bias + chunk * kChunk + dense_channel);
            uint32_t w[9];
            load_diagonals(w, taps(chunk) + dense_channel, kChunk, diagonal);
            float sum[L::kDepthwiseM][4];
#pragma unroll
            for (int i = 0; i < L::kDepthwiseM; ++i)
                sum[i][0] = sum[i][2] = bias.x, sum[i][1] = sum[i][3] = bias.y;
            add_depthwise<T, L::kStride, typename L::Hidden, L::kRow>(sum, dense, w);
            uint16_t* const to = a + (row0 * L::kTileW + lane / 4) * L::kRow + dense_channel;
#pragma unroll
            for (int i = 0; i < 2 * L::kDepthwiseM; ++i)
                store_shared(to + i * L::kTileW * L::kRow,
                             pack_clamped<T>(sum[i / 2][i % 2 * 2], sum[i / 2][i % 2 * 2 + 1],
                                             bounds));
        }
        __syncthreads();  // B
        if (L::kProjectWarps == L::kWarps || warp < L::kProjectWarps)
            multiply_tiles<T, kChunk / 16>(acc, a + m0 * L::kRow, L::kRow, project(chunk) + n0,
                                           L::kOutRow);
    }
    wait_copies<0>();

    if (p.split > 1) {
        const int64_t tile = image * gridDim.x + blockIdx.x;
        auto share = [&](int z, int j) {
            return p.partial +
                   (((tile * p.split + z) * L::kTilesN + j) * L::kProjectWarps * kWarpSize + tid) * 4;
        };
        const bool projects = L::kProjectWarps == L::kWarps || warp < L::kProjectWarps;
#pragma unroll
        for (int j = 0; j < L::kTilesN; ++j)
            if (projects)
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
        for (int z = 0; z < p.split && projects; ++z)
#pragma unroll
            for (int j = 0; j < L::kTilesN; ++j) {
                const float4 v = load_fresh<float4>(share(z, j));
                acc[0][j][0] += v.x, acc[0][j][1] += v.y, acc[0][j][2] += v.z, acc[0][j][3] += v.w;
            }
    }

    __syncthreads();  // the weights are done with
    uint16_t* const stage = words(L::kStage);
    auto finish = [&](int row, int column, float u, float v) {
        const int pixel = m0 + row, o = n0 + column;
        const float2 bias = load_global<float2>(p.project_bias + o);
        u += bias.x, v += bias.y;
        if (p.residual && o < p.c) {
            const int at = (pixel / L::kTileW + 1) * L::kHaloW + pixel % L::kTileW + 1;
            const float2 r = unpack<T>(load_shared<uint32_t>(x_tile + at * x_row + o));
            u += r.x, v += r.y;
        }
        store_shared(stage + pixel * L::kOutRow + o, pack<T>(u, v));
    };
    if (L::kProjectWarps == L::kWarps || warp < L::kProjectWarps) each_pair(acc, finish);
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
