// Rows of maps: what the fused operations pass from stage to stage.
#pragma once

#include "depthwise.h"
#include "gemm.h"

namespace fastscnn::FASTSCNN_ISA {

constexpr Activation kNone = {-__builtin_inff(), __builtin_inff()};
constexpr Activation kRelu = {0.f, __builtin_inff()};

// Output size of a 3x3 depthwise convolution (padding = dilation) and similar.
constexpr int strided(int n, int stride) { return (n - 1) / stride + 1; }

constexpr int64_t padded(int64_t floats) { return (floats + 15) / 16 * 16; }

// Hands out pieces of a thread's scratch memory, each on its own cache line; on a null base it only
// counts.
struct Arena {
    float* base;
    int64_t used = 0;

    float* take(int64_t floats) {
        float* piece = base ? base + used : nullptr;
        used += padded(floats);
        return piece;
    }
};

// Calls body(unit, worker) for every unit, on up to `threads` threads.
template <class Params, class Body>
FASTSCNN_INLINE void share(const Params& p, int64_t units, const Body& body) {
    const auto call = [](const void* body, int unit, int worker) {
        (*static_cast<const Body*>(body))(unit, worker);
    };
    p.pool->run(p.threads, int(units), call, &body);
}

inline void fill_zero(float* p, int64_t floats) { std::memset(p, 0, floats * sizeof(float)); }

// Band i of n owns items begin .. end - 1 of `count`.
struct Share {
    int begin, end;
    Share(int count, int i, int n)
        : begin(int(int64_t(count) * i / n)), end(int(int64_t(count) * (i + 1) / n)) {}
};

// The last three rows of a map that is made row by row: row y lies at y % 3.
struct Ring {
    float* data;
    int64_t row_floats;  // of one row
    int64_t x_stride;    // floats between pixels
    int height;          // rows of the map
    int next = 0;        // first row that has not been made

    float* row(int y) const { return data + (y % 3) * row_floats; }
};

// Points tap row ky of `d` at row y of a map, or at the zero pixel where there is no such row.
FASTSCNN_INLINE void set_row(DepthwiseRow& d, int ky, const float* row, int64_t x_stride, int y,
                             int height, const float* zero) {
    const bool inside = y >= 0 && y < height;
    d.row[ky] = inside ? row : zero;
    d.x_stride[ky] = inside ? x_stride : 0;
}

FASTSCNN_INLINE DepthwiseRow depthwise(const Taps& taps, int width, int stride, int dilation,
                                       Activation act) {
    return {{},         {},     width,    taps.channels, taps.data,  taps.bias,
            taps.pitch, stride, dilation, nullptr,       taps.pitch, act,       false};
}

// Lets d write what a product reads next, [kRun, pitch] at most, into `mid`.
FASTSCNN_INLINE void to_product(DepthwiseRow& d, float* mid, int pitch) {
    d.y = mid;
    d.y_stride = pitch / kStep;
    d.in_steps = true;
}

// The product that reads it.
FASTSCNN_INLINE Gemm product_of(const DepthwiseRow& d, const Matrix& w, float* y, int64_t y_stride,
                                Activation act) {
    Gemm g = matrix_product(w, d.y, y, y_stride, act);
    g.x_stride = d.y_stride;
    g.in_steps = true;
    return g;
}

// Depthwise, then pointwise for output columns begin .. end - 1, run by run; `mid` holds kRun
// pixels and stays in L1. `y` is column `begin`.
FASTSCNN_INLINE void dsconv_row(DepthwiseRow d, const Matrix& w, Activation act, int begin, int end,
                                float* mid, float* y, int64_t y_stride) {
    to_product(d, mid, d.w_pitch);
    for (int x = begin; x < end; x += kRun, y += kRun * y_stride) {
        const int n = end - x < kRun ? end - x : kRun;
        depthwise_row(d, x, x + n);
        gemm(product_of(d, w, y, y_stride, act), n);
    }
}

}  // namespace fastscnn::FASTSCNN_ISA
