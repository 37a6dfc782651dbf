// Average pools at several grids -> 1x1 + ReLU each -> bilinear back -> concatenated with x -> join
// 1x1 or 3x3 -> ReLU, in two kernels; neither the upsampled maps nor their concatenation exist.
//
// pool_rows: a block owns a row of x and 128 of its channels; it sums the columns of every grid's
// segments, as a product with rows of ones.
// pool_join: a block owns 4 x 8 output pixels and 64 outputs. It makes what its pixels sample, few
// of the cells: their means from the sums of rows, then the branches' products. The samples lie
// beside x in shared memory, zeros outside the map, where the join's product reads them, shifted
// tap by tap. Weights come in the order of fragments, each once per block.
// Bound by latency at 32x64; 2 (c + branches * width) o flops per output pixel and tap.
#pragma once

#include "common.cuh"
#include "kernels.h"

namespace fastscnn {

struct PoolRowsLayout {
    static constexpr int kThreads = 128, kChannels = 128, kPixels = 64;  // columns at a time
    static constexpr int kPairs = kChannels / 16 / (kThreads / kWarpSize);  // of n8 tiles, per warp
    static constexpr int kRow = kChannels + kPad, kBytes = kPixels * kRow * 2;
    static_assert(kPixels % 16 == 0 && kRow * 2 % 16 == 0);
};

template <class T>
__global__ void __launch_bounds__(PoolRowsLayout::kThreads) pool_rows_kernel(PyramidPoolParams p) {
    if (!has_tensor_cores<T>()) return;
    using L = PoolRowsLayout;
    uint16_t* const tile = reinterpret_cast<uint16_t*>(shared_memory());
    const int tid = threadIdx.x, warp = tid / kWarpSize, lane = tid % kWarpSize;
    const int64_t line = blockIdx.x;
    const int c0 = blockIdx.y * L::kChannels;

    // Columns [start, end) of this lane's two segments.
    int start[2] = {0, 0}, end[2] = {0, 0}, first = 0;
#pragma unroll
    for (int b = 0; b < kMaxBranches; ++b) {
        if (b >= p.branches) continue;
        const int bins = p.bins[b];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int i = lane / 4 + half * 8 - first;
            if (i < 0 || i >= bins) continue;
            start[half] = i * p.w / bins;
            end[half] = ceil_div((i + 1) * p.w, bins);
        }
        first += bins;
    }

    float acc[L::kPairs][2][4];
    set_zero(acc);
    const uint32_t one = pack<T>(1.f, 0.f);
    for (int w0 = 0; w0 < p.w; w0 += L::kPixels) {
        if (w0 > 0) __syncthreads();  // everyone has multiplied
        for (int i = tid; i < L::kPixels * (L::kChannels / kVector); i += L::kThreads) {
            const int pixel = i / (L::kChannels / kVector);
            const int v = i % (L::kChannels / kVector) * kVector;
            uint16_t* const to = tile + pixel * L::kRow + v;
            if (w0 + pixel < p.w && c0 + v < p.c)
                copy_async(to, p.x + (line * p.w + w0 + pixel) * p.c + c0 + v);
            else
                store_shared(to, make_uint4(0, 0, 0, 0));
        }
        commit_copies();
        wait_copies<0>();
        __syncthreads();
#pragma unroll
        for (int k = 0; k < L::kPixels; k += 16) {
            uint32_t member[4];
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                const int x = w0 + k + r / 2 * 8 + lane % 4 * 2, half = r % 2;
                const uint32_t low = x >= start[half] && x < end[half] ? one : 0;
                const uint32_t high = x + 1 >= start[half] && x + 1 < end[half] ? one : 0;
                member[r] = low | high << 16;
            }
#pragma unroll
            for (int i = 0; i < L::kPairs; ++i) {
                uint32_t right[4];
                load_matrix_transposed(right, tile + (k + lane % 16) * L::kRow +
                                                  (warp * L::kPairs + i) * 16 + lane / 16 * 8);
                multiply_add<T>(acc[i][0], member, right[0], right[1]);
                multiply_add<T>(acc[i][1], member, right[2], right[3]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < L::kPairs; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const int segment = lane / 4 + half * 8;
                const int c = c0 + (warp * L::kPairs + i) * 16 + j * 8 + lane % 4 * 2;
                if (segment < p.segments && c < p.c)
                    store_global(p.sums + (line * p.segments + segment) * p.c + c,
                                 make_float2(acc[i][j][half * 2], acc[i][j][half * 2 + 1]));
            }
}

template <int kKernelSize>
struct PoolJoinLayout {
    static constexpr int kThreads = 256, kWarps = kThreads / kWarpSize;
    static constexpr int kTileH = 4, kTileW = 8, kPixels = kTileH * kTileW, kOut = 64;
    static constexpr int kTaps = kKernelSize * kKernelSize, kAround = kKernelSize / 2;
    static constexpr int kHaloH = kTileH + 2 * kAround, kHaloW = kTileW + 2 * kAround;
    static constexpr int kHalo = kHaloH * kHaloW, kOutRow = kOut + kPad;  // words
    static constexpr int kWarpsM = kPixels / 16, kTilesN = kOut / 8 / (kWarps / kWarpsM);

    // Words per row of the means and of the joined map.
    __host__ __device__ static constexpr int mean_row(int c) { return round_up(c, 16) + kPad; }
    __host__ __device__ static constexpr int cat_row(int c, int width, int branches) {
        return round_up(c, 16) + branches * round_up(width, 16) + kPad;
    }
    static constexpr int kStageBytes = kPixels * kOutRow * 2;  // results over the joined map
    // Byte offsets. A product of 16 cells may read the 15 rows after a branch's last.
    static constexpr int kTable = 0, kAxis = kTable + kMaxBranches * 32;
    static constexpr int kMean = kAxis + kMaxBranches * (kHaloH + kHaloW) * 8;
    __host__ __device__ static constexpr int maps_at(int c, int cells) {
        return kMean + (cells + 15) * mean_row(c) * 2;
    }
    __host__ __device__ static constexpr int cat_at(int c, int width, int cells) {
        return maps_at(c, cells) + cells * (round_up(width, 16) + kPad) * 2;
    }
    __host__ __device__ static constexpr int bytes(int c, int width, int branches, int cells) {
        const int joined = kHalo * cat_row(c, width, branches) * 2;
        return cat_at(c, width, cells) + (joined > kStageBytes ? joined : kStageBytes);
    }
    static_assert(kTilesN * 8 * (kWarps / kWarpsM) == kOut && kTilesN % 2 == 0);
    static_assert(kMean % 16 == 0);
};

// The cells of one grid that a tile samples: `rows` x `columns` from (top, left), in row order from
// `first` of the block's; the grid, the first of its segments.
struct Cells {
    int top, left, rows, columns, first, bins, segment;
};

template <class T, int kKernelSize>
__global__ void __launch_bounds__(PoolJoinLayout<kKernelSize>::kThreads, 3)
    pool_join_kernel(PyramidPoolParams p) {
    if (!has_tensor_cores<T>()) return;
    using L = PoolJoinLayout<kKernelSize>;
    const int cin = round_up(p.c, 16), width = round_up(p.width, 16), map_row = width + kPad;
    const int mean_row = L::mean_row(p.c), cat_row = L::cat_row(p.c, p.width, p.branches);
    char* shared = shared_memory();
    auto words = [&](int at) { return reinterpret_cast<uint16_t*>(shared + at); };
    float2* const axis = reinterpret_cast<float2*>(shared + L::kAxis);
    uint16_t* const mean = words(L::kMean);
    uint16_t* const maps = words(L::maps_at(p.c, p.cells));
    uint16_t* const cat = words(L::cat_at(p.c, p.width, p.cells));

    const int tid = threadIdx.x, warp = tid / kWarpSize, lane = tid % kWarpSize;
    const int tiles_x = ceil_div(p.w, L::kTileW);
    const int oy0 = blockIdx.x / tiles_x * L::kTileH, ox0 = blockIdx.x % tiles_x * L::kTileW;
    const int iy0 = oy0 - L::kAround, ix0 = ox0 - L::kAround, o0 = blockIdx.y * L::kOut;
    const int64_t image = blockIdx.z;
    const int bins[kMaxBranches] = {p.bins[0], p.bins[1], p.bins[2], p.bins[3]};
    auto bins_of = [&](int b) {  // no index: parameters would be copied to local memory
        return b < 2 ? (b < 1 ? bins[0] : bins[1]) : b < 3 ? bins[2] : bins[3];
    };
    auto inside = [&](int pixel) {
        const int y = iy0 + pixel / L::kHaloW, x = ix0 + pixel % L::kHaloW;
        return static_cast<unsigned>(y) < static_cast<unsigned>(p.h) &&
               static_cast<unsigned>(x) < static_cast<unsigned>(p.w);
    };

    // x, where the join reads it.
    const int x_vectors = cin / kVector;
    for (int i = tid; i < L::kHalo * x_vectors; i += L::kThreads) {
        const int pixel = i / x_vectors, v = i % x_vectors * kVector;
        const int64_t y = iy0 + pixel / L::kHaloW, x = ix0 + pixel % L::kHaloW;
        if (inside(pixel) && v < p.c)
            copy_async(cat + pixel * cat_row + v, p.x + ((image * p.h + y) * p.w + x) * p.c + v);
        else
            store_shared(cat + pixel * cat_row + v, make_uint4(0, 0, 0, 0));
    }
    commit_copies();
    // Where the halo's rows and columns sample each grid.
    for (int i = tid; i < p.branches * (L::kHaloH + L::kHaloW); i += L::kThreads) {
        const int b = i / (L::kHaloH + L::kHaloW), k = i % (L::kHaloH + L::kHaloW);
        const bool is_row = k < L::kHaloH;
        const int size = is_row ? p.h : p.w;
        const int at = is_row ? iy0 + k : ix0 + k - L::kHaloH;
        store_shared(axis + i, axis_sample(min(max(at, 0), size - 1), bins_of(b), size,
                                           p.align_corners));
    }
    __syncthreads();
    auto sampled = [&](int b, int k) {
        return load_shared<float2>(axis + b * (L::kHaloH + L::kHaloW) + k);
    };
    int* const table = reinterpret_cast<int*>(shared + L::kTable);
    if (tid < p.branches) {  // each counts the cells before its own
        Cells mine{};
        for (int b = 0, first = 0, segment = 0; b <= tid; ++b) {
            const int last = bins_of(b) - 1;
            const int top = static_cast<int>(sampled(b, 0).x);
            const int left = static_cast<int>(sampled(b, L::kHaloH).x);
            const int bottom = static_cast<int>(sampled(b, L::kHaloH - 1).x) + 1;
            const int right = static_cast<int>(sampled(b, L::kHaloH + L::kHaloW - 1).x) + 1;
            mine = {top, left, min(bottom, last) - top + 1, min(right, last) - left + 1, first,
                    bins_of(b), segment};
            first += mine.rows * mine.columns;
            segment += bins_of(b);
        }
        store_shared(table + tid * 8, make_uint4(mine.top, mine.left, mine.rows, mine.columns));
        store_shared(table + tid * 8 + 4, make_uint4(mine.first, mine.bins, mine.segment, 0));
    }
    __syncthreads();
    auto cells = [&](int b) {
        const uint4 u = load_shared<uint4>(table + b * 8);
        const uint4 v = load_shared<uint4>(table + b * 8 + 4);
        return Cells{int(u.x), int(u.y), int(u.z), int(u.w), int(v.x), int(v.y), int(v.z)};
    };
    const Cells behind = cells(p.branches - 1);
    const int total = behind.first + behind.rows * behind.columns;

    // Means of the cells, four channels at a time.
    const int quads = cin / 4;
#pragma unroll 1
    for (int i = tid; i < total * quads; i += L::kThreads) {
        const int cell = i / quads, c = i % quads * 4;
        int branch = p.branches - 1;
        while (cell < load_shared<int>(table + branch * 8 + 4)) --branch;
        const Cells of = cells(branch);
        const int grid = of.bins, y = of.top + (cell - of.first) / of.columns;
        const int x = of.left + (cell - of.first) % of.columns;
        const int top = y * p.h / grid, bottom = ceil_div((y + 1) * p.h, grid);
        const int left = x * p.w / grid, right = ceil_div((x + 1) * p.w, grid);
        float sum[4] = {0.f, 0.f, 0.f, 0.f};
        if (c < p.c) {
            const int64_t pitch = static_cast<int64_t>(p.segments) * p.c;
            const float* row = p.sums + (image * p.h + top) * pitch +
                               static_cast<int64_t>(of.segment + x) * p.c + c;
#pragma unroll 8
            for (int r = top; r < bottom; ++r, row += pitch) {
                const float4 v = load_global<float4>(row);
                sum[0] += v.x, sum[1] += v.y, sum[2] += v.z, sum[3] += v.w;
            }
        }
        const float area = static_cast<float>((bottom - top) * (right - left));
        store_shared(mean + cell * mean_row + c,
                     make_uint2(pack<T>(sum[0] / area, sum[1] / area),
                                pack<T>(sum[2] / area, sum[3] / area)));
    }
    __syncthreads();  // the means are complete

    // Branches: warps take 16 cells x 16 outputs.
    const Bounds relu{0.f, INFINITY};
    int unit = warp;
#pragma unroll 1
    for (int b = 0; b < p.branches; ++b) {
        const Cells of = cells(b);
        const int count = of.rows * of.columns, pairs = width / 16;
        const int units = ceil_div(count, 16) * pairs;
#pragma unroll 1
        for (; unit < units; unit += L::kWarps) {
            const int row0 = unit / pairs * 16, pair = unit % pairs;
            float sum[1][2][4];
            set_zero(sum);
            const uint16_t* const a[1] = {
                mean + (of.first + row0 + lane % 16) * mean_row + lane / 16 * 8};
            const uint4* const weight = reinterpret_cast<const uint4*>(p.branch) +
                                        (b * (cin / 16) * pairs + pair) * kWarpSize + lane;
            multiply_fragments<T>(sum, a, weight, pairs * kWarpSize, cin / 16);
            each_pair(sum, [&](int row, int column, float u, float v) {
                if (row0 + row >= count) return;
                const int at = pair * 16 + column;
                const float2 bias = load_global<float2>(p.branch_bias + b * width + at);
                store_shared(maps + (of.first + row0 + row) * map_row + at,
                             pack<T>(clamp(u + bias.x, relu), clamp(v + bias.y, relu)));
            });
        }
        unit -= units;
    }
    __syncthreads();  // the maps are complete

    // Samples beside x.
    const int map_quads = width / 4;
#pragma unroll 1
    for (int b = 0; b < p.branches; ++b) {
        const Cells of = cells(b);
        const int last = of.bins - 1;
#pragma unroll 1
        for (int i = tid; i < L::kHalo * map_quads; i += L::kThreads) {
            const int pixel = i / map_quads, c = i % map_quads * 4;
            const float2 row = sampled(b, pixel / L::kHaloW);
            const float2 column = sampled(b, L::kHaloH + pixel % L::kHaloW);
            const int y = static_cast<int>(row.x), x = static_cast<int>(column.x);
            float sum[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const int cell = of.first +
                                 (min(y + k / 2, last) - of.top) * of.columns +
                                 min(x + k % 2, last) - of.left;
                const float weight =
                    (k / 2 ? row.y : 1.f - row.y) * (k % 2 ? column.y : 1.f - column.y);
                float v[4];
                unpack4<T>(v, load_shared<uint2>(maps + cell * map_row + c));
#pragma unroll
                for (int j = 0; j < 4; ++j) sum[j] = fmaf(weight, v[j], sum[j]);
            }
            const bool known = inside(pixel);
            store_shared(cat + pixel * cat_row + cin + b * width + c,
                         make_uint2(known ? pack<T>(sum[0], sum[1]) : 0u,
                                    known ? pack<T>(sum[2], sum[3]) : 0u));
        }
    }
    wait_copies<0>();
    __syncthreads();  // the joined map is complete

    const int m0 = warp % L::kWarpsM * 16, n0 = warp / L::kWarpsM * L::kTilesN * 8;
    const int steps = (cat_row - kPad) / 16, step = p.o_stride / 16 * kWarpSize;
    const int pixel = m0 + lane % 16;
    const uint4* weight = reinterpret_cast<const uint4*>(p.join) +
                          (o0 + n0) / 16 * kWarpSize + lane;
    float acc[1][L::kTilesN][4];
    set_zero(acc);
#pragma unroll 1
    for (int t = 0; t < L::kTaps; ++t, weight += steps * step) {
        const int at = (pixel / L::kTileW + t / kKernelSize) * L::kHaloW + pixel % L::kTileW +
                       t % kKernelSize;
        const uint16_t* const a[1] = {cat + at * cat_row + lane / 16 * 8};
        multiply_fragments<T>(acc, a, weight, step, steps);
    }
    __syncthreads();  // the joined map is done with
    uint16_t* const stage = cat;
    each_pair(acc, [&](int row, int column, float u, float v) {
        const float2 bias = load_global<float2>(p.join_bias + o0 + n0 + column);
        store_shared(stage + (m0 + row) * L::kOutRow + n0 + column,
                     pack<T>(clamp(u + bias.x, relu), clamp(v + bias.y, relu)));
    });
    __syncthreads();
    for (int i = tid; i < L::kPixels * (L::kOut / kVector); i += L::kThreads) {
        const int at = i / (L::kOut / kVector), v = i % (L::kOut / kVector) * kVector;
        const int oy = oy0 + at / L::kTileW, ox = ox0 + at % L::kTileW;
        if (oy < p.h && ox < p.w && o0 + v < p.o)
            store_global(p.y + ((image * p.h + oy) * p.w + ox) * p.o + o0 + v,
                         load_shared<uint4>(stage + at * L::kOutRow + v));
    }
}

}  // namespace fastscnn
