// What several kernels share: fragments to products, depthwise sums, rows of shared memory.
#pragma once

#include "platform.cuh"

namespace fastscnn {

constexpr int kWarpSize = 32;
constexpr int kVector = 8;   // 16-bit words in a 16-byte access
constexpr int kPad = 8;      // words after a row: rows 16 bytes apart modulo 128, no bank conflicts
constexpr int kChunk = 32;   // channels that a round of the main loops takes

struct Bounds {
    float low, high;  // none: -inf, inf; ReLU: 0, inf; ReLU6: 0, 6
};

// The same for two values in a word.
struct PackedBounds {
    uint32_t low, high;
};

template <class T>
__device__ __forceinline__ PackedBounds pack_bounds(Bounds b) {
    return {pack<T>(b.low, b.low), pack<T>(b.high, b.high)};
}

// Rounded, then clamped: the same, as words hold every bound.
template <class T>
__device__ __forceinline__ uint32_t pack_clamped(float low, float high, PackedBounds b) {
    return clamp_pair<T>(pack<T>(low, high), b.low, b.high);
}

// NaN stays NaN, as in torch; -0 becomes +0 where the lower bound is 0.
__device__ __forceinline__ float clamp(float v, Bounds b) {
    return smaller(larger(v, b.low), b.high);
}

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int round_up(int a, int b) { return ceil_div(a, b) * b; }

// acc[i][j] += A (rows 16 i..) B (columns 8 j..) over kSteps times 16 of K. A [rows][K] and
// B [K][columns] lie in shared memory; `a`, `b` are this warp's first row and column. An odd kN
// reads 8 columns past its own: the next warp's or the pad.
template <class T, int kSteps, int kM, int kN>
__device__ __forceinline__ void multiply_tiles(float (&acc)[kM][kN][4], const uint16_t* a,
                                               int a_stride, const uint16_t* b, int b_stride) {
    const int lane = threadIdx.x % kWarpSize;
    a += lane % 16 * a_stride + lane / 16 * 8;
    b += lane % 16 * b_stride + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < kSteps; ++k, a += 16, b += 16 * b_stride) {
        uint32_t left[kM][4];
#pragma unroll
        for (int i = 0; i < kM; ++i) load_matrix(left[i], a + i * 16 * a_stride);
#pragma unroll
        for (int j = 0; j < kN; j += 2) {
            uint32_t right[4];
            load_matrix_transposed(right, b + j * 8);
#pragma unroll
            for (int i = 0; i < kM; ++i) {
                multiply_add<T>(acc[i][j], left[i], right[0], right[1]);
                if (j + 1 < kN) multiply_add<T>(acc[i][j + 1], left[i], right[2], right[3]);
            }
        }
    }
}

// The same with B in global memory, packed in the order of its fragments: for each 16 of K and each
// 16 columns a 16-byte word per lane. `a` are this lane's rows (and its half of 16 of K), `b` its
// first word; `b_step` words lie between steps. What a block multiplies once needs no copy in
// shared memory; warps that share columns share the lines of L1.
template <class T, int kM, int kN>
__device__ __forceinline__ void multiply_fragments(float (&acc)[kM][kN][4],
                                                   const uint16_t* const (&a)[kM], const uint4* b,
                                                   int b_step, int steps) {
    static_assert(kN % 2 == 0, "a word holds two tiles of 8 columns");
#pragma unroll (kM * kN < 16 ? 2 : 1)  // as registers allow
    for (int k = 0; k < steps; ++k, b += b_step) {
        uint4 right[kN / 2];
#pragma unroll
        for (int j = 0; j < kN / 2; ++j) right[j] = load_global<uint4>(b + j * kWarpSize);
#pragma unroll
        for (int i = 0; i < kM; ++i) {
            uint32_t left[4];
            load_matrix(left, a[i] + k * 16);
#pragma unroll
            for (int j = 0; j < kN / 2; ++j) {
                multiply_add<T>(acc[i][2 * j], left, right[j].x, right[j].y);
                multiply_add<T>(acc[i][2 * j + 1], left, right[j].z, right[j].w);
            }
        }
    }
}

template <int kM, int kN>
__device__ __forceinline__ void set_zero(float (&acc)[kM][kN][4]) {
#pragma unroll
    for (int i = 0; i < kM; ++i)
#pragma unroll
        for (int j = 0; j < kN; ++j)
#pragma unroll
            for (int r = 0; r < 4; ++r) acc[i][j][r] = 0.f;
}

// f(row, column, u, v) for each pair of neighbouring columns that this lane holds.
template <int kM, int kN, class F>
__device__ __forceinline__ void each_pair(const float (&acc)[kM][kN][4], F f) {
    const int lane = threadIdx.x % kWarpSize;
#pragma unroll
    for (int i = 0; i < kM; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int j = 0; j < kN; ++j)
                f(i * 16 + half * 8 + lane / 4, j * 8 + lane % 4 * 2, acc[i][j][half * 2],
                  acc[i][j][half * 2 + 1]);
}

// Four channels in fp32.
template <class T>
__device__ __forceinline__ void unpack4(float (&v)[4], uint2 words) {
    const float2 low = unpack<T>(words.x), high = unpack<T>(words.y);
    v[0] = low.x, v[1] = low.y, v[2] = high.x, v[3] = high.y;
}

// Adds the 3x3 depthwise sum of kStrip outputs side by side, four channels each. `x` is the first
// output's upper left tap; outputs are kStride pixels apart. Each input column is read once for
// the whole strip.
template <class T, int kStride, int kStrip>
__device__ __forceinline__ void add_depthwise(float (&sum)[kStrip][4], const uint16_t* x,
                                              int row_stride, int pixel_stride,
                                              const uint16_t* weight, int weight_stride) {
#pragma unroll
    for (int ky = 0; ky < 3; ++ky, x += row_stride) {
        float w[3][4];
#pragma unroll
        for (int kx = 0; kx < 3; ++kx)
            unpack4<T>(w[kx], load_shared<uint2>(weight + (ky * 3 + kx) * weight_stride));
#pragma unroll
        for (int column = 0; column < (kStrip - 1) * kStride + 3; ++column) {
            float v[4];
            unpack4<T>(v, load_shared<uint2>(x + column * pixel_stride));
#pragma unroll
            for (int t = 0; t < kStrip; ++t) {
                const int kx = column - t * kStride;
                if (kx < 0 || kx > 2) continue;
#pragma unroll
                for (int c = 0; c < 4; ++c) sum[t][c] = fmaf(v[c], w[kx][c], sum[t][c]);
            }
        }
    }
}

// The same for any stride and dilation, in steps of `x` words: from an output to the next
// (`output_stride`), from a tap to the next in a row (`tap_stride`) and in a column (`row_stride`).
template <class T, int kStrip>
__device__ __forceinline__ void add_any_depthwise(float (&sum)[kStrip][4], const uint16_t* x,
                                                  int output_stride, int tap_stride,
                                                  int row_stride, const uint16_t* weight,
                                                  int weight_stride) {
#pragma unroll 1
    for (int ky = 0; ky < 3; ++ky, x += row_stride - 3 * tap_stride)
#pragma unroll
        for (int kx = 0; kx < 3; ++kx, x += tap_stride, weight += weight_stride) {
            float w[4], v[4];
            unpack4<T>(w, load_shared<uint2>(weight));
#pragma unroll
            for (int t = 0; t < kStrip; ++t) {
                unpack4<T>(v, load_shared<uint2>(x + t * output_stride));
#pragma unroll
                for (int c = 0; c < 4; ++c) sum[t][c] = fmaf(v[c], w[c], sum[t][c]);
            }
        }
}

// Depthwise convolutions on tensor cores: 8 pixels x 8 channels of the map times a diagonal matrix
// of a tap's weights. Sums are fp32, as on FMA units; an infinity among the eight channels becomes
// NaN in all of them.

// What this lane holds of a diagonal matrix: channels 2 (lane % 4), + 1 against channel lane / 4.
__device__ __forceinline__ uint32_t diagonal_mask() {
    const int lane = threadIdx.x % kWarpSize, n = lane / 4;
    return n / 2 != lane % 4 ? 0u : n % 2 ? 0xffff0000u : 0xffffu;
}

// This lane's words of the matrices of nine taps; `taps`: its channels of the first.
__device__ __forceinline__ void load_diagonals(uint32_t (&w)[9], const uint16_t* taps,
                                               int tap_stride, uint32_t mask) {
#pragma unroll
    for (int t = 0; t < 9; ++t) w[t] = load_shared<uint32_t>(taps + t * tap_stride) & mask;
}

// Where a map that is convolved at kStride keeps column x: at stride 2 even columns lie before odd
// ones, so that 8 outputs read neighbours; what lies between them keeps banks apart.
template <int kStride, int kWidth>
struct Columns {
    static constexpr int kEven = (kWidth + 1) / 2, kOdd = round_up(kEven - 4, 8) + 4;
    static constexpr int kPitch = kStride == 1 ? kWidth : kOdd + kWidth / 2;
    __host__ __device__ static constexpr unsigned at(unsigned x) {
        return kStride == 1 ? x : x / 2 + x % 2 * kOdd;
    }
};

// sum[i] [2 rows of 8 pixels x 8 channels] += the depthwise convolution of rows 2 i, 2 i + 1 of the
// outputs. `x`: this lane's pixel lane % 8 in row lane / 8 of the map, at the first tap; a pixel
// takes kRow words, C says where columns lie. Each row of the map is loaded once for all outputs.
template <class T, int kStride, class C, int kRow, int kTilesM>
__device__ __forceinline__ void add_depthwise(float (&sum)[kTilesM][4], const uint16_t* x,
                                              const uint32_t (&w)[9]) {
    constexpr int kRows = (2 * kTilesM - 1) * kStride + 3, kRest = kRows % 4;
    uint32_t in[3][kRows];
#pragma unroll
    for (int kx = 0; kx < 3; ++kx) {
        const uint16_t* column = x + C::at(kx) * kRow;
#pragma unroll
        for (int r = 0; r + 4 <= kRows; r += 4)
            load_matrices<4>(&in[kx][r], column + r * C::kPitch * kRow);
        if constexpr (kRest > 0)
            load_matrices<kRest>(&in[kx][kRows - kRest],
                                 column + (kRows - kRest) * C::kPitch * kRow);
    }
#pragma unroll
    for (int i = 0; i < kTilesM; ++i)
#pragma unroll
        for (int t = 0; t < 9; ++t) {
            const int row = 2 * i * kStride + t / 3;
            const uint32_t a[2] = {in[t % 3][row], in[t % 3][row + kStride]};
            multiply_add<T>(sum[i], a, w[t]);
        }
}

// The same at stride 2 for any 16 outputs; `x`: the first tap of output lane % 16.
template <class T, class C, int kRow>
__device__ __forceinline__ void add_depthwise(float (&sum)[4], const uint16_t* x,
                                              const uint32_t (&w)[9]) {
    const bool second = threadIdx.x % kWarpSize >= 16;  // of the two taps that a product takes
    constexpr int kRight = C::at(1) * kRow, kDown = C::kPitch * kRow, kLast = C::at(2) * kRow;
    const uint16_t* const pair = x + (second ? kRight : 0);
    const uint16_t* const last = x + kLast + (second ? kDown : 0);
    uint32_t a[4], b[2];
#pragma unroll
    for (int ky = 0; ky < 3; ++ky) {
        load_matrices<4>(a, pair + ky * kDown);
        multiply_add<T>(sum, a, w[3 * ky], w[3 * ky + 1]);
    }
    load_matrices<4>(a, last);
    multiply_add<T>(sum, a, w[2], w[5]);
    load_matrices<2>(b, last + 2 * kDown);
    multiply_add<T>(sum, b, w[8]);
}

template <class T>
__device__ __forceinline__ uint2 pack4(const float (&v)[4], Bounds b) {
    return make_uint2(pack<T>(clamp(v[0], b), clamp(v[1], b)),
                      pack<T>(clamp(v[2], b), clamp(v[3], b)));
}

// Where target pixel `i` samples an axis: floor and the weight of its right neighbour, exact up to
// one rounding because position and step are fractions of integers.
__device__ __forceinline__ float2 axis_sample(int i, int in, int out, bool align_corners) {
    const int step = align_corners ? max(out - 1, 1) : 2 * out;
    const int at = align_corners ? (out > 1 ? i * (in - 1) : 0) : max((2 * i + 1) * in - out, 0);
    const int low = min(at / step, in - 1);
    const float rest = static_cast<float>(at - low * step);
    return {static_cast<float>(low), rest / static_cast<float>(step)};
}

}  // namespace fastscnn
