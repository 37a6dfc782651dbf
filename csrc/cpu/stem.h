// The first convolution, row by row: shared by stem_conv and learning_to_downsample.
#pragma once

#include "rows.h"

namespace fastscnn::FASTSCNN_ISA {

// An input as it lies in a step of the product.
#if defined(__AVX512BF16__)
using Element = uint16_t;
#else
using Element = float;
#endif
static_assert(sizeof(Element) * kStep == sizeof(float));

// Three normalised rows of the frame with zeros on both sides. A row y lies at (y + 3) % 3 and is
// made on first use; rows outside the frame are zeros, because padding is zero after normalisation.
class StemRows {
  public:
    static int64_t floats(const StemParams& p) { return 3 * row_elements(p) + 2 * kPattern; }

    StemRows(const StemParams& p, float* scratch)
        : p_(p), rows_(reinterpret_cast<Element*>(scratch)) {
        scale_ = scratch + 3 * row_elements(p);
        shift_ = scale_ + kPattern;
        for (int i = 0; i < kPattern; ++i) {
            scale_[i] = p.scale[i % 3];
            shift_[i] = p.shift[i % 3];
        }
        std::memset(rows_, 0, 3 * row_elements(p) * sizeof(Element));
    }

    // One row of the convolution, all columns and channels, into out[out_w][y_stride].
    void convolve(int image, int y, float* out, int64_t y_stride) {
        Gemm g = matrix_product(p_.weight, nullptr, out, y_stride, p_.act);
        three_rows(g, 9, 6 / kStep);
        g.in_steps = true;
        for (int ky = 0; ky < 3; ++ky)
            g.x[ky] = reinterpret_cast<const float*>(row(image, 2 * y - p_.top + ky));
        gemm(g, p_.out_w);
    }

  private:
    static constexpr int kPattern = 48;  // multiple of 3 channels and of every vector

    // Columns that the last patch may touch, in whole patterns.
    static int64_t row_elements(const StemParams& p) {
        const int width = p.left + p.w > 2 * p.out_w + 1 ? p.left + p.w : 2 * p.out_w + 1;
        return round_up(3 * width, kPattern) + kPattern;
    }

    const Element* row(int image, int y) {
        const int slot = (y + 3) % 3;
        Element* to = rows_ + slot * row_elements(p_);
        const int64_t key = int64_t(image) * (p_.h + 6) + y + 3;
        if (held_[slot] == key) return to;
        held_[slot] = key;
        Element* inside = to + 3 * p_.left;
        const int n = 3 * p_.w;
        if (y < 0 || y >= p_.h) {
            std::memset(inside, 0, n * sizeof(Element));
        } else if (p_.frame) {
            normalize(p_.frame + (int64_t(image) * p_.h + y) * n, n, inside);
        } else {
            const float* from = p_.x + (int64_t(image) * p_.h + y) * n;
            for (int i = 0; i < n; ++i) inside[i] = element(from[i]);
        }
        return to;
    }

    void normalize(const uint8_t* from, int n, Element* to) const {
        int i = 0;
        for (; i + kPattern <= n; i += kPattern)
            for (int j = 0; j < kPattern; ++j)
                to[i + j] = element(from[i + j] * scale_[j] + shift_[j]);
        for (int j = 0; i + j < n; ++j) to[i + j] = element(from[i + j] * scale_[j] + shift_[j]);
    }

    static FASTSCNN_INLINE Element element(float v) {
#if defined(__AVX512BF16__)
        return bfloat16(v);
#else
        return v;
#endif
    }

    const StemParams& p_;
    Element* rows_;
    float* scale_;  // [kPattern], repeating
    float* shift_;
    int64_t held_[3] = {-1, -1, -1};
};

}  // namespace fastscnn::FASTSCNN_ISA
