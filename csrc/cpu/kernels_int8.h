// The int8 kernels: fused blocks whose 1x1 and depthwise convolutions multiply uint8 by int8.
//
// Maps between bottlenecks stay float; inside, a value v is q = round(v / step) + zero in 0..255.
// All integers are the same on every instruction set, so that results are too.
#pragma once

#include "kernels.h"

namespace fastscnn {

// Channels in a block of the byte layouts below; buffers of bytes are padded to it.
constexpr int kBlock = 64;

// Weights of a 1x1 convolution, packed by PackedMatrixInt8. With bytes q of the input,
// sum = start + w * q; as floats the output is sum * scale + bias, as bytes round(sum * scale).
struct MatrixInt8 {
    const int8_t* data;    // [panel][k / 4][channel of the panel][4]
    const int32_t* start;  // [padded out]
    const float* scale;    // [padded out]
    const float* bias;     // [padded out]; 0 for bytes
    int k;                 // input channels
    int out;               // output channels
};

// Weights of a 3x3 depthwise convolution from bytes to bytes, in lane order (simd_int8.h).
struct TapsInt8 {
    const int8_t* data;    // [block][column][lane][row 0, 1, 2 and a zero]
    const int32_t* start;  // [pitch]
    const float* scale;    // [pitch]
    int channels;
    int pitch;  // channels rounded up to blocks
};

struct InvertedResidualInt8Params {
    const float* x;        // [batch, h, w, expand.k], or null:
    const uint8_t* bytes;  // the same by `in`, [batch, h, w, expand.k rounded up to blocks]
    int batch, h, w;
    int stride;
    Quantizer in;
    MatrixInt8 expand;   // to bytes of zero 0, which makes it a ReLU
    TapsInt8 taps;       // likewise
    MatrixInt8 project;  // to floats
    bool residual;       // adds x, which is not null
    float* y;            // [batch, out h, out w, project.out]
    Pool* pool;
    int threads;
    float* scratch;
};

// Bytes out: of zero 0, which makes them a ReLU.
struct FeatureFusionInt8Params {
    const uint8_t* high;  // [batch, rows.out, cols.out, high_channels rounded up to blocks]
    const float* low;     // [batch, rows.in, cols.in, low_channels]
    int batch;
    int low_channels;  // a multiple of kBlock
    int high_channels;
    AxisView rows, cols;
    Quantizer low_in;
    TapsInt8 taps;  // of the depthwise convolution; data null: none, only the ReLU of low_in
    int dilation;
    MatrixInt8 weight;  // of the low branch's channels, then of the other's; to bytes
    uint8_t* y;         // [batch, rows.out, cols.out, weight.out rounded up to blocks]
    Pool* pool;
    int threads;
    float* scratch;
};

struct ClassifierInt8Params {
    const uint8_t* x;  // [batch, h, w, taps1.pitch], of zero 0
    int batch, h, w;
    TapsInt8 taps1;
    MatrixInt8 weight1;  // to bytes of zero 0, which makes it a ReLU
    TapsInt8 taps2;
    MatrixInt8 weight2;  // likewise
    MatrixInt8 last;     // to floats
    float* y;            // [batch, h, w, last.out]
    Pool* pool;
    int threads;
    float* scratch;
};

struct KernelsInt8 {
    const char* name;    // instruction set
    const char* floats;  // of the float kernels that run beside them
    int64_t (*inverted_residual)(const InvertedResidualInt8Params&);
    int64_t (*feature_fusion)(const FeatureFusionInt8Params&);
    int64_t (*classifier)(const ClassifierInt8Params&);
};

}  // namespace fastscnn
