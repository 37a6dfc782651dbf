// Bilinear to full size and argmax: scores to uint8 labels, optionally with their probability.
//
// A block owns kRows x kColumns target pixels. It first finds the best class of every source pixel
// under its tile (kRun = 8 only). A thread then owns runs of kRun target pixels of a row. A run of
// 8 at scale <= 1/7 lies between 2 rows and 3 columns of scores. Where one class is best at all
// six, it is best in between, to the last bit: w0 a + w1 b with fixed weights is monotone in a and
// b, in floating point too (a + t (b - a) is not). The run is then a fill; the others are gathered
// and done class by class, so that warps stay full.
// Bound by bytes (1 label per pixel, K scores per source pixel) where maps are smooth, by 3 K
// FMA-like operations per pixel where they are not.
#pragma once

#include "common.cuh"
#include "kernels.h"

namespace fastscnn {

struct ArgmaxHeadLayout {
    static constexpr int kThreads = 256, kRows = 32, kColumns = 128;
    static constexpr int kMaxCorners = 1024;  // source pixels under a tile at scale <= 1/7
    static constexpr int kRuns = kRows * kColumns / 8;
    static constexpr int kAxis = 0, kBest = kAxis + (kRows + kColumns) * 8,
                         kMixed = kBest + kMaxCorners * 2, kCount = kMixed + kRuns * 2,
                         kBytes = kCount + 16;
    static_assert((kRows / 7 + 3) * (kColumns / 7 + 3) <= kMaxCorners);
    static_assert(kRows + kColumns <= kThreads);
};

template <class T>
__device__ __forceinline__ float load_score(const uint16_t* p) {
    return unpack<T>(load_global<uint16_t>(p)).x;
}

__device__ __forceinline__ float blend(float w0, float a, float w1, float b) {
    return fmaf(w1, b, __fmul_rn(w0, a));
}

template <class T, int kRun, bool kConfidence>
__global__ void __launch_bounds__(ArgmaxHeadLayout::kThreads)
    argmax_head_kernel(ArgmaxHeadParams p) {
    using L = ArgmaxHeadLayout;
    char* shared = shared_memory();
    float2* axis = reinterpret_cast<float2*>(shared + L::kAxis);  // kRows rows, kColumns columns
    uint16_t* best = reinterpret_cast<uint16_t*>(shared + L::kBest);
    uint16_t* mixed = reinterpret_cast<uint16_t*>(shared + L::kMixed);
    int* count = reinterpret_cast<int*>(shared + L::kCount);

    const int tid = threadIdx.x;
    const int row0 = blockIdx.y * L::kRows, column0 = blockIdx.x * L::kColumns;
    const int64_t plane = static_cast<int64_t>(p.h) * p.w;
    const uint16_t* scores = p.scores + blockIdx.z * plane * p.classes;

    if (tid < L::kRows)
        store_shared(axis + tid,
                     axis_sample(min(row0 + tid, p.oh - 1), p.h, p.oh, p.align_corners));
    else if (tid < L::kRows + L::kColumns)
        store_shared(axis + tid, axis_sample(min(column0 + tid - L::kRows, p.ow - 1), p.w, p.ow,
                                             p.align_corners));
    if (tid == 0) store_shared(count, 0);
    __syncthreads();

    // Source rows and columns under the tile; beyond the map they repeat its last ones.
    const int source_row0 = static_cast<int>(load_shared<float2>(axis).x);
    const int source_column0 = static_cast<int>(load_shared<float2>(axis + L::kRows).x);
    const int width = static_cast<int>(load_shared<float2>(axis + L::kRows + L::kColumns - 1).x) -
                      source_column0 + 3;
    if (kRun > 1 && !kConfidence) {
        const int height =
            static_cast<int>(load_shared<float2>(axis + L::kRows - 1).x) - source_row0 + 2;
        for (int i = tid; i < width * height; i += L::kThreads) {
            const int y = min(source_row0 + i / width, p.h - 1);
            const int x = min(source_column0 + i % width, p.w - 1);
            const uint16_t* s = scores + static_cast<int64_t>(y) * p.w + x;
            float top = -INFINITY;
            int label = 0;
            for (int k = 0; k < p.classes; ++k) {
                const float v = load_score<T>(s + k * plane);
                if (v > top) top = v, label = k;
            }
            store_shared(best + i, static_cast<uint16_t>(label));
        }
        __syncthreads();
    }

    constexpr int kRunsPerRow = L::kColumns / kRun;
    auto store_run = [&](int row, int column, const uint32_t(&labels)[kRun]) {
        uint8_t* y = p.labels + (static_cast<int64_t>(blockIdx.z) * p.oh + row) * p.ow + column;
        if (kRun == 8 && p.ow % 8 == 0) {
            uint32_t words[2] = {0, 0};
#pragma unroll
            for (int t = 0; t < kRun; ++t) words[t / 4] |= labels[t] << (t % 4 * 8);
            store_global(y, make_uint2(words[0], words[1]));
        } else {
#pragma unroll
            for (int t = 0; t < kRun; ++t)
                if (column + t < p.ow) store_global(y + t, static_cast<uint8_t>(labels[t]));
        }
    };

    // Class by class: two or three vertical blends, then one horizontal per pixel.
    auto work = [&](int run) {
        const int r = run / kRunsPerRow, c = run % kRunsPerRow * kRun;
        const float2 fy = load_shared<float2>(axis + r);
        const int y0 = static_cast<int>(fy.x), y1 = min(y0 + 1, p.h - 1);
        const int x0 = static_cast<int>(load_shared<float2>(axis + L::kRows + c).x);
        const int x1 = min(x0 + 1, p.w - 1), x2 = min(x0 + 2, p.w - 1);
        float weight[kRun], top[kRun], total[kRun];
        bool second[kRun];
        uint32_t label[kRun];
#pragma unroll
        for (int t = 0; t < kRun; ++t) {
            const float2 fx = load_shared<float2>(axis + L::kRows + c + t);
            weight[t] = fx.y, second[t] = kRun > 1 && static_cast<int>(fx.x) > x0;
            top[t] = -INFINITY, total[t] = 0.f, label[t] = 0;
        }
        const uint16_t* upper = scores + static_cast<int64_t>(y0) * p.w;
        const uint16_t* lower = scores + static_cast<int64_t>(y1) * p.w;
        for (int k = 0; k < p.classes; ++k, upper += plane, lower += plane) {
            const float w1 = fy.y, w0 = 1.f - w1;
            const float a = blend(w0, load_score<T>(upper + x0), w1, load_score<T>(lower + x0));
            const float b = blend(w0, load_score<T>(upper + x1), w1, load_score<T>(lower + x1));
            float d = b;
            if (kRun > 1) d = blend(w0, load_score<T>(upper + x2), w1, load_score<T>(lower + x2));
#pragma unroll
            for (int t = 0; t < kRun; ++t) {
                const float v = blend(1.f - weight[t], second[t] ? b : a, weight[t],
                                      second[t] ? d : b);
                const bool better = v > top[t];
                if (kConfidence) {
                    const float e = __expf(-fabsf(v - top[t]));
                    total[t] = better ? fmaf(total[t], e, 1.f) : total[t] + e;
                }
                top[t] = better ? v : top[t];
                label[t] = better ? k : label[t];
            }
        }
        store_run(row0 + r, column0 + c, label);
        if (kConfidence)
#pragma unroll
            for (int t = 0; t < kRun; ++t)
                if (column0 + c + t < p.ow)
                    store_global(p.confidence + (static_cast<int64_t>(blockIdx.z) * p.oh + row0 +
                                                 r) * p.ow + column0 + c + t,
                                 1.f / total[t]);
    };

    for (int run = tid; run < L::kRows * kRunsPerRow; run += L::kThreads) {
        const int r = run / kRunsPerRow, c = run % kRunsPerRow * kRun;
        if (row0 + r >= p.oh || column0 + c >= p.ow) continue;
        if (kRun == 1 || kConfidence) {
            work(run);
            continue;
        }
        const uint16_t* corner =
            best + (static_cast<int>(load_shared<float2>(axis + r).x) - source_row0) * width +
            static_cast<int>(load_shared<float2>(axis + L::kRows + c).x) - source_column0;
        const uint32_t label = load_shared<uint16_t>(corner);
        bool same = true;
#pragma unroll
        for (int i = 1; i < 6; ++i)
            same &= load_shared<uint16_t>(corner + i / 3 * width + i % 3) == label;
        if (same) {
            uint32_t labels[kRun];
#pragma unroll
            for (int t = 0; t < kRun; ++t) labels[t] = label;
            store_run(row0 + r, column0 + c, labels);
        } else {
            store_shared(mixed + add_shared(count, 1), static_cast<uint16_t>(run));
        }
    }
    if (kRun == 1 || kConfidence) return;
    __syncthreads();
    for (int i = tid; i < load_shared<int>(count); i += L::kThreads)
        work(load_shared<uint16_t>(mixed + i));
}

}  // namespace fastscnn
