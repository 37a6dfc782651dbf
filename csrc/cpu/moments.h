// Mean and variance per channel, in parts that are joined in a fixed order.
#pragma once

#include "storage.h"

namespace fastscnn::FASTSCNN_ISA {

// Mean and sum of squared deviations of `pixels` values per channel.
template <class T>
FASTSCNN_INLINE void moments_of(const T* x, int64_t stride, int pixels, int channels, float* mean,
                                float* squares) {
    by_vector(channels, [&](int c, int n) FASTSCNN_LAMBDA {
        Vec sum[4] = {};
        const auto over = [&](const auto& add) FASTSCNN_LAMBDA {
            int p = 0;
            for (; p + 4 <= pixels; p += 4)
                for (int i = 0; i < 4; ++i) add(sum[i], read(x + (p + i) * stride + c, n));
            for (; p < pixels; ++p) add(sum[0], read(x + p * stride + c, n));
            return (sum[0] + sum[1]) + (sum[2] + sum[3]);
        };
        const Vec m = over([](Vec& s, Vec v) FASTSCNN_LAMBDA { s += v; }) / float(pixels);
        for (Vec& s : sum) s = Vec{};
        const Vec q = over([m](Vec& s, Vec v) FASTSCNN_LAMBDA { s += (v - m) * (v - m); });
        write(mean + c, m, n);
        write(squares + c, q, n);
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
