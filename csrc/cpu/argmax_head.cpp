// argmax_head: bilinear sampling of class scores and the best class of every output pixel.

#include <cmath>

#include "rows.h"

namespace fastscnn::FASTSCNN_ISA {
namespace {

constexpr int kMaxClasses = 255;

// A class this far below the winner adds less than 2e-11 to the sum of the softmax.
constexpr float kNegligible = 25.f;

// The scores at the four corners of a cell.
struct Corners {
    const float *top_left, *top_right, *bottom_left, *bottom_right;
};

// First class of vector v: the last vector ends at the last class, over the one before it.
FASTSCNN_INLINE int first_class(int classes, int v) {
    const int end = classes < kShort * (v + 1) ? classes : kShort * (v + 1);
    return end < kShort ? 0 : end - kShort;
}

// The classes that can win somewhere in the cell, ascending; returns how many.
//
// Sampling in the form w0 * a + w1 * b is monotone in every corner, also after rounding. So inside
// the cell every class stays at or under its largest corner, and the class whose smallest corner is
// m stays at or above m: a class with no corner at m or above never wins. In most cells of a real
// image one class remains. `slack` keeps the classes down to that distance below m.
int candidates(const Corners& c, int classes, float slack, uint8_t* list) {
    Short high[(kMaxClasses + kShort - 1) / kShort];
    Short best = Short{} - INFINITY;
    const int vectors = (classes + kShort - 1) / kShort;
    for (int v = 0; v < vectors; ++v) {
        const int at = first_class(classes, v);
        Short a, b, d, e;
        if (classes >= kShort) {
            a = load<Short>(c.top_left + at), b = load<Short>(c.top_right + at);
            d = load<Short>(c.bottom_left + at), e = load<Short>(c.bottom_right + at);
        } else {
            a = load_first<Short>(c.top_left, classes, -INFINITY);
            b = load_first<Short>(c.top_right, classes, -INFINITY);
            d = load_first<Short>(c.bottom_left, classes, -INFINITY);
            e = load_first<Short>(c.bottom_right, classes, -INFINITY);
        }
        high[v] = max(max(a, b), max(d, e));
        best = max(min(min(a, b), min(d, e)), best);
    }
    const Short bound = Short{} + (max_of(best) - slack);
    int count = 0;
    for (int v = 0; v < vectors; ++v) {
        const int at = first_class(classes, v);
        uint32_t set = bits(high[v] >= bound) >> (kShort * v - at) << (kShort * v - at);
        if (classes < kShort) set &= (1u << classes) - 1;
        for (; set; set &= set - 1) list[count++] = uint8_t(at + __builtin_ctz(set));
    }
    return count;
}

// The corners' scores of the listed classes side by side, padded to whole vectors with zeros.
struct Gathered {
    float top_left[kMaxClasses + kShort], top_right[kMaxClasses + kShort];
    float bottom_left[kMaxClasses + kShort], bottom_right[kMaxClasses + kShort];

    void fill(const Corners& c, const uint8_t* list, int count) {
        for (int i = 0; i < round_up(count, kShort); ++i) {
            const bool listed = i < count;
            top_left[i] = listed ? c.top_left[list[i]] : 0.f;
            top_right[i] = listed ? c.top_right[list[i]] : 0.f;
            bottom_left[i] = listed ? c.bottom_left[list[i]] : 0.f;
            bottom_right[i] = listed ? c.bottom_right[list[i]] : 0.f;
        }
    }
};

// One output row of one cell: pixels x .. end - 1, the listed classes only.
template <bool kConfidence>
void cell_row(const Gathered& c, float w0, float w1, const AxisView& axis, int x, int end,
              const uint8_t* list, int count, uint8_t* labels, float* confidence) {
    float left[kMaxClasses + kShort], right[kMaxClasses + kShort];
    for (int i = 0; i < count; i += kShort) {
        store(left + i, w0 * load<Short>(c.top_left + i) + w1 * load<Short>(c.bottom_left + i));
        store(right + i, w0 * load<Short>(c.top_right + i) + w1 * load<Short>(c.bottom_right + i));
    }
    for (; x < end; x += kShort) {
        const bool whole = x + kShort <= axis.out;
        const auto weight = [&](const float* w) {
            return whole ? load<Short>(w + x) : load_first<Short>(w + x, end - x, 0.f);
        };
        const Short u0 = weight(axis.w0), u1 = weight(axis.w1);
        Short best = u0 * left[0] + u1 * right[0];
        ShortInt label = ShortInt{} + list[0];
        for (int i = 1; i < count; ++i) {
            const Short score = u0 * left[i] + u1 * right[i];
            const ShortInt wins = score > best;  // not >=: the lowest class wins a tie
            best = wins ? score : best;
            label = wins ? ShortInt{} + list[i] : label;
        }
        // Pixels past the cell's end are written too, and overwritten by the next cell.
        const ShortByte bytes = __builtin_convertvector(label, ShortByte);
        std::memcpy(labels + x, &bytes, whole ? kShort : end - x);
        if (kConfidence) {
            Short sum = {};
            for (int i = 0; i < count; ++i)
                sum += exp_negative(u0 * left[i] + u1 * right[i] - best);
            store_first(confidence + x, 1.f / sum, whole ? kShort : end - x);
        }
    }
}

}  // namespace

// A unit is the output rows between two source rows, worked on cell by cell. Bound by the writes of
// the labels where one class wins a cell, else by a multiplication, a multiply-add, a comparison
// and two selections per class that may win and kShort pixels.
void argmax_head(const ArgmaxHeadParams& p) {
    const int rows = p.y.in, cols = p.x.in, classes = p.classes;
    share(p, int64_t(p.batch) * rows, [&](int unit, int) {
        const int n = unit / rows, row = unit % rows;
        const int y_begin = p.y.first[row], y_end = p.y.first[row + 1];
        if (y_begin == y_end) return;
        const float* top = p.scores + int64_t(unit) * cols * classes;
        const float* bottom = row + 1 < rows ? top + int64_t(cols) * classes : top;
        const int64_t image = int64_t(n) * p.y.out * p.x.out;
        for (int col = 0; col < cols; ++col) {
            const int x = p.x.first[col], x_end = p.x.first[col + 1];
            if (x == x_end) continue;
            const int left = col * classes, right = (col + 1 < cols ? col + 1 : col) * classes;
            const Corners c = {top + left, top + right, bottom + left, bottom + right};
            uint8_t list[kMaxClasses];
            int count = candidates(c, classes, p.confidence ? kNegligible : 0.f, list);
            if (count == 0) {  // NaN everywhere
                list[0] = 0;
                count = 1;
            }
            Gathered g;
            if (count > 1 || p.confidence) g.fill(c, list, count);
            for (int y = y_begin; y < y_end; ++y) {
                uint8_t* labels = p.labels + image + int64_t(y) * p.x.out;
                if (p.confidence) {
                    float* confidence = p.confidence + image + int64_t(y) * p.x.out;
                    cell_row<true>(g, p.y.w0[y], p.y.w1[y], p.x, x, x_end, list, count, labels,
                                   confidence);
                } else if (count == 1) {
                    std::memset(labels + x, list[0], x_end - x);
                } else {
                    cell_row<false>(g, p.y.w0[y], p.y.w1[y], p.x, x, x_end, list, count, labels,
                                    nullptr);
                }
            }
        }
    });
}

}  // namespace fastscnn::FASTSCNN_ISA
