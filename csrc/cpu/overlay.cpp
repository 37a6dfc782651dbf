// overlay: labels to the classes' colours, alone or blended over a frame.

#include "rows.h"

namespace fastscnn::FASTSCNN_ISA {
namespace {

constexpr int kPixels = 64;     // whose colours are laid out at once, in L1
constexpr int kUnit = 1 << 13;  // pixels of a unit
constexpr int kShorts = 2 * kLanes;
using Shorts = uint16_t __attribute__((vector_size(2 * kShorts)));
using Bytes = uint8_t __attribute__((vector_size(kShorts)));
static_assert(3 * kPixels % kShorts == 0, "a block of colours is whole vectors");

// Writes colour labels[i] to y + 3 * i for i < n; four elements at a time, but none behind the end.
template <class T>
FASTSCNN_INLINE void lay_out(const T (*colors)[4], const uint8_t* labels, int64_t n, T* y) {
    for (int64_t i = 0; i + 1 < n; ++i) std::memcpy(y + 3 * i, colors[labels[i]], 4 * sizeof(T));
    if (n) std::memcpy(y + 3 * (n - 1), colors[labels[n - 1]], 3 * sizeof(T));
}

// y = (frame * weight + tint) >> 8, at most 65280 before the shift.
FASTSCNN_INLINE void blend(const uint8_t* frame, const uint16_t* weight, const uint16_t* tint,
                           uint8_t* y) {
    for (int i = 0; i < 3 * kPixels; i += kShorts) {
        Bytes f;
        Shorts w, t;
        std::memcpy(&f, frame + i, sizeof f);
        std::memcpy(&w, weight + i, sizeof w);
        std::memcpy(&t, tint + i, sizeof t);
        f = __builtin_convertvector((__builtin_convertvector(f, Shorts) * w + t) >> 8, Bytes);
        std::memcpy(y + i, &f, sizeof f);
    }
}

}  // namespace

// A unit is a run of pixels. Bound by the loads and stores of one table entry (two with a frame)
// per pixel; 7 bytes of memory are moved per pixel.
void overlay(const OverlayParams& p) {
    uint8_t colors[256][4] = {};
    uint16_t tints[256][4] = {}, weights[256][4];
    for (int c = 0; c < 256; ++c)
        for (int i = 0; i < 3; ++i) {
            const bool known = c < p.classes;
            colors[c][i] = known ? p.colors[3 * c + i] : 0;
            tints[c][i] = uint16_t(colors[c][i] * p.alpha);
            weights[c][i] = uint16_t(known ? 256 - p.alpha : 256);
            weights[c][3] = 0;
        }
    share(p, (p.pixels + kUnit - 1) / kUnit, [&](int unit, int) {
        int64_t i = int64_t(unit) * kUnit;
        const int64_t end = i + kUnit < p.pixels ? i + kUnit : p.pixels;
        if (!p.frame) return lay_out(colors, p.labels + i, end - i, p.y + 3 * i);
        uint16_t weight[3 * kPixels], tint[3 * kPixels];
        for (; i + kPixels <= end; i += kPixels) {
            lay_out(weights, p.labels + i, kPixels, weight);
            lay_out(tints, p.labels + i, kPixels, tint);
            blend(p.frame + 3 * i, weight, tint, p.y + 3 * i);
        }
        for (; i < end; ++i)
            for (int c = 0; c < 3; ++c)
                p.y[3 * i + c] = uint8_t((p.frame[3 * i + c] * weights[p.labels[i]][c] +
                                          tints[p.labels[i]][c]) >> 8);
    });
}

}  // namespace fastscnn::FASTSCNN_ISA
