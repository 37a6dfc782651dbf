// norm_depthwise: batch norm, activation and a 3x3 depthwise convolution of a map, and back.

#include "batch_norm.h"
#include "moments.h"
#include "rows.h"

namespace fastscnn::FASTSCNN_ISA {
namespace {

constexpr int kBlock = 64;  // channels that are worked on together: their rows stay in L2
constexpr int kBand = 32;   // output rows of a unit
constexpr int kAhead = 16;  // pixels between what is read and what is fetched

// A unit is a band of output rows of a block of channels of an image.
struct Units {
    int blocks, bands;
    int64_t count;

    explicit Units(const NormDepthwiseParams& p)
        : blocks((p.channels + kBlock - 1) / kBlock),
          bands((strided(p.h, p.stride) + kBand - 1) / kBand),
          count(int64_t(p.batch) * bands * blocks) {}
};

// Where a unit lies.
struct Place {
    int image, begin, end;  // output rows
    int first, channels;    // channels

    Place(const NormDepthwiseParams& p, const Units& units, int unit) {
        const int rest = unit / units.blocks, out_h = strided(p.h, p.stride);
        image = rest / units.bands;
        begin = rest % units.bands * kBand;
        end = begin + kBand < out_h ? begin + kBand : out_h;
        first = unit % units.blocks * kBlock;
        channels = p.channels - first < kBlock ? p.channels - first : kBlock;
    }
};

// Rows of one map of a block as floats: row y lies at y % rows, its pixels `step` apart. A row holds
// one vector of channels after the other, [vectors][width][kLanes], so that what works on a vector
// walks through memory.
struct Rows {
    float* data;
    int rows, width, step;
    int next = 0;  // first row that has not been read

    float* at(int y, int vector) const {
        return data + int64_t(y % rows) * width * kBlock + int64_t(vector) * width * kLanes;
    }
};

// What happens to every value that is read: nothing where scale is null.
struct Prologue {
    const float *scale, *shift;
    Activation act;
};

// One row of a block to [vectors][width][kLanes].
template <class T>
void read_row(const T* from, int64_t stride, int pixels, int channels, const Prologue& f,
              const Rows& rows, int y) {
    float* to = rows.at(y, 0);
    const int64_t step = int64_t(rows.step) * kLanes, plane = int64_t(rows.width);
    for (int x = 0; x < pixels; ++x, from += stride, to += step) {
        // A block's channels are too short a run for the machine to see what comes.
        for (int line = 0; line < channels; line += 64 / int(sizeof(T)))
            __builtin_prefetch(from + kAhead * stride + line);
        by_vector(channels, [&](int c, int n) FASTSCNN_LAMBDA {
            Vec v = read(from + c, n);
            if (f.scale) {
                v = v * read(f.scale + c, n) + read(f.shift + c, n);
                v = min(Vec{} + f.act.high, max(Vec{} + f.act.low, v));
            }
            store(to + c * plane, v);
        });
    }
}

// One vector of channels of a row, of which n are there.
template <class T>
FASTSCNN_INLINE void write_row(const float* from, int pixels, T* to, int64_t stride, int n) {
    const auto every = [&](int n) FASTSCNN_LAMBDA {
        for (int x = 0; x < pixels; ++x) write(to + x * stride, load<Vec>(from + x * kLanes), n);
    };
    if (n == kLanes)
        every(kLanes);
    else
        every(n);
}

// Reads rows up to `last` of a map [h, w, channels] of which `from` is the unit's first channel.
template <class T>
FASTSCNN_INLINE void fill(Rows& rows, int last, int h, int w, const T* from, int all_channels,
                          const Place& at, const Prologue& f) {
    const int64_t row = int64_t(w) * all_channels;
    for (; rows.next <= last && rows.next < h; ++rows.next)
        read_row(from + rows.next * row, all_channels, w, at.channels, f, rows, rows.next);
}

// [channels][9] to [9][kBlock], of the unit's channels; tap i becomes 8 - i where `turned`.
void transpose_taps(const float* taps, const Place& at, bool turned, float* to) {
    fill_zero(to, 9 * kBlock);
    for (int c = 0; c < at.channels; ++c)
        for (int i = 0; i < 9; ++i)
            to[(turned ? 8 - i : i) * kBlock + c] = taps[(at.first + c) * int64_t(9) + i];
}

// [2][channels] at `lines`: scale and shift.
Prologue prologue(const NormDepthwiseParams& p, const float* lines, const Place& at) {
    if (!p.norm.weight) return {nullptr, nullptr, kNone};
    return {lines + at.first, lines + p.channels + at.first, p.norm.act};
}

// One vector of channels of an output row: its taps, and where it goes.
FASTSCNN_INLINE DepthwiseRow row_of(const NormDepthwiseParams& p, const float* taps,
                                    const float* bias, int vector, int stride, float* y) {
    DepthwiseRow d{};
    d.width = p.w, d.channels = kLanes;
    d.w = taps + vector * kLanes, d.bias = bias + vector * kLanes, d.w_pitch = kBlock;
    d.stride = stride, d.dilation = p.dilation;
    d.y = y, d.y_stride = kLanes;
    d.act = kNone;
    return d;
}

// A thread's scratch memory.
struct Scratch {
    float *taps, *bias, *zero, *out;
    Rows x, dy;
    float* dtaps;  // [10][kBlock]: of the taps and of the bias

    Scratch(const NormDepthwiseParams& p, bool backward, Arena& arena) {
        const int rows = 2 * p.dilation + 1 > p.stride + 1 ? 2 * p.dilation + 1 : p.stride + 1;
        const int64_t row = int64_t(p.w) * kBlock;
        taps = arena.take(9 * kBlock);
        bias = arena.take(kBlock);
        zero = arena.take(kBlock);
        out = arena.take(int64_t(p.w) * kLanes);
        x = {arena.take(rows * row), rows, p.w, 1};
        dy = {arena.take(backward ? rows * row : 0), rows, p.w, p.stride};
        dtaps = arena.take(10 * kBlock);
    }
};

// Points the taps' rows at those around row `middle` of x.
FASTSCNN_INLINE void around(DepthwiseRow& d, const NormDepthwiseParams& p, const Rows& x, int vector,
                            int middle, const float* zero) {
    for (int ky = 0; ky < 3; ++ky) {
        const int y = middle + (ky - 1) * p.dilation;
        set_row(d, ky, y >= 0 ? x.at(y, vector) : nullptr, kLanes, y, p.h, zero);
    }
}

template <class T>
void forward(const NormDepthwiseParams& p, const Place& at, const Prologue& normalize, Scratch s,
             float* part) {
    const int out_w = strided(p.w, p.stride), out_h = strided(p.h, p.stride);
    const T* x = static_cast<const T*>(p.x) + int64_t(at.image) * p.h * p.w * p.channels + at.first;
    T* y = static_cast<T*>(p.y) + int64_t(at.image) * out_h * out_w * p.channels + at.first;
    transpose_taps(p.taps, at, false, s.taps);
    fill_zero(s.zero, kBlock);
    fill_zero(s.bias, kBlock);
    if (p.bias) std::memcpy(s.bias, p.bias + at.first, at.channels * sizeof(float));
    const int first = at.begin * p.stride - p.dilation;
    s.x.next = first > 0 ? first : 0;
    for (int row = at.begin; row < at.end; ++row) {
        const int middle = row * p.stride;
        fill(s.x, middle + p.dilation, p.h, p.w, x, p.channels, at, normalize);
        for (int c = 0; c < at.channels; c += kLanes) {
            DepthwiseRow d = row_of(p, s.taps, s.bias, c / kLanes, p.stride, s.out);
            around(d, p, s.x, c / kLanes, middle, s.zero);
            depthwise_row(d, 0, out_w);
            const int n = at.channels - c < kLanes ? at.channels - c : kLanes;
            write_row(s.out, out_w, y + int64_t(row) * out_w * p.channels + c, p.channels, n);
            if (!part) continue;
            float* moments = row == at.begin ? part + c : s.dtaps;
            moments_of(s.out, kLanes, out_w, kLanes, moments, moments + kBlock);
            if (row > at.begin)
                join_moments(part + c, part + kBlock + c, double(row - at.begin) * out_w, moments,
                             moments + kBlock, out_w, kLanes);
        }
    }
}

// Adds one output row's products of dy and x, and dy itself, to dtaps [10][kBlock].
void weight_row(const DepthwiseRow& d, const float* dy, int64_t dy_stride, int out_w,
                float* dtaps) {
    const int begin = (d.dilation + d.stride - 1) / d.stride;
    const int after = d.width > d.dilation ? (d.width - 1 - d.dilation) / d.stride + 1 : 0;
    Vec sum[10];
    for (int i = 0; i < 10; ++i) sum[i] = load<Vec>(dtaps + i * kBlock);
    const auto edge = [&](int o) {
        const Vec g = load<Vec>(dy + o * dy_stride);
        sum[9] += g;
        for (int i = 0; i < 9; ++i) {
            const int x = o * d.stride + (i % 3 - 1) * d.dilation, ky = i / 3;
            if (x >= 0 && x < d.width) sum[i] += g * load<Vec>(d.row[ky] + x * d.x_stride[ky]);
        }
    };
    int o = 0;
    for (; o < begin && o < out_w; ++o) edge(o);
    for (; o < after; ++o) {
        const Vec g = load<Vec>(dy + o * dy_stride);
        sum[9] += g;
#pragma GCC unroll 3
        for (int ky = 0; ky < 3; ++ky) {
            const float* x = d.row[ky] + (o * d.stride - d.dilation) * d.x_stride[ky];
            const int64_t step = d.dilation * d.x_stride[ky];
#pragma GCC unroll 3
            for (int kx = 0; kx < 3; ++kx) sum[3 * ky + kx] += g * load<Vec>(x + kx * step);
        }
    }
    for (; o < out_w; ++o) edge(o);
    for (int i = 0; i < 10; ++i) store(dtaps + i * kBlock, sum[i]);
}

// Writes the gradient of one vector of channels of an input row, which is closed where the
// activation was flat, and adds to the sums that batch norm's gradient needs: of the gradient, and
// of its product with x - mean. `x` and `dx` are those of the vector's first channel.
template <class T>
FASTSCNN_INLINE void close_row(const NormDepthwiseParams& p, const float* mean, int n, const T* x,
                               const float* y, const float* g, float* sums, T* dx) {
    const auto every = [&](int n) FASTSCNN_LAMBDA {
        Vec sum = load<Vec>(sums), product = load<Vec>(sums + kBlock);
        const Vec m = read(mean, n);
        for (int i = 0; i < p.w; ++i) {
            const Vec v = load<Vec>(y + i * kLanes);
            const auto open = (v > p.norm.act.low) & (v < p.norm.act.high);
            const Vec gradient = open ? load<Vec>(g + i * kLanes) : Vec{};
            write(dx + int64_t(i) * p.channels, gradient, n);
            sum += gradient;
            product += gradient * (read(x + int64_t(i) * p.channels, n) - m);
        }
        store(sums, sum);
        store(sums + kBlock, product);
    };
    if (n == kLanes)
        every(kLanes);
    else
        every(n);
}

// dx is the convolution of dy, with zeros between its pixels where the stride is 2, with the taps
// turned around.
template <class T>
void backward(const NormDepthwiseBackwardParams& b, const Place& at, const Prologue& normalize,
              Scratch s, float* sums) {
    const NormDepthwiseParams& p = b.of;
    const int out_w = strided(p.w, p.stride), out_h = strided(p.h, p.stride);
    const int64_t image = int64_t(at.image) * p.h * p.w * p.channels + at.first;
    const T* x = static_cast<const T*>(p.x) + image;
    const T* dy =
        static_cast<const T*>(b.dy) + int64_t(at.image) * out_h * out_w * p.channels + at.first;
    transpose_taps(p.taps, at, true, s.taps);
    fill_zero(s.zero, kBlock);
    fill_zero(s.dtaps, 10 * kBlock);
    fill_zero(sums, 2 * kBlock);
    if (p.stride > 1) fill_zero(s.dy.data, int64_t(s.dy.rows) * p.w * kBlock);
    const int first = at.begin * p.stride - p.dilation;
    s.x.next = first > 0 ? first : 0;
    s.dy.next = first > 0 ? (first + p.stride - 1) / p.stride : 0;
    const int last = at.end < out_h ? at.end * p.stride : p.h;
    for (int row = at.begin; row < at.end; ++row) {
        const int middle = row * p.stride;
        // Rows that the next ring slots replace are at least 2 * dilation + 1 back.
        fill(s.x, middle + p.dilation, p.h, p.w, x, p.channels, at, normalize);
        fill(s.dy, row, out_h, out_w, dy, p.channels, at, {nullptr, nullptr, kNone});
        for (int c = 0; c < at.channels; c += kLanes) {
            DepthwiseRow d = row_of(p, s.taps, s.zero, c / kLanes, p.stride, nullptr);
            around(d, p, s.x, c / kLanes, middle, s.zero);
            weight_row(d, s.dy.at(row, c / kLanes), p.stride * kLanes, out_w, s.dtaps + c);
        }
        if (!b.dx) continue;
        for (int y = middle; y < middle + p.stride && y < last; ++y) {
            fill(s.dy, (y + p.dilation) / p.stride, out_h, out_w, dy, p.channels, at,
                 {nullptr, nullptr, kNone});
            const int64_t offset = int64_t(y) * p.w * p.channels;
            T* dx = static_cast<T*>(b.dx) + image + offset;
            for (int c = 0; c < at.channels; c += kLanes) {
                DepthwiseRow g = row_of(p, s.taps, s.zero, c / kLanes, 1, s.out);
                for (int ky = 0; ky < 3; ++ky) {
                    const int at_y = y + (ky - 1) * p.dilation;
                    const bool whole = at_y >= 0 && at_y % p.stride == 0;
                    const int from = whole ? at_y / p.stride : -1;
                    set_row(g, ky, whole ? s.dy.at(from, c / kLanes) : nullptr, kLanes, from, out_h,
                            s.zero);
                }
                depthwise_row(g, 0, p.w);
                const int n = at.channels - c < kLanes ? at.channels - c : kLanes;
                if (p.norm.weight)
                    close_row(p, p.norm.mean + at.first + c, n, x + offset + c,
                              s.x.at(y, c / kLanes), s.out, sums + c, dx + c);
                else
                    write_row(s.out, p.w, dx + c, p.channels, n);
            }
        }
    }
}

// The moments of y from those of the units: [count][2][kBlock].
void join_units(const NormDepthwiseParams& p, const Units& units, const float* parts) {
    const int out_w = strided(p.w, p.stride);
    for (int block = 0; block < units.blocks; ++block) {
        double count = 0.0;
        for (int64_t unit = block; unit < units.count; unit += units.blocks) {
            const Place at(p, units, int(unit));
            const float* part = parts + unit * 2 * kBlock;
            const double more = double(at.end - at.begin) * out_w;
            float *mean = p.mean + at.first, *var = p.var + at.first;
            if (count == 0.0) {
                std::memcpy(mean, part, at.channels * sizeof(float));
                std::memcpy(var, part + kBlock, at.channels * sizeof(float));
            } else {
                join_moments(mean, var, count, part, part + kBlock, more, at.channels);
            }
            count += more;
        }
    }
    const double pixels = double(p.batch) * strided(p.h, p.stride) * out_w;
    for (int c = 0; c < p.channels; ++c) p.var[c] = float(p.var[c] / pixels);
}

}  // namespace

// Bound by memory where x comes from there: x is read once and y written once, 9 multiply-adds per
// element of y.
int64_t norm_depthwise(const NormDepthwiseParams& p) {
    const Units units(p);
    Arena arena{p.scratch};
    float* lines = arena.take(2 * p.channels);
    float* parts = arena.take(p.mean ? units.count * 2 * kBlock : 0);
    Arena one{nullptr};
    Scratch(p, false, one);
    if (!p.scratch) return arena.used + p.threads * one.used;
    if (p.norm.weight) affine(p.norm, p.channels, lines, lines + p.channels);
    share(p, units.count, [&](int unit, int worker) {
        Arena own{p.scratch + arena.used + worker * one.used};
        const Scratch s(p, false, own);
        const Place at(p, units, unit);
        float* part = p.mean ? parts + int64_t(unit) * 2 * kBlock : nullptr;
        (p.bf16 ? forward<Bf16> : forward<float>)(p, at, prologue(p, lines, at), s, part);
    });
    if (p.mean) join_units(p, units, parts);
    return 0;
}

// One sweep over x and dy for the taps' gradient, that of the normalised map, and batch norm's sums
// (9 multiply-adds per element of y, and as many per element of x); a second one over x and the
// normalised map's gradient for that of x.
int64_t norm_depthwise_backward(const NormDepthwiseBackwardParams& b) {
    const NormDepthwiseParams& p = b.of;
    constexpr int kSums = 12 * kBlock;  // of a unit: 9 taps, bias, and two of batch norm
    const Units units(p);
    Arena arena{p.scratch};
    float* lines = arena.take(2 * p.channels);
    float* known = arena.take(2 * p.channels);
    float* sums = arena.take(int64_t(units.blocks) * kSums);
    float* parts = arena.take(units.count * kSums);
    BatchNormBackwardParams norm{};
    norm.dy = b.dx, norm.x = p.x, norm.dx = b.dx, norm.bf16 = p.bf16;
    norm.pixels = int64_t(p.batch) * p.h * p.w, norm.channels = p.channels;
    norm.norm = p.norm, norm.norm.act = kNone;  // where it is flat dx is zero by then
    norm.sums = known, norm.dweight = b.dweight, norm.dbias = b.dbias;
    norm.pool = p.pool, norm.threads = p.threads;
    Arena one{nullptr};
    Scratch(p, true, one);
    if (!p.scratch) {
        norm.sums = p.norm.bias;  // any: they are not computed
        const int64_t after = p.norm.weight ? batch_norm_backward(norm) : 0;
        const int64_t most = p.threads * one.used > after ? p.threads * one.used : after;
        return arena.used + most;
    }
    if (p.norm.weight) affine(p.norm, p.channels, lines, lines + p.channels);
    share(p, units.count, [&](int unit, int worker) {
        Arena own{p.scratch + arena.used + worker * one.used};
        const Scratch s(p, true, own);
        const Place at(p, units, unit);
        float* part = parts + int64_t(unit) * kSums;
        (p.bf16 ? backward<Bf16> : backward<float>)(b, at, prologue(p, lines, at), s,
                                                    part + 10 * kBlock);
        std::memcpy(part, s.dtaps, 10 * kBlock * sizeof(float));
    });
    sum_parts(parts, units.count / units.blocks, int64_t(units.blocks) * kSums, sums);
    for (int c = 0; c < p.channels; ++c) {
        const float* of = sums + int64_t(c / kBlock) * kSums + c % kBlock;
        for (int i = 0; i < 9; ++i) b.dtaps[int64_t(c) * 9 + i] = of[i * kBlock];
        b.dtaps_bias[c] = of[9 * kBlock];
        known[c] = of[10 * kBlock], known[p.channels + c] = of[11 * kBlock];
    }
    if (!p.norm.weight || !b.dx) return 0;
    norm.scratch = p.scratch + arena.used;
    return batch_norm_backward(norm);
}

}  // namespace fastscnn::FASTSCNN_ISA
