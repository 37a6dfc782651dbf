// inverted_residual: expand 1x1, depthwise 3x3, project 1x1, optionally plus the input.

#include "rows.h"

namespace fastscnn::FASTSCNN_ISA {
namespace {

// Hidden channels that are in work at a time.
constexpr int kChunk = 128;
constexpr int kChunkPanels = kChunk / (kMaxVecs * kLanes);

// Rows of hidden channels `first` .. `first + count - 1` (panels begin .. end - 1 of `expand`).
struct Chunk {
    int begin, end;    // panels
    int first, count;  // channels, padded
};

struct Worker {
    const InvertedResidualParams& p;
    Panels panels;
    Ring hidden;
    float* mid;   // [kRun, kChunk]
    float* zero;  // a pixel of zeros

    void expand(const Chunk& c, const float* image) {
        const int y = hidden.next++;
        Gemm g =
            matrix_product(p.expand, image + int64_t(y) * p.w * p.expand.k, nullptr, kChunk, p.act);
        g.channels = pitch_of(p.expand.out);  // padding becomes act(0) = 0
        g.y = hidden.row(y) - c.first;
        gemm(g, panels, c.begin, c.end, p.w);
    }

    // Adds the chunk's part to output row y; the first chunk starts it.
    void project(const Chunk& c, const float* image, int y, int out_w, float* out) {
        DepthwiseRow d = depthwise(p.taps, p.w, p.stride, 1, p.act);
        d.w += c.first;
        d.bias += c.first;
        d.channels = c.count;
        d.y = mid;
        d.y_stride = kChunk;
        for (int ky = 0; ky < 3; ++ky) {
            const int row = y * p.stride + ky - 1;
            set_row(d, ky, hidden.row(row < 0 ? 0 : row), kChunk, row, p.h, zero);
        }
        for (int x = 0; x < out_w; x += kRun) {
            const int n = out_w - x < kRun ? out_w - x : kRun;
            depthwise_row(d, x, x + n);
            float* to = out + int64_t(x) * p.project.out;
            Gemm g = matrix_product(p.project, mid, to, p.project.out, kNone);
            g.k = c.first + c.count < p.project.k ? c.count : p.project.k - c.first;
            g.k_begin = c.first;
            g.x_stride = kChunk;
            g.add_stride = p.project.out;
            if (c.first > 0) {
                g.bias = nullptr;
                g.add = to;
            } else if (p.residual) {
                g.add = image + (int64_t(y) * p.w + x) * p.expand.k;
            }
            gemm(g, n);
        }
    }
};

}  // namespace

// A unit is a band of output rows; it goes through the hidden channels in chunks of kChunk, whose
// three rows stay in L2 (0.4 MB for a map 256 wide) and whose weights nearly fit L1. Every chunk
// reads the band's input and adds to its output; neighbouring bands repeat two rows of the
// expansion. Bound by multiply-adds. The order of the sums does not depend on the bands.
int64_t inverted_residual(const InvertedResidualParams& p) {
    const int out_h = strided(p.h, p.stride), out_w = strided(p.w, p.stride);
    const int64_t ring = padded(3 * int64_t(p.w) * kChunk), mid = padded(kRun * kChunk);
    const int64_t thread_floats = ring + mid + kChunk;
    if (!p.scratch) return p.threads * thread_floats;

    const int per_image = (p.threads + p.batch - 1) / p.batch;
    const int bands = out_h < per_image ? out_h : per_image;
    const Panels panels(p.expand.out);
    share(p, int64_t(p.batch) * bands, [&](int unit, int thread) {
        Arena arena{p.scratch + thread * thread_floats};
        float* rows = arena.take(ring);
        Worker worker{p,
                      panels,
                      {rows, int64_t(p.w) * kChunk, kChunk, p.h},
                      arena.take(mid),
                      arena.take(kChunk)};
        fill_zero(worker.zero, kChunk);
        const int n = unit / bands;
        const Share band(out_h, unit % bands, bands);
        const float* image = p.x + int64_t(n) * p.h * p.w * p.expand.k;
        float* out = p.y + int64_t(n) * out_h * out_w * p.project.out;
        for (int i = 0; i < panels.count; i += kChunkPanels) {
            const int end = i + kChunkPanels < panels.count ? i + kChunkPanels : panels.count;
            const Chunk chunk = {i, end, panels.begin(i) * kLanes,
                                 (panels.begin(end) - panels.begin(i)) * kLanes};
            const int first = band.begin * p.stride - 1;
            worker.hidden.next = first < 0 ? 0 : first;
            for (int y = band.begin; y < band.end; ++y) {
                const int last = y * p.stride + 1 < p.h ? y * p.stride + 1 : p.h - 1;
                while (worker.hidden.next <= last) worker.expand(chunk, image);
                worker.project(chunk, image, y, out_w, out + int64_t(y) * out_w * p.project.out);
            }
        }
    });
    return 0;
}

}  // namespace fastscnn::FASTSCNN_ISA
