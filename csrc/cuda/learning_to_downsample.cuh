// Frame to 1/8 of its size: stem 3x3/2 -> DSConv/2 -> DSConv/2 in one kernel.
//
// A block owns kTileH x kTileW pixels of the result and walks back through their halos: the first
// DSConv needs (2 kTileH + 1) x (2 kTileW + 1) pixels, the stem (4 kTileH + 3) x (4 kTileW + 3),
// the frame (8 kTileH + 7) x (8 kTileW + 7). Each stage lies whole in shared memory, over what is
// done:
//   frame -> bytes -> patch   16-byte words, then four pixels a thread: normalised, zero outside
//   patch -> stem             warps take 16 pixels x 32 channels; K is 3 rows of 9 values (3 taps
//                             x 3 colours lie side by side) and a zero weight, so that a fragment
//                             is a word of the patch; weights stay in registers
//   stem -> depthwise -> 1x1  twice, warps on 16 pixels x 8 channels, then on 16 x 16 outputs
// Zeros that pad the depthwise convolutions are written where a stage leaves its map.
// Bound by shared memory and instruction issue; 10.5 MB pass through device memory at 1024x2048,
// and 1.3 to 1.4 times the arithmetic of the unfused stages is done.
#pragma once

#include "common.cuh"
#include "kernels.h"

namespace fastscnn {

template <int kTileHeight, int kTileWidth>
struct LearningToDownsampleLayout {
    static constexpr int kThreads = 256, kWarps = kThreads / kWarpSize;
    static constexpr int kTileH = kTileHeight, kTileW = kTileWidth, kPixels = kTileH * kTileW;
    static constexpr int kC1 = 32, kC2 = 48, kC3 = 64;  // channels after stem, first, second DSConv
    static constexpr int kH2 = 2 * kTileH + 1, kW2 = 2 * kTileW + 1, kP2 = kH2 * kW2;
    static constexpr int kH1 = 2 * kH2 + 1, kW1 = 2 * kW2 + 1, kP1 = kH1 * kW1;
    static constexpr int kH0 = 2 * kH1 + 1, kW0 = 2 * kW1 + 1;
    static constexpr int kTiles1 = ceil_div(kP1, 16), kTiles2 = ceil_div(kP2, 16);

    // Words per row of each array; in the patch whole fours of pixels.
    static constexpr int kPatchRow = round_up(kW0, 4) * 3;
    static constexpr int kRow1 = kC1 + kPad, kRow2 = kC2 + kPad, kRow3 = kC3 + kPad;

    // The maps keep even columns of a row first.
    using Columns1 = Columns<2, kW1>;
    using Columns2 = Columns<2, kW2>;
    static constexpr int kMap1Pixels = kH1 * Columns1::kPitch;
    static constexpr int kMap2Pixels = kH2 * Columns2::kPitch;

    // Byte offsets. a1 and a2 lie over the patch, map2 and the results over the stem's map.
    static constexpr int kPatchBytes = round_up(kH0 * kPatchRow * 2, 16);
    static constexpr int kA1Bytes = kTiles2 * 16 * kRow1 * 2, kA2Bytes = kPixels * kRow2 * 2;
    static constexpr int kPatch = 0, kA1 = 0, kA2 = 0;
    static constexpr int kFirst = kPatchBytes > kA1Bytes ? kPatchBytes : kA1Bytes;
    static constexpr int kMap1 = kFirst, kMap2 = kFirst;
    static constexpr int kStage = kMap2 + kMap2Pixels * kRow2 * 2;
    static constexpr int kPointwise1 = kMap1 + kMap1Pixels * kRow1 * 2;
    static constexpr int kPointwise2 = kPointwise1 + kC1 * kRow2 * 2;
    static constexpr int kTaps1 = kPointwise2 + kC2 * kRow3 * 2;
    static constexpr int kTaps2 = kTaps1 + 9 * kC1 * 2, kBytes = kTaps2 + 9 * kC2 * 2;

    // The frame's bytes as they came, in front of which a row leaves up to 15: over the stem's map.
    static constexpr int kRaw = kMap1, kRawRow = round_up(kW0 * 3 + 15, 16);

    static_assert(kRaw + kH0 * kRawRow <= kPointwise1 && kW0 % 2 == 1);
    static_assert(kA2Bytes <= kFirst && kStage + kPixels * kRow3 * 2 <= kPointwise1);
    static_assert(kPixels % 16 == 0 && kFirst % 16 == 0 && kTaps1 % 16 == 0 && kTaps2 % 16 == 0);
};

template <class T, class L>
__global__ void __launch_bounds__(L::kThreads)
    learning_to_downsample_kernel(LearningToDownsampleParams p) {
    if (!has_tensor_cores<T>()) return;
    char* shared = shared_memory();
    auto words = [&](int at) { return reinterpret_cast<uint16_t*>(shared + at); };
    const int tid = threadIdx.x, warp = tid / kWarpSize, lane = tid % kWarpSize;
    const int64_t image = blockIdx.z;
    const int y3 = blockIdx.y * L::kTileH, x3 = blockIdx.x * L::kTileW;  // first pixel of each map
    const int y2 = 2 * y3 - 1, x2 = 2 * x3 - 1, y1 = 2 * y2 - 1, x1 = 2 * x2 - 1;
    const int y0 = 2 * y1 - p.top, x0 = 2 * x1 - p.left;
    auto inside = [](int y, int x, int h, int w) {
        return static_cast<unsigned>(y) < static_cast<unsigned>(h) &&
               static_cast<unsigned>(x) < static_cast<unsigned>(w);
    };

    // Weights of the DSConvs, then the frame.
    auto load_rows = [&](uint16_t* to, int to_row, const uint16_t* from, int rows, int columns) {
        for (int i = tid; i < rows * columns / kVector; i += L::kThreads) {
            const int row = i / (columns / kVector), v = i % (columns / kVector) * kVector;
            copy_async(to + row * to_row + v, from + row * columns + v);
        }
    };
    load_rows(words(L::kPointwise1), L::kRow2, p.pointwise1, L::kC1, L::kC2);
    load_rows(words(L::kPointwise2), L::kRow3, p.pointwise2, L::kC2, L::kC3);
    load_rows(words(L::kTaps1), L::kC1, p.depthwise1, 9, L::kC1);
    load_rows(words(L::kTaps2), L::kC2, p.depthwise2, 9, L::kC2);
    commit_copies();
    if (p.frame) {
        // Aligned 16-byte words that hold each row's bytes; at the tensor's two ends byte by byte.
        const auto begin = reinterpret_cast<uintptr_t>(p.frame);
        const uintptr_t end = begin + static_cast<int64_t>(p.n) * p.h * p.w * 3;
        const uintptr_t first = begin + ((image * p.h + y0) * p.w + x0) * 3;
        for (int i = tid; i < L::kH0 * (L::kRawRow / 16); i += L::kThreads) {
            const int row = i / (L::kRawRow / 16), word = i % (L::kRawRow / 16);
            if (!inside(y0 + row, 0, p.h, 1)) continue;
            const uintptr_t start = first + static_cast<int64_t>(row) * p.w * 3;
            const uintptr_t at = start / 16 * 16 + word * 16;
            if (at >= begin && at + 16 <= end) {
                copy_async(shared + L::kRaw + i * 16, reinterpret_cast<const void*>(at));
                continue;
            }
#pragma unroll 1
            for (int k = 0; k < 16; ++k)
                if (at + k >= begin && at + k < end)
                    store_shared(shared + L::kRaw + i * 16 + k,
                                 load_global<uint8_t>(reinterpret_cast<const void*>(at + k)));
        }
        commit_copies();
        wait_copies<0>();
        __syncthreads();
        // Four pixels at a time fill six words of the patch.
        constexpr unsigned kFours = L::kPatchRow / 12;
        const unsigned pitch = p.w * 3u;
        auto convert = [&](auto whole) {
#pragma unroll 1
            for (unsigned i = tid; i < L::kH0 * kFours; i += L::kThreads) {
                const unsigned row = i / kFours, x = i % kFours * 4;
                const unsigned shift = (static_cast<unsigned>(first) + row * pitch) % 16;
                const char* const raw = shared + L::kRaw + row * L::kRawRow + x * 3 + shift / 4 * 4;
                uint32_t word[4];
#pragma unroll
                for (int k = 0; k < 4; ++k) word[k] = load_shared<uint32_t>(raw + 4 * k);
                float value[12];
#pragma unroll
                for (int k = 0; k < 3; ++k) {
                    const uint32_t four = shift_right(word[k], word[k + 1], shift % 4 * 8);
                    value[4 * k] = byte_of<0>(four), value[4 * k + 1] = byte_of<1>(four);
                    value[4 * k + 2] = byte_of<2>(four), value[4 * k + 3] = byte_of<3>(four);
                }
#pragma unroll
                for (int k = 0; k < 12; ++k) {
                    value[k] = fmaf(value[k], p.scale[k % 3], p.shift[k % 3]);
                    if (!decltype(whole)::value && !inside(y0 + row, x0 + x + k / 3, p.h, p.w))
                        value[k] = 0.f;
                }
                uint16_t* const to = words(L::kPatch) + row * L::kPatchRow + x * 3;
#pragma unroll
                for (int k = 0; k < 12; k += 4)
                    store_shared(to + k, make_uint2(pack<T>(value[k], value[k + 1]),
                                                    pack<T>(value[k + 2], value[k + 3])));
            }
        };
        if (inside(y0, x0, p.h, p.w) && y0 + L::kH0 <= p.h && x0 + L::kPatchRow / 3 <= p.w)
            convert(std::true_type{});
        else
            convert(std::false_type{});
    } else {
#pragma unroll 4
        for (int i = tid; i < L::kH0 * (L::kPatchRow / 2); i += L::kThreads) {
            const int row = i / (L::kPatchRow / 2), j = i % (L::kPatchRow / 2) * 2;
            float value[2];
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                const int x = x0 + (j + k) / 3, colour = (j + k) % 3, y = y0 + row;
                value[k] = 0.f;
                if (j + k < L::kW0 * 3 && inside(y, x, p.h, p.w))
                    value[k] = load_global<float>(
                        p.x + image * p.x_strides[0] + colour * p.x_strides[1] +
                        y * p.x_strides[2] + x * p.x_strides[3]);
            }
            store_shared(words(L::kPatch) + row * L::kPatchRow + j, pack<T>(value[0], value[1]));
        }
    }

    // Pairs of K that this lane holds: of each row of taps the word lane % 4, then the last word of
    // row lane % 4 (pair 15 has zero weights). Weights [32 outputs][32] by tile of 8 outputs.
    const int last_row = min(lane % 4, 2);
    uint32_t stem[4][4];
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int pair = k < 3 ? 5 * k + lane % 4 : min(5 * (lane % 4) + 4, 15);
            stem[j][k] = load_global<uint32_t>(p.stem + (j * 8 + lane / 4) * 32 + pair * 2);
        }
    wait_copies<0>();
    __syncthreads();

    const PackedBounds mid = pack_bounds<T>({p.mid_low, p.mid_high});
    float2 stem_bias[4];
#pragma unroll
    for (int j = 0; j < 4; ++j)
        stem_bias[j] = load_global<float2>(p.stem_bias + j * 8 + lane % 4 * 2);
#pragma unroll 1
    for (int tile = warp; tile < L::kTiles1; tile += L::kWarps) {
        unsigned y[2], x[2];
        uint32_t a[4][2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const unsigned pixel = min(tile * 16 + half * 8 + lane / 4, L::kP1 - 1);
            y[half] = pixel / L::kW1, x[half] = pixel % L::kW1;
            const uint16_t* const row =
                words(L::kPatch) + y[half] * 2 * L::kPatchRow + x[half] * 6 + lane % 4 * 2;
#pragma unroll
            for (int k = 0; k < 3; ++k) a[k][half] = load_shared<uint32_t>(row + k * L::kPatchRow);
            a[3][half] = load_shared<uint32_t>(row + last_row * L::kPatchRow + 8 - lane % 4 * 2);
        }
        float sum[4][4] = {};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            multiply_add<T>(sum[j], {a[0][0], a[0][1], a[1][0], a[1][1]}, stem[j][0], stem[j][1]);
            multiply_add<T>(sum[j], {a[2][0], a[2][1], a[3][0], a[3][1]}, stem[j][2], stem[j][3]);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (tile * 16 + half * 8 + lane / 4 >= L::kP1) continue;
            const bool known = inside(y1 + y[half], x1 + x[half], p.h1, p.w1);
            uint16_t* const to =
                words(L::kMap1) +
                (y[half] * L::Columns1::kPitch + L::Columns1::at(x[half])) * L::kRow1 +
                lane % 4 * 2;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const uint32_t word = pack_relu<T>(sum[j][half * 2] + stem_bias[j].x,
                                                   sum[j][half * 2 + 1] + stem_bias[j].y);
                store_shared(to + j * 8, known ? word : 0u);
            }
        }
    }
    __syncthreads();

    // Depthwise from a map with columns C to pixels in rows of `to_w`; rows up to a whole tile of 16
    // repeat the last pixel and feed only products that nobody keeps.
    const uint32_t diagonal = diagonal_mask();
    auto depthwise = [&](const uint16_t* from, auto columns, auto channels, unsigned tiles,
                         int pixels, unsigned to_w, const uint16_t* taps, const float* bias, uint16_t* to) {
        using C = decltype(columns);
        constexpr int kC = decltype(channels)::value, kRow = kC + kPad, kGroups = kC / 8;
        constexpr bool kSame = L::kWarps % kGroups == 0;  // a warp's channels, all the way
        uint32_t w[9];
        float2 b;
        auto load = [&](int unit) {
            const int c = unit % kGroups * 8 + lane % 4 * 2;
            load_diagonals(w, taps + c, kC, diagonal);
            b = load_global<float2>(bias + c);
        };
        if (kSame) load(warp);
#pragma unroll 1
        for (unsigned unit = warp; unit < tiles * kGroups; unit += L::kWarps) {
            if (!kSame) load(unit);
            const int c = unit % kGroups * 8, first = unit / kGroups * 16;
            const unsigned pixel = min(first + lane % 16, pixels - 1);
            float sum[4] = {b.x, b.y, b.x, b.y};
            add_depthwise<T, C, kRow>(
                sum, from + (pixel / to_w * 2 * C::kPitch + pixel % to_w) * kRow + c, w);
            uint16_t* const at = to + (first + lane / 4) * kRow + c + lane % 4 * 2;
            store_shared(at, pack_clamped<T>(sum[0], sum[1], mid));
            store_shared(at + 8 * kRow, pack_clamped<T>(sum[2], sum[3], mid));
        }
    };
    // Warps take 16 pixels x kColumns outputs each; `store` gets a pixel's words.
    auto pointwise = [&](const uint16_t* a, auto inputs, unsigned tiles, const uint16_t* b,
                         auto outputs, auto columns, const float* bias, auto store) {
        constexpr int kK = decltype(inputs)::value, kN = decltype(outputs)::value;
        constexpr int kColumns = decltype(columns)::value, kTiles = kColumns / 8;
#pragma unroll 1
        for (unsigned unit = warp; unit < tiles * (kN / kColumns); unit += L::kWarps) {
            const int row0 = unit / (kN / kColumns) * 16;
            const int column0 = unit % (kN / kColumns) * kColumns;
            float sum[1][kTiles][4];
            set_zero(sum);
            multiply_tiles<T, kK / 16>(sum, a + row0 * (kK + kPad), kK + kPad, b + column0,
                                       kN + kPad);
            uint32_t word[2][kTiles];
#pragma unroll
            for (int j = 0; j < kTiles; ++j) {
                const float2 add = load_global<float2>(bias + column0 + j * 8 + lane % 4 * 2);
#pragma unroll
                for (int half = 0; half < 2; ++half)
                    word[half][j] = pack_relu<T>(sum[0][j][half * 2] + add.x,
                                                 sum[0][j][half * 2 + 1] + add.y);
            }
            store(row0 + lane / 4, column0 + lane % 4 * 2, word[0]);
            store(row0 + lane / 4 + 8, column0 + lane % 4 * 2, word[1]);
        }
    };
    using std::integral_constant;
    constexpr integral_constant<int, L::kC1> c1;
    constexpr integral_constant<int, L::kC2> c2;
    constexpr integral_constant<int, L::kC3> c3;

    depthwise(words(L::kMap1), typename L::Columns1{}, c1, L::kTiles2, L::kP2, L::kW2,
              words(L::kTaps1), p.depthwise1_bias, words(L::kA1));
    __syncthreads();
    pointwise(words(L::kA1), c1, L::kTiles2, words(L::kPointwise1), c2, c2, p.pointwise1_bias,
              [&](unsigned pixel, int column, const uint32_t(&word)[L::kC2 / 8]) {
                  if (pixel >= L::kP2) return;
                  const unsigned y = pixel / L::kW2, x = pixel % L::kW2;
                  const bool known = inside(y2 + y, x2 + x, p.h2, p.w2);
                  uint16_t* const to =
                      words(L::kMap2) +
                      (y * L::Columns2::kPitch + L::Columns2::at(x)) * L::kRow2 + column;
#pragma unroll
                  for (int j = 0; j < L::kC2 / 8; ++j)
                      store_shared(to + j * 8, known ? word[j] : 0u);
              });
    __syncthreads();
    depthwise(words(L::kMap2), typename L::Columns2{}, c2, L::kPixels / 16, L::kPixels, L::kTileW,
              words(L::kTaps2), p.depthwise2_bias, words(L::kA2));
    __syncthreads();
    constexpr integral_constant<int, 16> few;
    pointwise(words(L::kA2), c2, L::kPixels / 16, words(L::kPointwise2), c3, few, p.pointwise2_bias,
              [&](int pixel, int column, const uint32_t(&word)[2]) {
                  uint16_t* const to = words(L::kStage) + pixel * L::kRow3 + column;
                  store_shared(to, word[0]);
                  store_shared(to + 8, word[1]);
              });
    __syncthreads();
    for (int i = tid; i < L::kPixels * (L::kC3 / kVector); i += L::kThreads) {
        const int pixel = i / (L::kC3 / kVector), v = i % (L::kC3 / kVector) * kVector;
        const int y = y3 + pixel / L::kTileW, x = x3 + pixel % L::kTileW;
        if (y < p.h3 && x < p.w3)
            store_global(p.y + ((image * p.h3 + y) * p.w3 + x) * L::kC3 + v,
                         load_shared<uint4>(words(L::kStage) + pixel * L::kRow3 + v));
    }
}

}  // namespace fastscnn
