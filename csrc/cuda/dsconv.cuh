// Depthwise 3x3 -> activation -> pointwise -> activation (-> second pointwise to class scores).
//
// A block owns 8 x 8 output pixels and kOut output channels, and goes through the input channels in
// chunks of 32: cp.async brings a chunk's halo tile and weights while the previous one is computed;
// each thread sums strips of 4 pixels x 4 channels (the GEMM's A, in shared memory); 2 x 2 warps
// multiply it, 32 pixels x kOut / 2 channels each. Results pass through shared memory once more, to
// be stored 16 bytes at a time or to be multiplied by the head.
// Bound by bytes: 2 (c + o) per output pixel at stride 1 from device memory, 1.6 times the input
// from L2; 18 c flops on FMA units and 2 c o on tensor cores run beside.
#pragma once

#include "common.cuh"
#include "kernels.h"

namespace fastscnn {

template <int kOut>
struct DsconvLayout {
    static constexpr int kThreads = 128, kTile = 8, kPixels = kTile * kTile;
    static constexpr int kRow = kChunk + kPad, kOutRow = kOut + kPad;  // words
    static constexpr int kHeadChunk = 32, kHeadRow = kHeadChunk + kPad;
    static constexpr int kStrip = 4;
    static constexpr int kTilesN = kOut / 2 / 8;  // n8 tiles of a warp

    // Byte offsets; the halo comes last because its size depends on stride and dilation.
    static constexpr int kA = 0, kB = kA + kPixels * kRow * 2;
    static constexpr int kTaps = kB + 2 * kChunk * kOutRow * 2;
    static constexpr int kHead = kTaps + 2 * 9 * kChunk * 2;
    static constexpr int kStage = kB;  // results over the weights, when those are done

    __host__ __device__ static constexpr int halo_side(int stride, int dilation) {
        return (kTile - 1) * stride + 2 * dilation + 1;
    }
    __host__ __device__ static constexpr int halo_at(bool head) {
        return kHead + (head ? kOut * kHeadRow * 2 : 0);
    }
    __host__ __device__ static constexpr int bytes(int stride, int dilation, bool head) {
        const int side = halo_side(stride, dilation);
        return halo_at(head) + 2 * side * side * kRow * 2;
    }

    static_assert(kPixels / kStrip * (kChunk / 4) == kThreads, "one strip of channels per thread");
    static_assert(kPixels * kOutRow <= 2 * kChunk * kOutRow, "results fit over the weights");
    static_assert(kOut % 32 == 0 && kA % 16 == 0 && kB % 16 == 0 && kTaps % 16 == 0 &&
                  kHead % 16 == 0);
};

// kDense: stride 1 and dilation 1, known to the compiler.
template <class T, int kOut, bool kDense>
__global__ void __launch_bounds__(DsconvLayout<kOut>::kThreads) dsconv_kernel(DsconvParams p) {
    if (!has_tensor_cores<T>()) return;
    using L = DsconvLayout<kOut>;
    char* shared = shared_memory();
    uint16_t* const a = reinterpret_cast<uint16_t*>(shared + L::kA);
    uint16_t* const stage = reinterpret_cast<uint16_t*>(shared + L::kStage);
    uint16_t* const head = reinterpret_cast<uint16_t*>(shared + L::kHead);
    auto weights = [&](int i) {
        return reinterpret_cast<uint16_t*>(shared + L::kB) + i % 2 * kChunk * L::kOutRow;
    };
    auto taps = [&](int i) {
        return reinterpret_cast<uint16_t*>(shared + L::kTaps) + i % 2 * 9 * kChunk;
    };

    const int stride = kDense ? 1 : p.stride, dilation = kDense ? 1 : p.dilation;
    const int side = L::halo_side(stride, dilation);
    auto halo = [&](int i) {
        return reinterpret_cast<uint16_t*>(shared + L::halo_at(p.head != nullptr)) +
               i % 2 * side * side * L::kRow;
    };

    const int tid = threadIdx.x, warp = tid / kWarpSize;
    const int tiles_x = ceil_div(p.ow, L::kTile);
    const int oy0 = blockIdx.x / tiles_x * L::kTile, ox0 = blockIdx.x % tiles_x * L::kTile;
    const int o0 = blockIdx.y * kOut;
    const int iy0 = oy0 * stride - dilation, ix0 = ox0 * stride - dilation;
    const int c_stride = round_up(p.c, kChunk), chunks = c_stride / kChunk;
    const uint16_t* x = p.x + static_cast<int64_t>(blockIdx.z) * p.h * p.w * p.c;

    auto load_head = [&](int k0) {
#pragma unroll 2
        for (int i = tid; i < kOut * (L::kHeadChunk / kVector); i += L::kThreads) {
            const int row = i / (L::kHeadChunk / kVector);
            const int v = i % (L::kHeadChunk / kVector) * kVector;
            copy_async(head + row * L::kHeadRow + v,
                       p.head + row * p.k_stride + k0 + v);
        }
    };
    auto load_chunk = [&](int chunk) {
        const int c0 = chunk * kChunk;
        constexpr int kVectors = kChunk / kVector;
#pragma unroll 1
        for (int i = tid; i < side * side * kVectors; i += L::kThreads) {
            const int pixel = i / kVectors, v = i % kVectors * kVector;
            const int iy = iy0 + pixel / side, ix = ix0 + pixel % side;
            uint16_t* to = halo(chunk) + pixel * L::kRow + v;
            const bool inside = static_cast<unsigned>(iy) < static_cast<unsigned>(p.h) &&
                                static_cast<unsigned>(ix) < static_cast<unsigned>(p.w);
            if (inside && c0 + v < p.c)
                copy_async(to, x + (static_cast<int64_t>(iy) * p.w + ix) * p.c + c0 + v);
            else
                store_shared(to, make_uint4(0, 0, 0, 0));
        }
#pragma unroll 2
        for (int i = tid; i < kChunk * (kOut / kVector); i += L::kThreads) {
            const int row = i / (kOut / kVector), v = i % (kOut / kVector) * kVector;
            copy_async(weights(chunk) + row * L::kOutRow + v,
                       p.pointwise + (c0 + row) * p.o_stride + o0 + v);
        }
        for (int i = tid; i < 9 * kVectors; i += L::kThreads) {
            const int tap = i / kVectors, v = i % kVectors * kVector;
            copy_async(taps(chunk) + tap * kChunk + v, p.depthwise + tap * c_stride + c0 + v);
        }
    };

    // This thread's strip of the depthwise convolution, this warp's part of the product.
    const int channel = tid % (kChunk / 4) * 4, strip = tid / (kChunk / 4) * L::kStrip;
    const int strip_y = strip / L::kTile, strip_x = strip % L::kTile;
    const int m0 = warp % 2 * 32, n0 = warp / 2 * (kOut / 2);
    float acc[2][L::kTilesN][4];
    set_zero(acc);

    if (p.head) load_head(0);
    load_chunk(0);
    commit_copies();
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
        wait_copies<0>();
        __syncthreads();  // chunk is here; everyone has multiplied the previous one
        if (chunk + 1 < chunks) load_chunk(chunk + 1);
        commit_copies();

        const float4 bias = load_global<float4>(p.depthwise_bias + chunk * kChunk + channel);
        float sum[L::kStrip][4];
#pragma unroll
        for (int t = 0; t < L::kStrip; ++t)
            sum[t][0] = bias.x, sum[t][1] = bias.y, sum[t][2] = bias.z, sum[t][3] = bias.w;
        const uint16_t* tap0 =
            halo(chunk) + (strip_y * side + strip_x) * stride * L::kRow + channel;
        if constexpr (kDense) {
            add_depthwise<T, 1>(sum, tap0, side * L::kRow, L::kRow, taps(chunk) + channel, kChunk);
        } else {
            add_any_depthwise<T>(sum, tap0, stride * L::kRow, dilation * L::kRow,
                                 dilation * side * L::kRow, taps(chunk) + channel, kChunk);
        }
#pragma unroll
        for (int t = 0; t < L::kStrip; ++t)
            store_shared(a + (strip + t) * L::kRow + channel,
                         pack4<T>(sum[t], {p.mid_low, p.mid_high}));
        __syncthreads();  // A is complete
        multiply_tiles<T, kChunk / 16>(acc, a + m0 * L::kRow, L::kRow, weights(chunk) + n0,
                                       L::kOutRow);
    }

    __syncthreads();  // the weights are done with
    each_pair(acc, [&](int row, int column, float u, float v) {
        const float2 bias = load_global<float2>(p.pointwise_bias + o0 + n0 + column);
        const Bounds b{p.low, p.high};
        store_shared(stage + (m0 + row) * L::kOutRow + n0 + column,
                     pack<T>(clamp(u + bias.x, b), clamp(v + bias.y, b)));
    });
    __syncthreads();

    if (!p.head) {
        for (int i = tid; i < L::kPixels * (kOut / kVector); i += L::kThreads) {
            const int pixel = i / (kOut / kVector), v = i % (kOut / kVector) * kVector;
            const int oy = oy0 + pixel / L::kTile, ox = ox0 + pixel % L::kTile;
            if (oy >= p.oh || ox >= p.ow || o0 + v >= p.o) continue;
            const int64_t at = (static_cast<int64_t>(blockIdx.z) * p.oh + oy) * p.ow + ox;
            store_global(p.y + at * p.o + o0 + v,
                         load_shared<uint4>(stage + pixel * L::kOutRow + v));
        }
        return;
    }

    // The head: each warp multiplies 16 pixels by 32 classes at a time; scores are planar.
    for (int k0 = 0; k0 < p.k; k0 += L::kHeadChunk) {
        if (k0 > 0) {
            __syncthreads();
            load_head(k0);
            commit_copies();
            wait_copies<0>();
            __syncthreads();
        }
        float scores[1][L::kHeadChunk / 8][4];
        set_zero(scores);
        multiply_tiles<T, kOut / 16>(scores, stage + warp * 16 * L::kOutRow, L::kOutRow, head,
                                     L::kHeadRow);
        each_pair(scores, [&](int row, int column, float u, float v) {
            const int pixel = warp * 16 + row, k = k0 + column;
            const int oy = oy0 + pixel / L::kTile, ox = ox0 + pixel % L::kTile;
            if (oy >= p.oh || ox >= p.ow) return;
            const float2 bias = load_global<float2>(p.head_bias + k);
            const uint32_t both = pack<T>(u + bias.x, v + bias.y);
            const int64_t plane = static_cast<int64_t>(p.oh) * p.ow;
            uint16_t* y = p.y + (static_cast<int64_t>(blockIdx.z) * p.k + k) * plane +
                          static_cast<int64_t>(oy) * p.ow + ox;
            if (k < p.k) store_global(y, static_cast<uint16_t>(both));
            if (k + 1 < p.k) store_global(y + plane, static_cast<uint16_t>(both >> 16));
        });
    }
}

}  // namespace fastscnn
