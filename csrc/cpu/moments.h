// Mean and variance per channel, in parts that are joined in a fixed order.
#pragma once

#include "storage.h"

namespace fastscnn::FASTSCNN_ISA {

// Mean and sum of squared deviations of `pixels` values per channel.
template <class T>
FASTSCNN_INLINE void moments_of(const T* x, int64_t stride, int pixels, int channels, float* mean,
                                float* squares) {
    by_vector(channels, [&](int c, int n) FASTSCNN_LAMBDA {
        // Around the first value, which is near enough to the mean for the squares to hold.
        const Vec first = read(x + c, n);
        Vec sum[2] = {}, square[2] = {};
        const auto add = [&](int i, int p) FASTSCNN_LAMBDA {
            const Vec d = read(x + p * stride + c, n) - first;
            sum[i] += d, square[i] += d * d;
        };
        int p = 1;
        for (; p + 2 <= pixels; p += 2) add(0, p), add(1, p + 1);
        if (p < pixels) add(0, p);
        const Vec s = sum[0] + sum[1], m = s / float(pixels);
        write(mean + c, first + m, n);
        write(squares + c, max(Vec{}, square[0] + square[1] - s * m), n);
    });
}

// Joins the moments of `more` values to those of `count` values.
FASTSCNN_INLINE void join_moments(float* mean, float* squares, double count, const float* mean2,
                                  const float* squares2, double more, int channels) {
    const float share = float(more / (count + more)), both = float(count * share);
    by_vector(channels, [&](int c, int n) FASTSCNN_LAMBDA {
        const Vec m = read(mean + c, n), d = read(mean2 + c, n) - m;
        write(mean + c, m + share * d, n);
        write(squares + c, read(squares + c, n) + read(squares2 + c, n) + both * d * d, n);
    });
}

}  // namespace fastscnn::FASTSCNN_ISA
