// cross_entropy_head: bilinear sampling of class scores, softmax cross-entropy with the labels, and
// the gradient of the scores, in one sweep.

#include "rows.h"

namespace fastscnn::FASTSCNN_ISA {
namespace {

constexpr int kMaxClasses = 255;
constexpr int kNoClass = -1;  // of pixels that do not count
constexpr int kInvalid = -2;  // of labels that are no class

using Four = float __attribute__((vector_size(16)));

// What the pixels between two source rows add up to.
struct Part {
    double loss, weight;
    int64_t invalid;
};

// A thread's scratch memory. Rows of the output are planar, `pitch` floats per class.
struct Scratch {
    int64_t pitch;
    int padded;            // classes, rounded up to whole vectors
    float *top, *bottom;   // [classes][pitch]: the two source rows, sampled to the output's columns
    float *above, *below;  // [x.in + 1][padded]: gradients of the two source rows
    float* turned;         // [2][kLanes][padded]

    Scratch(const CrossEntropyHeadParams& p, Arena& arena)
        // An odd number of cache lines, so that the classes of a pixel lie in different sets.
        : pitch(16 * ((p.x.out / 16 + 2) | 1)), padded(round_up(p.classes, kLanes)) {
        top = arena.take(p.classes * pitch);
        bottom = arena.take(p.classes * pitch);
        const int64_t row = p.grad ? (p.x.in + 1) * int64_t(padded) : 0;
        above = arena.take(row);
        below = arena.take(row);
        turned = arena.take(p.grad ? 2 * kLanes * padded : 0);
    }
};

// One source row of all classes at the output's columns.
void sample(const AxisView& x, const float* source, int classes, float* rows, int64_t pitch) {
    for (int col = 0; col < x.in; ++col) {
        const int begin = x.first[col], end = x.first[col + 1];
        const float* left = source + int64_t(col) * classes;
        const float* right = col + 1 < x.in ? left + classes : left;
        for (int i = begin; i < end; i += kShort) {
            // What lies past the cell's end is overwritten by the next cell, or is padding.
            const int n = x.out - i < kShort ? x.out - i : kShort;
            const Short w0 = load_first<Short>(x.w0 + i, n, 0.f);
            const Short w1 = load_first<Short>(x.w1 + i, n, 0.f);
            for (int c = 0; c < classes; ++c)
                store(rows + c * pitch + i, w0 * left[c] + w1 * right[c]);
        }
    }
}

// The labels of a vector of pixels and their weights (0 where they do not count).
struct Labels {
    VecInt label;
    Vec weight;
};

// n labels, those that do not count as kNoClass and those that are no class as kInvalid.
FASTSCNN_INLINE VecInt read_raw(const CrossEntropyHeadParams& p, const uint8_t* at, int n) {
    using Bytes = uint8_t __attribute__((vector_size(kLanes)));
    Bytes bytes = {};
    std::memcpy(&bytes, at, n);
    const VecInt raw = __builtin_convertvector(bytes, VecInt);
    const bool possible = p.ignore >= 0 && p.ignore < 256;
    const VecInt known = raw < p.classes ? raw : VecInt{} + kInvalid;
    return raw == (possible ? int32_t(p.ignore) : kInvalid) ? VecInt{} + kNoClass : known;
}

FASTSCNN_INLINE VecInt read_raw(const CrossEntropyHeadParams& p, const int64_t* at, int n) {
    int32_t raw[kLanes] = {};
    for (int i = 0; i < n; ++i) {
        const int32_t known = uint64_t(at[i]) < uint64_t(p.classes) ? int32_t(at[i]) : kInvalid;
        raw[i] = at[i] == p.ignore ? kNoClass : known;
    }
    VecInt v;
    std::memcpy(&v, raw, sizeof v);
    return v;
}

template <class Label>
FASTSCNN_INLINE Labels read_labels(const CrossEntropyHeadParams& p, const Label* at, int n,
                                   VecInt& invalid) {
    VecInt lane = {};
    for (int i = 0; i < kLanes; ++i) lane[i] = i;
    Labels labels;
    labels.label = n == kLanes ? read_raw(p, at, kLanes) : read_raw(p, at, n);
    if (n < kLanes) labels.label = lane < n ? labels.label : VecInt{} + kNoClass;
    invalid |= labels.label == kInvalid;
    labels.weight = labels.label >= 0 ? Vec{} + 1.f : Vec{};
    if (p.weight)
        for (int i = 0; i < n; ++i)
            if (labels.label[i] >= 0) labels.weight[i] = p.weight[labels.label[i]];
    return labels;
}

// The first of n pixels, `row` after `row`, whose label is no class, or -1.
template <class Label>
int64_t find_invalid(const CrossEntropyHeadParams& p, const Label* target, int64_t pixel, int n,
                     int rows) {
    for (int y = 0; y < rows; ++y, pixel += p.x.out)
        for (int i = 0; i < n; ++i) {
            const int64_t label = int64_t(target[pixel + i]);
            if (label != p.ignore && uint64_t(label) >= uint64_t(p.classes)) return pixel + i;
        }
    return -1;
}

// What one class of one pixel adds to the loss, and what its probability does, per pixel.
struct Smoothing {
    float target;  // share of the labelled class
    float each;    // share of every class
    float total;   // sum of the classes' weights

    explicit Smoothing(const CrossEntropyHeadParams& p)
        : target(1.f - p.smoothing), each(p.smoothing / p.classes), total(float(p.classes)) {
        if (!p.weight) return;
        total = 0.f;
        for (int c = 0; c < p.classes; ++c) total += p.weight[c];
    }
};

// A vector of pixels in one output row: the two vertical weights, and where its rows begin.
struct Pixels {
    float w0, w1;
    const float *top, *bottom;
    int64_t pitch;
    Labels labels;
    Vec out;  // gradient of the pixels' losses
};

// Returns the losses; adds to the gradients of the two sampled source rows.
template <bool kGrad, bool kSmooth>
FASTSCNN_INLINE Vec cross_entropy(const CrossEntropyHeadParams& p, const Smoothing& s,
                                  const Pixels& x, Vec* above, Vec* below) {
    Vec v[kMaxClasses];
    Vec best = Vec{} - __builtin_inff(), labelled = {}, spread = {};
    VecInt k = {};
    for (int c = 0; c < p.classes; ++c, k += 1) {
        v[c] = x.w0 * load<Vec>(x.top + c * x.pitch) + x.w1 * load<Vec>(x.bottom + c * x.pitch);
        best = max(v[c], best);
        labelled = x.labels.label == k ? v[c] : labelled;
        if (kSmooth) spread += p.weight ? v[c] * p.weight[c] : v[c];
    }
    Vec sum = {};
    for (int c = 0; c < p.classes; ++c) {
        const Vec e = exp_negative(v[c] - best);
        sum += e;
        if (kGrad) v[c] = e;
    }
    const Vec log_sum = best + log_from_one(sum);
    const VecInt counts = x.labels.label >= 0;
    const Vec target = kSmooth ? x.labels.weight * s.target : x.labels.weight;
    Vec loss = target * (log_sum - labelled);
    if (kSmooth) loss += s.each * (s.total * log_sum - spread);
    if (kGrad) {
        const Vec hit = target * x.out;
        const Vec each = counts ? x.out * s.each : Vec{};
        const Vec all = (kSmooth ? hit + each * s.total : hit) / sum;
        k = VecInt{};
        for (int c = 0; c < p.classes; ++c, k += 1) {
            Vec g = v[c] * all - (x.labels.label == k ? hit : Vec{});
            if (kSmooth) g -= p.weight ? each * p.weight[c] : each;
            above[c] += x.w0 * g;
            below[c] += x.w1 * g;
        }
    }
    return counts ? loss : Vec{};
}

// Four of the eight values of x and y, by their index.
template <int a, int b, int c, int d>
Four pick(Four x, Four y) {
#ifdef __clang__
    return __builtin_shufflevector(x, y, a, b, c, d);
#else
    using Index = int32_t __attribute__((vector_size(16)));
    return __builtin_shuffle(x, y, Index{a, b, c, d});
#endif
}

// [classes][kLanes] to [kLanes][padded], in blocks of four by four.
void turn(const Vec* from, int padded, float* to) {
    const auto* rows = reinterpret_cast<const char*>(from);
    for (int c = 0; c < padded; c += 4) {
        for (int i = 0; i < kLanes; i += 4) {
            Four r[4];
            for (int j = 0; j < 4; ++j)
                std::memcpy(&r[j], rows + (c + j) * sizeof(Vec) + i * sizeof(float), sizeof r[j]);
            const Four a = pick<0, 4, 1, 5>(r[0], r[1]);
            const Four b = pick<2, 6, 3, 7>(r[0], r[1]);
            const Four d = pick<0, 4, 1, 5>(r[2], r[3]);
            const Four e = pick<2, 6, 3, 7>(r[2], r[3]);
            store(to + (i + 0) * padded + c, pick<0, 1, 4, 5>(a, d));
            store(to + (i + 1) * padded + c, pick<2, 3, 6, 7>(a, d));
            store(to + (i + 2) * padded + c, pick<0, 1, 4, 5>(b, e));
            store(to + (i + 3) * padded + c, pick<2, 3, 6, 7>(b, e));
        }
    }
}

// Adds the gradients of n sampled pixels to those of the source columns they were made of.
void collect(const AxisView& x, const Vec* g, int padded, int begin, int n, float* turned,
             float* row) {
    turn(g, padded, turned);
    for (int i = 0; i < n; ++i) {
        float* left = row + int64_t(x.index[begin + i]) * padded;
        const Vec w0 = Vec{} + x.w0[begin + i], w1 = Vec{} + x.w1[begin + i];
        for (int c = 0; c < padded; c += kLanes) {
            const Vec v = load<Vec>(turned + i * padded + c);
            store(left + c, load<Vec>(left + c) + w0 * v);
            store(left + padded + c, load<Vec>(left + padded + c) + w1 * v);
        }
    }
}

// The output rows between source row `row` of image n and the next.
template <class Label, bool kGrad, bool kSmooth>
void band(const CrossEntropyHeadParams& p, const Label* target, int n, int row, const Scratch& s,
          Part& part) {
    const Smoothing smoothing(p);
    const float* source = p.scores + (int64_t(n) * p.y.in + row) * p.x.in * p.classes;
    sample(p.x, source, p.classes, s.top, s.pitch);
    if (row + 1 < p.y.in) source += int64_t(p.x.in) * p.classes;
    sample(p.x, source, p.classes, s.bottom, s.pitch);
    Vec above[kMaxClasses + kLanes], below[kMaxClasses + kLanes];
    for (int x = 0; x < p.x.out; x += kLanes) {
        const int count = p.x.out - x < kLanes ? p.x.out - x : kLanes;
        if (kGrad)
            for (int c = 0; c < s.padded; ++c) above[c] = below[c] = Vec{};
        Vec losses = {}, weights = {};
        VecInt invalid = {};
        for (int y = p.y.first[row]; y < p.y.first[row + 1]; ++y) {
            const int64_t pixel = (int64_t(n) * p.y.out + y) * p.x.out + x;
            const Pixels pixels = {
                p.y.w0[y],
                p.y.w1[y],
                s.top + x,
                s.bottom + x,
                s.pitch,
                read_labels(p, target + pixel, count, invalid),
                p.pixel_grad ? load_first<Vec>(p.pixel_grad + pixel, count, 0.f) : Vec{} + 1.f,
            };
            const Vec loss = cross_entropy<kGrad, kSmooth>(p, smoothing, pixels, above, below);
            if (p.loss) store_first(p.loss + pixel, loss, count);
            losses += loss;
            weights += pixels.labels.weight;
        }
        int wrong = 0;
        for (int i = 0; i < kLanes; ++i)
            part.loss += losses[i], part.weight += weights[i], wrong |= invalid[i];
        if (wrong && part.invalid < 0) {
            const int first = p.y.first[row];
            const int64_t pixel = (int64_t(n) * p.y.out + first) * p.x.out + x;
            part.invalid = find_invalid(p, target, pixel, count, p.y.first[row + 1] - first);
        }
        if (kGrad) {
            collect(p.x, above, s.padded, x, count, s.turned, s.above);
            collect(p.x, below, s.padded, x, count, s.turned, s.below);
        }
    }
}

template <class Label>
FASTSCNN_INLINE void any_band(const CrossEntropyHeadParams& p, const Label* target, int n, int row,
                              const Scratch& s, Part& part) {
    const bool smooth = p.smoothing != 0.f;
    if (p.grad)
        (smooth ? band<Label, true, true> : band<Label, true, false>)(p, target, n, row, s, part);
    else
        (smooth ? band<Label, false, true> : band<Label, false, false>)(p, target, n, row, s, part);
}

void add_parts(const CrossEntropyHeadParams& p, const Part* parts, int64_t units) {
    p.sums[0] = p.sums[1] = 0.0;
    *p.invalid = -1;
    for (int64_t i = 0; i < units; ++i) {
        p.sums[0] += parts[i].loss;
        p.sums[1] += parts[i].weight;
        if (*p.invalid < 0) *p.invalid = parts[i].invalid;
    }
}

}  // namespace

// A unit is the output rows between two source rows of an image, which add to the gradients of
// both: the upper row's go to `grad`, the lower one's wait in the scratch memory, so that every sum
// has one order. Bound by arithmetic: per class and pixel 2 flops to sample, about 20 of
// instructions for the exponential, 7 for the gradient; the scores are 1/64 of the pixels.
int64_t cross_entropy_head(const CrossEntropyHeadParams& p) {
    const int rows = p.y.in, classes = p.classes;
    const int64_t units = int64_t(p.batch) * rows, row_floats = int64_t(p.x.in) * classes;
    Arena arena{p.scratch};
    float* parts_at = arena.take(units * int64_t(sizeof(Part) / sizeof(float)));
    float* waiting = arena.take(p.grad ? units * row_floats : 0);
    Arena one{nullptr};
    Scratch(p, one);
    if (!p.scratch) return arena.used + p.threads * one.used;
    Part* parts = reinterpret_cast<Part*>(parts_at);
    share(p, units, [&](int unit, int worker) {
        Arena own{p.scratch + arena.used + worker * one.used};
        const Scratch s(p, own);
        Part part = {0.0, 0.0, -1};
        if (p.grad) {
            fill_zero(s.above, (p.x.in + 1) * int64_t(s.padded));
            fill_zero(s.below, (p.x.in + 1) * int64_t(s.padded));
        }
        if (p.y.first[unit % rows] < p.y.first[unit % rows + 1]) {
            if (p.labels8)
                any_band(p, p.labels8, unit / rows, unit % rows, s, part);
            else
                any_band(p, p.labels64, unit / rows, unit % rows, s, part);
        }
        parts[unit] = part;
        for (int x = 0; p.grad && x < p.x.in; ++x) {
            const int64_t at = unit * row_floats + int64_t(x) * classes;
            const int64_t from = int64_t(x) * s.padded;
            std::memcpy(p.grad + at, s.above + from, classes * sizeof(float));
            std::memcpy(waiting + at, s.below + from, classes * sizeof(float));
        }
    });
    add_parts(p, parts, units);
    if (!p.grad) return 0;
    share(p, units, [&](int unit, int) {
        if (unit % rows == 0) return;
        float* grad = p.grad + unit * row_floats;
        const float* below = waiting + (unit - 1) * row_floats;
        for (int64_t i = 0; i < row_floats; ++i) grad[i] += below[i];
    });
    return 0;
}

}  // namespace fastscnn::FASTSCNN_ISA
