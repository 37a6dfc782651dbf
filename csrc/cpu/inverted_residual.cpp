// inverted_residual: expand 1x1, depthwise 3x3, project 1x1, optionally plus the input.

#include "rows.h"

namespace fastscnn::FASTSCNN_ISA {
namespace {

// Hidden channels that are in work at a time.
constexpr int kChunk = 128;
constexpr int kPitch = spread(kChunk);  // floats between pixels
constexpr int kChunkPanels = kChunk / (kMaxVecs * kLanes);

// Hidden maps up to this many floats (2 MB) may exist as a whole, in the caches.
constexpr int64_t kWhole = 1 << 19;

// Rows of hidden channels `first` .. `first + count - 1` (panels begin .. end - 1 of `expand`).
struct Chunk {
    int begin, end;    // panels
    int first, count;  // channels, padded

    Chunk(const Panels& panels, int i)
        : begin(i * kChunkPanels),
          end(begin + kChunkPanels < panels.count ? begin + kChunkPanels : panels.count),
          first(panels.begin(begin) * kLanes),
          count(panels.begin(end) * kLanes - first) {}
};

// Some rows of a chunk of the hidden map: row y lies at y % rows.
struct Hidden {
    float* data;
    int64_t row_floats;
    int rows;

    float* row(int y) const { return data + (y % rows) * row_floats; }
};

struct Worker {
    const InvertedResidualParams& p;
    const Panels& panels;
    float* mid;   // [kRun, kPitch]
    float* zero;  // a pixel of zeros

    void expand(const Chunk& c, const float* image, int y, const Hidden& hidden) const {
        Gemm g =
            matrix_product(p.expand, image + int64_t(y) * p.w * p.expand.k, nullptr, kPitch, p.act);
        g.channels = pitch_of(p.expand.out);  // padding becomes act(0) = 0
        g.y = hidden.row(y) - c.first;
        gemm(g, panels, c.begin, c.end, p.w);
    }

    // Adds the chunk's part to output row y; the first chunk starts it.
    void project(const Chunk& c, const float* image, int y, const Hidden& hidden, int out_w,
                 float* out) const {
        DepthwiseRow d = depthwise(p.taps, p.w, p.stride, 1, p.act);
        d.w += c.first;
        d.bias += c.first;
        d.channels = c.count;
        to_product(d, mid, kPitch);
        for (int ky = 0; ky < 3; ++ky) {
            const int row = y * p.stride + ky - 1;
            set_row(d, ky, hidden.row(row < 0 ? 0 : row), kPitch, row, p.h, zero);
        }
        for (int x = 0; x < out_w; x += kRun) {
            const int n = out_w - x < kRun ? out_w - x : kRun;
            depthwise_row(d, x, x + n);
            float* to = out + int64_t(x) * p.project.out;
            Gemm g = product_of(d, p.project, to, p.project.out, kNone);
            g.k = c.first + c.count < p.project.k ? c.count : p.project.k - c.first;
            g.k_begin = c.first;
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

// Goes through the hidden channels in chunks of kChunk, whose weights nearly fit L1. Every chunk
// adds to the output, in the same order whoever does what. Bound by multiply-adds. Two ways:
//
// Where the hidden map is small and threads would share an image, all rows are expanded, then all
// output rows are made: nothing is done twice, and the units are small.
//
// Else a unit is a band of output rows, whose three rows of a chunk stay in L2 (0.4 MB for a map
// 256 wide); every chunk reads the band's input, and neighbouring bands repeat two rows of the
// expansion.
int64_t inverted_residual(const InvertedResidualParams& p) {
    const int out_h = strided(p.h, p.stride), out_w = strided(p.w, p.stride);
    const Panels panels(p.expand.out);
    const int chunks = (panels.count + kChunkPanels - 1) / kChunkPanels;
    const int per_image = (p.threads + p.batch - 1) / p.batch;
    const int bands = out_h < per_image ? out_h : per_image;
    const int64_t row_floats = int64_t(p.w) * kPitch, chunk_floats = p.h * row_floats;
    const int64_t whole_floats = p.batch * chunks * chunk_floats;
    const bool whole = bands > 1 && whole_floats <= kWhole;
    const int64_t ring = whole ? 0 : padded(3 * row_floats), mid = padded(kRun * kPitch);
    const int64_t thread_floats = ring + mid + kChunk;
    if (!p.scratch) return p.threads * thread_floats + (whole ? whole_floats : 0);

    const auto image = [&](int n) { return p.x + int64_t(n) * p.h * p.w * p.expand.k; };
    const auto output = [&](int n, int y) {
        return p.y + (int64_t(n) * out_h + y) * out_w * p.project.out;
    };
    const auto worker = [&](float* scratch) {
        Worker w{p, panels, scratch, scratch + mid};
        fill_zero(w.zero, kChunk);
        return w;
    };
    if (whole) {
        const auto hidden = [&](int n, int chunk) {
            float* all = p.scratch + p.threads * thread_floats;
            return Hidden{all + (int64_t(n) * chunks + chunk) * chunk_floats, row_floats, p.h};
        };
        share(p, int64_t(p.batch) * p.h, [&](int unit, int thread) {
            const Worker w = worker(p.scratch + thread * thread_floats);
            const int n = unit / p.h, y = unit % p.h;
            for (int i = 0; i < chunks; ++i) w.expand(Chunk(panels, i), image(n), y, hidden(n, i));
        });
        share(p, int64_t(p.batch) * out_h, [&](int unit, int thread) {
            const Worker w = worker(p.scratch + thread * thread_floats);
            const int n = unit / out_h, y = unit % out_h;
            for (int i = 0; i < chunks; ++i)
                w.project(Chunk(panels, i), image(n), y, hidden(n, i), out_w, output(n, y));
        });
        return 0;
    }
    share(p, int64_t(p.batch) * bands, [&](int unit, int thread) {
        float* scratch = p.scratch + thread * thread_floats;
        const Hidden hidden{scratch, row_floats, 3};
        const Worker w = worker(scratch + ring);
        const int n = unit / bands;
        const Share band(out_h, unit % bands, bands);
        for (int i = 0; i < chunks; ++i) {
            const Chunk chunk(panels, i);
            int next = band.begin > 0 ? band.begin * p.stride - 1 : 0;  // first row not expanded
            for (int y = band.begin; y < band.end; ++y) {
                const int last = y * p.stride + 1 < p.h ? y * p.stride + 1 : p.h - 1;
                for (; next <= last; ++next) w.expand(chunk, image(n), next, hidden);
                w.project(chunk, image(n), y, hidden, out_w, output(n, y));
            }
        }
    });
    return 0;
}

}  // namespace fastscnn::FASTSCNN_ISA
