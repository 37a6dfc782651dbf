// overlay: labels to the classes' colours, alone or blended over a frame.

#include "rows.h"

namespace fastscnn::FASTSCNN_ISA {
namespace {

constexpr int kPixels = 256;  // whose colours are laid out at once, in L1
constexpr int kShorts = 2 * kLanes;
using Shorts = uint16_t __attribute__((vector_size(2 * kShorts)));
using Bytes = uint8_t __attribute__((vector_size(kShorts)));
static_assert(3 * kPixels % kShorts == 0, "a block of colours is whole vectors");

// Writes colour labels[i] to y + 3 * i for i < n; four elements at a time, but none behind the end.
template <class T>
FASTSCNN_INLINE void lay_out(const T (*colors)[4], const uint8_t* labels, int n, T* y) {
    for (int i = 0; i + 1 < n; ++i) std::memcpy(y + 3 * i, colors[labels[i]], 4 * sizeof(T));
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

// A unit is a row. Bound by the loads and stores of one table entry (two with a frame)
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
    share(p, p.rows, [&](int row, int) {
        const uint8_t* labels = p.labels + int64_t(row) * p.width;
        uint8_t* y = p.y + 3 * int64_t(row) * p.width;
        if (!p.frame) return lay_out(colors, labels, p.width, y);
        const uint8_t* frame = p.frame + row * p.stride;
        uint16_t weight[3 * kPixels], tint[3 * kPixels];
        int i = 0;
        for (; i + kPixels <= p.width; i += kPixels) {
            lay_out(weights, labels + i, kPixels, weight);
            lay_out(tints, labels + i, kPixels, tint);
            blend(frame + 3 * i, weight, tint, y + 3 * i);
        }
        for (; i < p.width; ++i)
            for (int c = 0; c < 3; ++c)
                y[3 * i + c] =
                    uint8_t((frame[3 * i + c] * weights[labels[i]][c] + tints[labels[i]][c]) >> 8);
    });
}

}  // namespace fastscnn::FASTSCNN_ISA
