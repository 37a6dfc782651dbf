// dense_head: bilinear sampling of class scores to full-size logits or softmax probabilities.

#include "rows.h"

namespace fastscnn::FASTSCNN_ISA {
namespace {

// Samples one output row of every class into rows[classes][width].
void sample_row(const DenseHeadParams& p, const float* top, const float* bottom, float w0, float w1,
                float* rows) {
    const int classes = p.classes, width = p.x.out;
    for (int col = 0; col < p.x.in; ++col) {
        const int begin = p.x.first[col], end = p.x.first[col + 1];
        if (begin == end) continue;
        const int l = col * classes, r = (col + 1 < p.x.in ? col + 1 : col) * classes;
        for (int c = 0; c < classes; ++c) {
            const float left = w0 * top[l + c] + w1 * bottom[l + c];
            const float right = w0 * top[r + c] + w1 * bottom[r + c];
            float* row = rows + int64_t(c) * width;
            int x = begin;
            // Whole vectors may run past the cell's end: the next cell overwrites them.
            for (; x < end && x + kShort <= width; x += kShort)
                store(row + x, load<Short>(p.x.w0 + x) * left + load<Short>(p.x.w1 + x) * right);
            for (; x < end; ++x) row[x] = p.x.w0[x] * left + p.x.w1[x] * right;
        }
    }
}

// Softmax over classes of pixels x .. x + n - 1 (n <= kShort), from rows to out.
FASTSCNN_INLINE void softmax(const float* rows, int64_t row_stride, float* out, int64_t out_stride,
                             int classes, int n) {
    const auto at = [&](int c) {
        const float* p = rows + c * row_stride;
        return n == kShort ? load<Short>(p) : load_first<Short>(p, n, 0.f);
    };
    Short best = at(0);
    for (int c = 1; c < classes; ++c) best = max(best, at(c));
    Short sum = {};
    for (int c = 0; c < classes; ++c) sum += exp_negative(at(c) - best);
    const Short scale = 1.f / sum;
    for (int c = 0; c < classes; ++c) {
        const Short probability = exp_negative(at(c) - best) * scale;
        if (n == kShort)
            store(out + c * out_stride, probability);
        else
            store_first(out + c * out_stride, probability, n);
    }
}

}  // namespace

// A unit is an output row; bound by the writes of the output (classes * 4 bytes a pixel).
int64_t dense_head(const DenseHeadParams& p) {
    const int classes = p.classes, width = p.x.out;
    if (!p.scratch) return int64_t(p.threads) * classes * width;
    const int64_t plane = int64_t(p.y.out) * width;
    share(p, int64_t(p.batch) * p.y.out, [&](int unit, int worker) {
        const int n = unit / p.y.out, y = unit % p.y.out, row = p.y.index[y];
        const float* top = p.scores + (int64_t(n) * p.y.in + row) * p.x.in * classes;
        const float* bottom = row + 1 < p.y.in ? top + int64_t(p.x.in) * classes : top;
        float* out = p.out + n * classes * plane + int64_t(y) * width;
        float* rows = p.scratch + int64_t(worker) * classes * width;
        sample_row(p, top, bottom, p.y.w0[y], p.y.w1[y], rows);
        if (p.softmax) {
            for (int x = 0; x < width; x += kShort)
                softmax(rows + x, width, out + x, plane, classes,
                        width - x < kShort ? width - x : kShort);
        } else {
            for (int c = 0; c < classes; ++c)
                std::memcpy(out + c * plane, rows + int64_t(c) * width, width * sizeof(float));
        }
    });
    return 0;
}

}  // namespace fastscnn::FASTSCNN_ISA
