// resize_frame: bilinear resize of uint8 frames to contiguous RGB, in integers.

#include "rows.h"

namespace fastscnn::FASTSCNN_ISA {
namespace {

// Laid out side by side before they are mixed: enough for the stores to be in L1 by then, as no
// load can take its bytes from several stores that are under way.
constexpr int kPixels = 512;
constexpr int kBand = 16;    // output rows of a unit

using Ints = int32_t __attribute__((vector_size(4 * kLanes)));
using Weights = int16_t __attribute__((vector_size(2 * kLanes)));
using Bytes = uint8_t __attribute__((vector_size(kLanes)));
static_assert(3 * kPixels % kLanes == 0, "a block of colours is whole vectors");

FASTSCNN_INLINE Ints widen(const uint8_t* p) {
    Bytes v;
    std::memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, Ints);
}

FASTSCNN_INLINE Ints widen(const int16_t* p) {
    Weights v;
    std::memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, Ints);
}

// y = round((a * w0 + b * w1) / 2^bits) for kLanes bytes.
FASTSCNN_INLINE void mix(const uint8_t* a, const uint8_t* b, Ints w0, Ints w1, int bits,
                         uint8_t* y) {
    const Ints sum = widen(a) * w0 + widen(b) * w1 + (1 << (bits - 1));
    const Bytes bytes = __builtin_convertvector(sum >> bits, Bytes);
    std::memcpy(y, &bytes, sizeof bytes);
}

// Two neighbouring pixels as RGB. Eight bytes are read, and four written to each place.
template <bool kBgr>
FASTSCNN_INLINE void move_two(const uint8_t* from, uint8_t* left, uint8_t* right) {
    uint64_t both;
    std::memcpy(&both, from, 8);
    uint32_t l = uint32_t(both), r = uint32_t(both >> 24);
    if (kBgr) l = __builtin_bswap32(l) >> 8, r = __builtin_bswap32(r) >> 8;
    std::memcpy(left, &l, 4);
    std::memcpy(right, &r, 4);
}

// The same at the end of a row, where there may be nothing to the right.
template <bool kBgr>
FASTSCNN_INLINE void move_last(const uint8_t* row, int l, int in, uint8_t* left, uint8_t* right) {
    const int r = l + 1 < in ? l + 1 : l;
    for (int c = 0; c < 3; ++c) {
        left[c] = row[3 * l + (kBgr ? 2 - c : c)];
        right[c] = row[3 * r + (kBgr ? 2 - c : c)];
    }
}

// One input row to the output's width; `y` has room for whole vectors.
template <bool kBgr>
void resize_row(const ByteAxisView& x, const uint8_t* row, uint8_t* y) {
    uint8_t left[3 * kPixels + kLanes], right[3 * kPixels + kLanes];
    for (int at = 0; at < x.out; at += kPixels) {
        const int n = x.out - at < kPixels ? x.out - at : kPixels;
        int i = 0;
        for (; i < n && x.index[at + i] + 3 <= x.in; ++i)
            move_two<kBgr>(row + 3 * x.index[at + i], left + 3 * i, right + 3 * i);
        for (; i < n; ++i)
            move_last<kBgr>(row, x.index[at + i], x.in, left + 3 * i, right + 3 * i);
        for (i = 0; i < 3 * n; i += kLanes)
            mix(left + i, right + i, widen(x.w0 + 3 * at + i), widen(x.w1 + 3 * at + i), x.bits,
                y + 3 * at + i);
    }
}

// One row as it is, but RGB.
FASTSCNN_INLINE void copy_row(const uint8_t* __restrict from, int pixels, bool bgr,
                              uint8_t* __restrict to) {
    if (!bgr) return void(std::memcpy(to, from, 3 * size_t(pixels)));
    for (int i = 0; i < pixels; ++i)
        for (int c = 0; c < 3; ++c) to[3 * i + c] = from[3 * i + 2 - c];
}

}  // namespace

// A unit is a band of output rows; a worker keeps the two input rows that it resized last. Bound by
// the moves of two pixels for every output pixel and input row.
int64_t resize_frame(const ResizeFrameParams& p) {
    const int64_t row_bytes = 3 * int64_t(p.x.out), room = padded(row_bytes + kLanes);
    if (!p.scratch) return padded(p.threads * 2 * room / 4 + 1);
    const int bands = (p.y.out + kBand - 1) / kBand;
    share(p, int64_t(p.batch) * bands, [&](int unit, int worker) {
        const int n = unit / bands, begin = unit % bands * kBand;
        const int end = begin + kBand < p.y.out ? begin + kBand : p.y.out;
        if (p.x.in == p.x.out && p.y.in == p.y.out) {
            for (int i = begin; i < end; ++i) {
                const int64_t row = int64_t(n) * p.y.out + i;
                copy_row(p.frame + row * p.stride, p.x.out, p.bgr, p.out + row * row_bytes);
            }
            return;
        }
        uint8_t* rows = reinterpret_cast<uint8_t*>(p.scratch) + worker * 2 * room;
        int held[2] = {-1, -1};
        const auto resized = [&](int row) {
            uint8_t* to = rows + row % 2 * room;
            if (held[row % 2] != row) {
                const uint8_t* from = p.frame + (int64_t(n) * p.y.in + row) * p.stride;
                p.bgr ? resize_row<true>(p.x, from, to) : resize_row<false>(p.x, from, to);
                held[row % 2] = row;
            }
            return to;
        };
        for (int i = begin; i < end; ++i) {
            const int top = p.y.index[i], bottom = top + 1 < p.y.in ? top + 1 : top;
            const uint8_t *a = resized(top), *b = resized(bottom);
            uint8_t* y = p.out + (int64_t(n) * p.y.out + i) * row_bytes;
            const Ints w0 = Ints{} + p.y.w0[3 * i], w1 = Ints{} + p.y.w1[3 * i];
            int64_t j = 0;
            for (; j + kLanes <= row_bytes; j += kLanes) mix(a + j, b + j, w0, w1, p.y.bits, y + j);
            for (; j < row_bytes; ++j)
                y[j] = uint8_t((a[j] * w0[0] + b[j] * w1[0] + (1 << (p.y.bits - 1))) >> p.y.bits);
        }
    });
    return 0;
}

}  // namespace fastscnn::FASTSCNN_ISA
