// batch_norm: mean and variance of a map, normalisation with an activation, and its gradient.

#include "batch_norm.h"

#include "moments.h"
#include "rows.h"

namespace fastscnn::FASTSCNN_ISA {
namespace {

// A unit is a run of pixels that stays in the L1 cache between two passes; it does not depend on
// the threads, so neither do the sums.
constexpr int kUnitElements = 8192;

struct Units {
    int64_t pixels;
    int each;
    int64_t count;

    Units(int64_t pixels, int channels)
        : pixels(pixels),
          each(channels < kUnitElements ? kUnitElements / channels : 1),
          count((pixels + each - 1) / each) {}
    int64_t begin(int64_t unit) const { return unit * each; }
    int size(int64_t unit) const {
        const int64_t rest = pixels - begin(unit);
        return int(rest < each ? rest : each);
    }
};

// Asks for a unit's memory in order, which is not how its channels are worked on.
template <class T>
FASTSCNN_INLINE void fetch(const T* x, int64_t elements) {
    constexpr int kLine = 64 / int(sizeof(T));
    for (int64_t i = 0; i < elements; i += kLine) __builtin_prefetch(x + i);
}

// What dropout multiplies the elements from `first` on by. The hash is that of
// `reference.dropped`: two rounds of multiplications and shifts with full avalanche.
FASTSCNN_INLINE Vec kept(const Dropout& d, int64_t first) {
    VecBits h = {};
    for (int i = 0; i < kLanes; ++i) h[i] = uint32_t(i);
    h = (h + uint32_t(first)) * 0x9e3779b1u + d.seed[0];
    h = (h ^ h >> 16) * 0x7feb352du;
    h = (h ^ h >> 15 ^ d.seed[1]) * 0x846ca68bu;
    h ^= h >> 16;
    return h >= d.below ? Vec{} + d.scale : Vec{};
}

template <class T>
void moments(const MomentsParams& p, const Units& units, float* parts) {
    const int channels = p.channels;
    share(p, units.count, [&](int unit, int) {
        const T* x = static_cast<const T*>(p.x) + units.begin(unit) * channels;
        float* part = parts + int64_t(unit) * 2 * channels;
        fetch(x, int64_t(units.size(unit)) * channels);
        moments_of(x, channels, units.size(unit), channels, part, part + channels);
    });
    std::memcpy(p.mean, parts, channels * sizeof(float));
    std::memcpy(p.var, parts + channels, channels * sizeof(float));
    for (int64_t unit = 1; unit < units.count; ++unit) {
        const float* part = parts + unit * 2 * channels;
        join_moments(p.mean, p.var, double(units.begin(unit)), part, part + channels,
                     units.size(unit), channels);
    }
    for (int c = 0; c < channels; ++c) p.var[c] /= float(p.pixels);
}

// y = x * scale + shift; behind a gradient dx = scale * g + line[0] * (x - mean) + line[1].
struct Lines {
    float *scale, *shift, *line;

    Lines(int channels, Arena& arena)
        : scale(arena.take(channels)), shift(arena.take(channels)), line(arena.take(2 * channels)) {}
};

template <class T>
void normalize(const BatchNormParams& p, const Units& units, const Lines& lines) {
    const int channels = p.channels;
    const Activation act = p.norm.act;
    share(p, units.count, [&](int unit, int) {
        const int64_t begin = units.begin(unit) * channels;
        const T* x = static_cast<const T*>(p.x) + begin;
        T* y = static_cast<T*>(p.y) + begin;
        for (int i = 0; i < units.size(unit); ++i, x += channels, y += channels)
            by_vector(channels, [&](int c, int n) FASTSCNN_LAMBDA {
                Vec v = read(x + c, n) * read(lines.scale + c, n) + read(lines.shift + c, n);
                v = min(Vec{} + act.high, max(Vec{} + act.low, v));
                if (p.drop.below) v *= kept(p.drop, begin + int64_t(i) * channels + c);
                write(y + c, v, n);
            });
    });
}

// The gradient in front of the activation, and x relative to the mean.
struct Behind {
    Vec g, x;
};

// Of element `at` of the map and those behind it, which are those of channel c.
template <class T>
FASTSCNN_INLINE Behind behind(const BatchNormBackwardParams& p, const Lines& lines, int64_t at,
                              int c, int n) {
    Vec g = read(static_cast<const T*>(p.dy) + at, n);
    const Vec v = read(static_cast<const T*>(p.x) + at, n);
    const Vec from_mean = v - read(p.norm.mean + c, n);
    if (p.drop.below) g *= kept(p.drop, at);
    if (p.norm.act.low == -__builtin_inff()) return {g, from_mean};
    const Vec u = v * read(lines.scale + c, n) + read(lines.shift + c, n);
    const auto open = (u > p.norm.act.low) & (u < p.norm.act.high);
    return {open ? g : Vec{}, from_mean};
}

// Sums of the gradient, and of its product with x - mean: [2][channels].
template <class T>
void reduce(const BatchNormBackwardParams& p, const Units& units, const Lines& lines, float* parts,
            float* sums) {
    const int channels = p.channels;
    share(p, units.count, [&](int unit, int) {
        const int64_t begin = units.begin(unit) * channels;
        float* part = parts + int64_t(unit) * 2 * channels;
        fetch(static_cast<const T*>(p.x) + begin, int64_t(units.size(unit)) * channels);
        fetch(static_cast<const T*>(p.dy) + begin, int64_t(units.size(unit)) * channels);
        by_vector(channels, [&](int c, int n) FASTSCNN_LAMBDA {
            Vec sum = {}, product = {};
            for (int64_t i = 0; i < int64_t(units.size(unit)) * channels; i += channels) {
                const Behind b = behind<T>(p, lines, begin + i + c, c, n);
                sum += b.g;
                product += b.g * b.x;
            }
            write(part + c, sum, n);
            write(part + channels + c, product, n);
        });
    });
    sum_parts(parts, units.count, 2 * channels, sums);
}

template <class T>
void gradient(const BatchNormBackwardParams& p, const Units& units, const Lines& lines) {
    const int channels = p.channels;
    share(p, units.count, [&](int unit, int) {
        T* dx = static_cast<T*>(p.dx);
        int64_t at = units.begin(unit) * channels;
        for (int i = 0; i < units.size(unit); ++i, at += channels)
            by_vector(channels, [&](int c, int n) FASTSCNN_LAMBDA {
                const Behind b = behind<T>(p, lines, at + c, c, n);
                const Vec v = read(lines.scale + c, n) * b.g + read(lines.line + c, n) * b.x;
                write(dx + at + c, v + read(lines.line + channels + c, n), n);
            });
    });
}

}  // namespace

void affine(const Norm& norm, int channels, float* scale, float* shift) {
    for (int c = 0; c < channels; ++c) {
        scale[c] = norm.weight[c] / __builtin_sqrtf(norm.var[c] + norm.eps);
        shift[c] = norm.bias[c] - norm.mean[c] * scale[c];
    }
}

void sum_parts(const float* parts, int64_t count, int64_t floats, float* sums) {
    constexpr int kRun = 64;
    for (int64_t begin = 0; begin < floats; begin += kRun) {
        const int n = floats - begin < kRun ? int(floats - begin) : kRun;
        double sum[kRun] = {};
        for (int64_t part = 0; part < count; ++part)
            for (int i = 0; i < n; ++i) sum[i] += parts[part * floats + begin + i];
        for (int i = 0; i < n; ++i) sums[begin + i] = float(sum[i]);
    }
}

// Bound by reading x once.
int64_t moments(const MomentsParams& p) {
    const Units units(p.pixels, p.channels);
    if (!p.scratch) return units.count * 2 * p.channels;
    (p.bf16 ? moments<Bf16> : moments<float>)(p, units, p.scratch);
    return 0;
}

// Bound by reading x and writing y.
int64_t batch_norm(const BatchNormParams& p) {
    Arena arena{p.scratch};
    const Lines lines(p.channels, arena);
    if (!p.scratch) return arena.used;
    affine(p.norm, p.channels, lines.scale, lines.shift);
    (p.bf16 ? normalize<Bf16> : normalize<float>)(p, Units(p.pixels, p.channels), lines);
    return 0;
}

// Bound by memory: dy and x are read for the sums, and read again for dx.
int64_t batch_norm_backward(const BatchNormBackwardParams& p) {
    const int channels = p.channels;
    const Units units(p.pixels, channels);
    Arena arena{p.scratch};
    const Lines lines(channels, arena);
    float* own = arena.take(2 * channels);
    float* parts = arena.take(p.sums ? 0 : units.count * 2 * channels);
    if (!p.scratch) return arena.used;
    affine(p.norm, channels, lines.scale, lines.shift);
    if (!p.sums) (p.bf16 ? reduce<Bf16> : reduce<float>)(p, units, lines, parts, own);
    const float* sums = p.sums ? p.sums : own;
    for (int c = 0; c < channels; ++c) {
        const float var = p.norm.var[c] + p.norm.eps;
        const float each = p.norm.batch_moments ? lines.scale[c] / float(p.pixels) : 0.f;
        lines.line[c] = -each * sums[channels + c] / var;
        lines.line[channels + c] = -each * sums[c];
        p.dweight[c] = sums[channels + c] / __builtin_sqrtf(var);
        p.dbias[c] = sums[c];
    }
    (p.bf16 ? gradient<Bf16> : gradient<float>)(p, units, lines);
    return 0;
}

}  // namespace fastscnn::FASTSCNN_ISA
