// One output row of a 3x3 depthwise convolution, shared by the operations that contain one.
#pragma once

#include "gemm.h"

namespace fastscnn::FASTSCNN_ISA {

struct DepthwiseRow {
    const float* row[3];  // input rows above, at and below
    int64_t
        x_stride[3];    // floats between their pixels; 0 in a row outside, which is one zero pixel
    int width;          // pixels of an input row
    int channels;       // channels to compute
    const float* w;     // [9][w_pitch], first channel to compute
    const float* bias;  // likewise
    int w_pitch;        // floats between taps
    int stride;         // 1 or 2
    int dilation;
    float* y;          // [pixels, y_stride]: pixel 0 is output column `begin`
    int64_t y_stride;  // floats between pixels
    Activation act;
    bool in_steps;  // y in steps of a product (gemm.h): whole vectors, y_stride of floats all the same
};

// Output columns begin .. end - 1 of a row.
void depthwise_row(const DepthwiseRow& d, int begin, int end);

}  // namespace fastscnn::FASTSCNN_ISA
