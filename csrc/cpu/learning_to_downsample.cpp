// learning_to_downsample: stem and two stride-2 depthwise separable convolutions, frame to 1/8.

#include "simd_int8.h"
#include "stem.h"

namespace fastscnn::FASTSCNN_ISA {
namespace {

// Bands per thread: smaller ones share the work more evenly, and repeat 7 stem rows each.
constexpr int kBands = 2;

// The stages of one band; each makes the rows that the next one asks for, once.
struct Cascade {
    const DownsampleParams& p;
    StemRows frame;
    Ring stem, middle;
    float* mid;   // [kRun, widest taps]
    float* zero;  // a pixel of zeros
    float* last;  // a final row, where bytes are wanted
    int image = 0;

    // Rows of the stem up to y.
    void make_stem(int y) {
        for (; stem.next <= y && stem.next < stem.height; ++stem.next)
            frame.convolve(image, stem.next, stem.row(stem.next), stem.x_stride);
    }

    // A row of a stage: a stride-2 dsconv of the ring before it.
    void dsconv2(const Ring& from, int width, const Taps& taps, const Matrix& weight, int y,
                 float* out, int64_t y_stride) {
        DepthwiseRow d = depthwise(taps, width, 2, 1, p.mid_act);
        for (int ky = 0; ky < 3; ++ky) {
            const int row = 2 * y + ky - 1;
            set_row(d, ky, from.row(row < 0 ? 0 : row), from.x_stride, row, from.height, zero);
        }
        dsconv_row(d, weight, p.act, 0, strided(width, 2), mid, out, y_stride);
    }

    void make_middle(int y) {
        for (; middle.next <= y && middle.next < middle.height; ++middle.next) {
            make_stem(2 * middle.next + 1);
            dsconv2(stem, p.stem.out_w, p.taps1, p.weight1, middle.next, middle.row(middle.next),
                    middle.x_stride);
        }
    }

    // Starts at final row y: the first rows that it needs.
    void start(int image_, int y) {
        image = image_;
        middle.next = y > 0 ? 2 * y - 1 : 0;
        stem.next = middle.next > 0 ? 2 * middle.next - 1 : 0;
    }
};

}  // namespace

// A unit is a band of final rows. Three rows of each stage (0.8 MB for a frame 2048 wide) stay in
// L2, so that memory sees the frame and the final map only; bound by multiply-adds.
int64_t learning_to_downsample(const DownsampleParams& p) {
    const int h1 = p.stem.out_h, w1 = p.stem.out_w;
    const int h2 = strided(h1, 2), w2 = strided(w1, 2);
    const int h3 = strided(h2, 2), w3 = strided(w2, 2);
    const int pitch1 = p.taps1.pitch, pitch2 = p.taps2.pitch;
    const int pitch = pitch1 > pitch2 ? pitch1 : pitch2;

    const int64_t last_floats = p.to_bytes.inverse ? int64_t(w3) * p.weight2.out : 0;
    const auto layout = [&](Arena arena) {
        float* frame = arena.take(StemRows::floats(p.stem));
        float* stem = arena.take(3 * int64_t(w1) * pitch1);
        float* middle = arena.take(3 * int64_t(w2) * pitch2);
        float* mid = arena.take(int64_t(kRun) * pitch);
        float* zero = arena.take(pitch);
        float* last = arena.take(last_floats);
        return Cascade{p,
                       StemRows(p.stem, frame),
                       {stem, int64_t(w1) * pitch1, pitch1, h1},
                       {middle, int64_t(w2) * pitch2, pitch2, h2},
                       mid,
                       zero,
                       last};
    };
    const int64_t thread_floats =
        padded(StemRows::floats(p.stem)) + padded(3 * int64_t(w1) * pitch1) +
        padded(3 * int64_t(w2) * pitch2) + padded(int64_t(kRun) * pitch) + padded(pitch) +
        padded(last_floats);
    if (!p.scratch) return p.threads * thread_floats;

    const int bands = p.threads > 1 ? (h3 < kBands * p.threads ? h3 : kBands * p.threads) : 1;
    share(p, int64_t(p.stem.batch) * bands, [&](int unit, int worker) {
        Cascade c = layout({p.scratch + worker * thread_floats});
        fill_zero(c.zero, pitch);
        const int image = unit / bands;
        const Share rows(h3, unit % bands, bands);
        c.start(image, rows.begin);
        for (int y = rows.begin; y < rows.end; ++y) {
            c.make_middle(2 * y + 1);
            const int64_t at = (int64_t(image) * h3 + y) * w3, outs = p.weight2.out;
            float* out = p.to_bytes.inverse ? c.last : p.y + at * outs;
            c.dsconv2(c.middle, w2, p.taps2, p.weight2, y, out, outs);
            if (p.to_bytes.inverse)
                quantize(out, w3, int(outs), p.to_bytes, p.bytes + at * outs, outs, int(outs));
        }
    });
    return 0;
}

}  // namespace fastscnn::FASTSCNN_ISA
