// 1x1 and depthwise convolutions of bytes, shared by the fused int8 blocks.
#pragma once

#include "kernels_int8.h"
#include "rows.h"
#include "simd_int8.h"

namespace fastscnn::FASTSCNN_ISA {

constexpr int blocks(int channels) { return round_up(channels, kBlock); }

// Rows are worked on in runs of this many pixels, whose bytes stay in L1. A multiple of 6 and 8.
constexpr int kRunInt8 = 24;

struct GemmInt8 {
    const uint8_t* x;  // [pixels, x_stride]
    int64_t x_stride;  // bytes between pixels
    MatrixInt8 w;
    const float* add;  // floats only: [pixels, y_stride], added, or null; may be y
    float* y;          // [pixels, y_stride], or null: bytes
    int64_t y_stride;
    uint8_t* bytes;  // [pixels, bytes_stride]; whole blocks are written
    int64_t bytes_stride;
};

void gemm_int8(const GemmInt8& g, int pixels);

// One output row of a 3x3 depthwise convolution from bytes to bytes.
struct DepthwiseRowInt8 {
    const uint8_t* row[3];   // input rows above, at and below, [width, taps.pitch]
    int64_t x_stride[3];     // bytes between their pixels; 0 in a row outside, which is `outside`
    const uint8_t* outside;  // [taps.pitch]: a pixel outside the map
    int width;               // pixels of an input row
    TapsInt8 taps;
    int stride;    // 1 or 2
    int dilation;  // 1 where stride is 2
    uint8_t* y;    // [pixels, y_stride]: pixel 0 is output column `begin`; whole blocks are written
    int64_t y_stride;
};

// Output columns begin .. end - 1.
void depthwise_row_int8(const DepthwiseRowInt8& d, int begin, int end);

// Points tap row ky at row y of a map of bytes.
FASTSCNN_INLINE void set_row(DepthwiseRowInt8& d, int ky, const uint8_t* row, int y, int height) {
    const bool inside = y >= 0 && y < height;
    d.row[ky] = inside ? row : d.outside;
    d.x_stride[ky] = inside ? d.taps.pitch : 0;
}

// One row of a depthwise separable convolution to bytes; `mid` holds kRunInt8 pixels of its taps and
// stays in L1.
FASTSCNN_INLINE void dsconv_row_int8(DepthwiseRowInt8 d, const MatrixInt8& w, int begin, int end,
                                     uint8_t* mid, uint8_t* to, int64_t stride) {
    d.y = mid, d.y_stride = d.taps.pitch;
    for (int x = begin; x < end; x += kRunInt8, to += kRunInt8 * stride) {
        const int pixels = end - x < kRunInt8 ? end - x : kRunInt8;
        depthwise_row_int8(d, x, x + pixels);
        gemm_int8({mid, d.y_stride, w, nullptr, nullptr, 0, to, stride}, pixels);
    }
}

// Scratch memory in bytes.
FASTSCNN_INLINE uint8_t* take_bytes(Arena& arena, int64_t bytes) {
    return reinterpret_cast<uint8_t*>(arena.take((bytes + 3) / 4));
}

}  // namespace fastscnn::FASTSCNN_ISA
