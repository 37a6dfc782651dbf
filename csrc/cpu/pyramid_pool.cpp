// pyramid_pool: adaptive average pools, 1x1 + ReLU each, bilinear back, joined with the input by a
// 1x1 or 3x3 convolution, ReLU.

#include "rows.h"

namespace fastscnn::FASTSCNN_ISA {
namespace {

// Mean over one bin of one image: rows are summed apart, so that long sums stay exact.
void pool(const PyramidPoolParams& p, const float* image, int bins, int by, int bx, float* row_sum,
          float* mean) {
    const int channels = p.channels;
    const int y0 = by * p.h / bins, y1 = ((by + 1) * p.h + bins - 1) / bins;
    const int x0 = bx * p.w / bins, x1 = ((bx + 1) * p.w + bins - 1) / bins;
    fill_zero(mean, channels);
    for (int y = y0; y < y1; ++y) {
        fill_zero(row_sum, channels);
        for (int x = x0; x < x1; ++x) {
            const float* from = image + (int64_t(y) * p.w + x) * channels;
            for (int c = 0; c < channels; ++c) row_sum[c] += from[c];
        }
        for (int c = 0; c < channels; ++c) mean[c] += row_sum[c];
    }
    const float scale = 1.f / float((y1 - y0) * (x1 - x0));
    for (int c = 0; c < channels; ++c) mean[c] *= scale;
}

// Samples row y of a bins x bins map [channels] and stores it, or adds it, pixel by pixel.
template <bool kAdd>
void upsample(const AxisView& rows, const AxisView& cols, const float* map, int channels, int y,
              float* blend, float* to, int64_t to_stride) {
    const int source = cols.in * channels;
    const float* top = map + int64_t(rows.index[y]) * source;
    const float* bottom = rows.index[y] + 1 < rows.in ? top + source : top;
    for (int i = 0; i < source; ++i) blend[i] = rows.w0[y] * top[i] + rows.w1[y] * bottom[i];
    for (int x = 0; x < cols.out; ++x, to += to_stride) {
        const float* left = blend + int64_t(cols.index[x]) * channels;
        const float* right = cols.index[x] + 1 < cols.in ? left + channels : left;
        const float w0 = cols.w0[x], w1 = cols.w1[x];
        for (int c = 0; c < channels; ++c) {
            const float v = w0 * left[c] + w1 * right[c];
            to[c] = kAdd ? to[c] + v : v;
        }
    }
}

// The pieces of scratch memory; one set for all threads unless it says otherwise.
struct Memory {
    float* maps[kMaxBranches];  // [batch, bins, bins, map channels]
    float* joined;              // join 3x3: [batch, h + 2, w + 2, join.k / 9], zeros around
    float* thread;              // [threads, thread_floats]
    int64_t thread_floats;
    int64_t floats;
};

// A 1x1 join commutes with the upsampling: it is applied to the bins, whose maps then have the
// join's outputs as channels. Before a 3x3 join they have the branches' own.
const Matrix& map_matrix(const PyramidPoolParams& p, int b) {
    return p.join_kernel == 1 ? p.slice[b] : p.branch[b];
}

Memory layout(const PyramidPoolParams& p) {
    Arena arena{p.scratch};
    Memory m{};
    int widest = pitch_of(p.channels), most_bins = 1;
    for (int b = 0; b < p.branches; ++b) {
        const int channels = map_matrix(p, b).out, cells = p.bins[b] * p.bins[b];
        m.maps[b] = arena.take(int64_t(p.batch) * cells * channels);
        if (channels > widest) widest = channels;
        if (p.branch[b].out > widest) widest = p.branch[b].out;
        if (p.bins[b] > most_bins) most_bins = p.bins[b];
    }
    if (p.join_kernel == 3)
        m.joined = arena.take(int64_t(p.batch) * (p.h + 2) * (p.w + 2) * (p.join.k / 9));
    const int64_t row = p.join_kernel == 1 ? int64_t(p.w) * p.join.out : 0;
    m.thread_floats = padded(row) + padded(int64_t(most_bins) * widest) + 3 * padded(widest);
    m.thread = arena.take(p.threads * m.thread_floats);
    m.floats = arena.used;
    return m;
}

// Pools one bin of one image, applies its branch and, before a 1x1 join, its part of the join.
void make_cell(const PyramidPoolParams& p, const Memory& m, int n, int b, int cell, Arena arena) {
    const int bins = p.bins[b], widest = pitch_of(p.channels);
    float* row_sum = arena.take(widest);
    float* mean = arena.take(widest);
    pool(p, p.x + int64_t(n) * p.h * p.w * p.channels, bins, cell / bins, cell % bins, row_sum,
         mean);
    const int channels = map_matrix(p, b).out;
    float* to = m.maps[b] + (int64_t(n) * bins * bins + cell) * channels;
    if (p.join_kernel == 1) {
        float* branch = arena.take(p.branch[b].out);
        gemm(matrix_product(p.branch[b], mean, branch, p.branch[b].out, kRelu), 1);
        gemm(matrix_product(p.slice[b], branch, to, channels, kNone), 1);
    } else {
        gemm(matrix_product(p.branch[b], mean, to, channels, kRelu), 1);
    }
}

// Output row of a 1x1 join: the sampled branches, then the product with x on top.
void join_row(const PyramidPoolParams& p, const Memory& m, int n, int y, Arena arena) {
    const int outs = p.join.out;
    float* sum = arena.take(int64_t(p.w) * outs);
    float* blend = arena.take(0);
    for (int b = 0; b < p.branches; ++b) {
        const float* map = m.maps[b] + int64_t(n) * p.bins[b] * p.bins[b] * outs;
        (b == 0 ? upsample<false> : upsample<true>)(p.rows[b], p.cols[b], map, outs, y, blend, sum,
                                                    outs);
    }
    const int64_t at = (int64_t(n) * p.h + y) * p.w;
    Gemm g = matrix_product(p.join, p.x + at * p.channels, p.y + at * outs, outs, kRelu);
    g.add = sum;
    g.add_stride = outs;
    gemm(g, p.w);
}

// Row y of the input of a 3x3 join, y from -1 to h, with a pixel of zeros on both sides.
void concat_row(const PyramidPoolParams& p, const Memory& m, int n, int y, Arena arena) {
    const int channels = p.join.k / 9;
    const int64_t row_floats = int64_t(p.w + 2) * channels;
    float* to = m.joined + (int64_t(n) * (p.h + 2) + y + 1) * row_floats;
    if (y < 0 || y >= p.h) {
        fill_zero(to, row_floats);
        return;
    }
    fill_zero(to, channels);
    fill_zero(to + row_floats - channels, channels);
    to += channels;
    float* blend = arena.take(0);
    for (int b = 0; b < p.branches; ++b) {
        const int wide = p.branch[b].out;
        const float* map = m.maps[b] + int64_t(n) * p.bins[b] * p.bins[b] * wide;
        upsample<false>(p.rows[b], p.cols[b], map, wide, y, blend, to + p.offset[b], channels);
    }
    const float* x = p.x + (int64_t(n) * p.h + y) * p.w * p.channels;
    for (int i = 0; i < p.w; ++i)
        std::memcpy(to + int64_t(i) * channels + p.offset[p.branches], x + int64_t(i) * p.channels,
                    p.channels * sizeof(float));
}

void convolve_row(const PyramidPoolParams& p, const Memory& m, int n, int y) {
    const int channels = p.join.k / 9, outs = p.join.out;
    const int64_t row_floats = int64_t(p.w + 2) * channels;
    const int64_t at = (int64_t(n) * p.h + y) * p.w;
    Gemm g = matrix_product(p.join, nullptr, p.y + at * outs, outs, kRelu);
    three_rows(g, 3 * channels, channels);
    for (int ky = 0; ky < 3; ++ky)
        g.x[ky] = m.joined + (int64_t(n) * (p.h + 2) + y + ky) * row_floats;
    gemm(g, p.w);
}

}  // namespace

// Threads share the bins, then the rows. A 1x1 join is bound by its multiply-adds with x (the
// branches cost 50 pixels); a 3x3 join by its own, 18 times as many.
int64_t pyramid_pool(const PyramidPoolParams& p) {
    const Memory m = layout(p);
    if (!p.scratch) return m.floats;
    int cells = 0;
    for (int b = 0; b < p.branches; ++b) cells += p.bins[b] * p.bins[b];
    const auto arena = [&](int worker) { return Arena{m.thread + worker * m.thread_floats}; };
    share(p, int64_t(p.batch) * cells, [&](int unit, int worker) {
        int b = 0, cell = unit % cells;
        while (cell >= p.bins[b] * p.bins[b]) cell -= p.bins[b] * p.bins[b], ++b;
        make_cell(p, m, unit / cells, b, cell, arena(worker));
    });
    if (p.join_kernel == 1) {
        share(p, int64_t(p.batch) * p.h,
              [&](int unit, int worker) { join_row(p, m, unit / p.h, unit % p.h, arena(worker)); });
        return 0;
    }
    share(p, int64_t(p.batch) * (p.h + 2), [&](int unit, int worker) {
        concat_row(p, m, unit / (p.h + 2), unit % (p.h + 2) - 1, arena(worker));
    });
    share(p, int64_t(p.batch) * p.h,
          [&](int unit, int) { convolve_row(p, m, unit / p.h, unit % p.h); });
    return 0;
}

}  // namespace fastscnn::FASTSCNN_ISA
