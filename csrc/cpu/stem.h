// The first convolution, row by row: shared by stem_conv and learning_to_downsample.
#pragma once

#include "rows.h"

namespace fastscnn::FASTSCNN_ISA {

// Three normalised rows of the frame with zeros on both sides. A row y lies at (y + 3) % 3 and is
// made on first use; rows outside the frame are zeros, because padding is zero after normalisation.
class StemRows {
  public:
    static int64_t floats(const StemParams& p) { return 3 * row_floats(p) + 2 * kPattern; }

    StemRows(const StemParams& p, float* scratch) : p_(p), rows_(scratch) {
        scale_ = scratch + 3 * row_floats(p);
        shift_ = scale_ + kPattern;
        for (int i = 0; i < kPattern; ++i) {
            scale_[i] = p.scale[i % 3];
            shift_[i] = p.shift[i % 3];
        }
        fill_zero(rows_, 3 * row_floats(p));
    }

    // One row of the convolution, all columns and channels, into out[out_w][y_stride].
    void convolve(int image, int y, float* out, int64_t y_stride) {
        Gemm g = matrix_product(p_.weight, nullptr, out, y_stride, p_.act);
        three_rows(g, 9, 6);
        for (int ky = 0; ky < 3; ++ky) g.x[ky] = row(image, 2 * y - p_.top + ky);
        gemm(g, p_.out_w);
    }

  private:
    static constexpr int kPattern = 48;  // multiple of 3 channels and of every vector

    // Columns that the last patch may touch, in whole patterns.
    static int64_t row_floats(const StemParams& p) {
        const int width = p.left + p.w > 2 * p.out_w + 1 ? p.left + p.w : 2 * p.out_w + 1;
        return round_up(3 * width, kPattern) + kPattern;
    }

    const float* row(int image, int y) {
        const int slot = (y + 3) % 3;
        float* to = rows_ + slot * row_floats(p_);
        const int64_t key = int64_t(image) * (p_.h + 6) + y + 3;
        if (held_[slot] == key) return to;
        held_[slot] = key;
        float* inside = to + 3 * p_.left;
        const int n = 3 * p_.w;
        if (y < 0 || y >= p_.h) {
            fill_zero(inside, n);
        } else if (p_.frame) {
            normalize(p_.frame + (int64_t(image) * p_.h + y) * n, n, inside);
        } else {
            std::memcpy(inside, p_.x + (int64_t(image) * p_.h + y) * n, n * sizeof(float));
        }
        return to;
    }

    void normalize(const uint8_t* from, int n, float* to) const {
        int i = 0;
        for (; i + kPattern <= n; i += kPattern)
            for (int j = 0; j < kPattern; ++j) to[i + j] = from[i + j] * scale_[j] + shift_[j];
        for (int j = 0; i + j < n; ++j) to[i + j] = from[i + j] * scale_[j] + shift_[j];
    }

    const StemParams& p_;
    float* rows_;
    float* scale_;  // [kPattern], repeating
    float* shift_;
    int64_t held_[3] = {-1, -1, -1};
};

}  // namespace fastscnn::FASTSCNN_ISA
