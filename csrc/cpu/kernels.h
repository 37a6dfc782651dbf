// What a set of CPU kernels is: one function per operation, compiled once per instruction set.
//
// Sources of kernels include no headers of the standard library but C's. Templates of the standard
// library would be compiled with, say, AVX-512 and then serve the portable code as well, because
// the linker keeps one copy of an inline function.
#pragma once

#include <cstdint>

#include "pool.h"

namespace fastscnn {

// Bilinear sampling along one axis; see axis.h.
struct AxisView {
    int in;            // source elements
    int out;           // sampled elements
    const int* index;  // [out]
    const float* w0;   // [out]
    const float* w1;   // [out]
    const int* first;  // [in + 1]
};

// Bilinear sampling of bytes along one axis; see axis.h.
struct ByteAxisView {
    int in, out;
    const int* index;   // [out]
    const int16_t* w0;  // [out, 3], thrice the same, and room for a vector
    const int16_t* w1;  // likewise
    int bits;           // the weights are in units of 2^-bits
};

// uint8 frames to contiguous RGB of another size (or the same).
struct ResizeFrameParams {
    const uint8_t* frame;  // [batch, y.in] rows of x.in pixels
    int64_t stride;        // bytes from row to row, at least 3 * x.in
    bool bgr;              // order of the frame's channels
    int batch;
    ByteAxisView y, x;
    uint8_t* out;  // [batch, y.out, x.out, 3]
    Pool* pool;
    int threads;
    float* scratch;
};

// Class scores to labels at another size.
struct ArgmaxHeadParams {
    const float* scores;  // [batch, y.in, x.in, classes]
    uint8_t* labels;      // [batch, y.out, x.out]
    float* confidence;    // [batch, y.out, x.out], or null
    int batch;
    int classes;  // 1..255
    AxisView y, x;
    Pool* pool;
    int threads;
};

// Class scores to logits or softmax probabilities at another size.
struct DenseHeadParams {
    const float* scores;  // [batch, y.in, x.in, classes]
    float* out;           // [batch, classes, y.out, x.out]
    int batch;
    int classes;
    bool softmax;
    AxisView y, x;
    Pool* pool;
    int threads;
    float* scratch;
};

// Cross-entropy of class scores that are sampled to the labels' size, and its gradient.
struct CrossEntropyHeadParams {
    const float* scores;        // [batch, y.in, x.in, classes]
    const uint8_t* labels8;     // [batch, y.out, x.out], or null:
    const int64_t* labels64;    // the same
    const float* weight;        // [classes], or null: ones
    const float* pixel_grad;    // [batch, y.out, x.out] of the pixels' losses, or null: ones
    int64_t ignore;             // label of pixels that do not count
    float smoothing;            // share of the loss that is spread over all classes
    float* loss;                // [batch, y.out, x.out], or null
    double* sums;               // [2]: of the losses, and of the weights of the labelled pixels
    float* grad;                // like scores, or null
    int64_t* invalid;           // out: some pixel whose label is no class, or -1
    int batch;
    int classes;  // 1..255
    AxisView y, x;
    Pool* pool;
    int threads;
    float* scratch;
};

// Bounds after a convolution: 0 and infinity for ReLU, 0 and 6 for ReLU6, infinities for none.
struct Activation {
    float low, high;
};

// Floats to bytes (kernels_int8.h): round(v * inverse) + zero.
struct Quantizer {
    float inverse;  // 1 / step
    int zero;       // byte of the value 0
};

// Weights of a dense convolution, packed by `pack_matrix` for one instruction set.
struct Matrix {
    const float* data;
    const float* bias;  // [out rounded up to the lanes], zeros behind out
    int k;              // inputs: channels, or 9 * channels in the order (row, column, channel)
    int out;            // output channels
};

// Weights of a 3x3 depthwise convolution, packed by `pack_taps`.
struct Taps {
    const float* data;  // [9][pitch]
    const float* bias;  // [pitch]
    int channels;
    int pitch;  // channels rounded up to the lanes
};

// Every operation takes the scratch memory from its caller: called with `scratch` null it returns
// how many floats it needs and does nothing else. Maps are NHWC without gaps.
struct StemParams {
    const uint8_t* frame;  // [batch, h, w, 3], or null
    const float* x;        // the same, normalised, where frame is null
    float scale[3];        // a value v of the frame stands for v * scale + shift
    float shift[3];
    int batch, h, w;
    int top, left;  // rows and columns of zeros before the first
    int out_h, out_w;
    Matrix weight;  // k = 27
    Activation act;
    float* y;  // [batch, out_h, out_w, weight.out]
    Pool* pool;
    int threads;
    float* scratch;
};

struct DepthwiseParams {
    const float* x;  // [batch, h, w, channels]
    int batch, h, w;
    int stride, dilation;  // stride 1 or 2
    Taps taps;
    Activation act;
    float* y;  // [batch, (h - 1) / stride + 1, (w - 1) / stride + 1, channels]
    Pool* pool;
    int threads;
    float* scratch;
};

struct PointwiseParams {
    const float* x;         // [pixels, weight.k]
    const float* residual;  // [pixels, weight.out], or null; may be y
    int64_t pixels;
    Matrix weight;
    Activation act;
    float* y;  // [pixels, weight.out]
    Pool* pool;
    int threads;
    float* scratch;
};

struct DsconvParams {
    const float* x;  // [batch, h, w, taps.channels]
    int batch, h, w;
    int stride, dilation;
    Taps taps;
    Activation mid_act;
    Matrix weight;
    Activation act;
    Matrix last;  // a second 1x1 without activation behind it; data null: none
    float* y;     // [batch, out h, out w, weight.out or last.out]
    Pool* pool;
    int threads;
    float* scratch;
};

struct ClassifierParams {
    const float* x;  // [batch, h, w, taps1.channels]
    int batch, h, w;
    Taps taps1;
    Matrix weight1;
    Taps taps2;
    Matrix weight2;
    Matrix last;  // a 1x1 without activation behind it
    Activation mid_act, act;
    float* y;  // [batch, h, w, last.out]
    Pool* pool;
    int threads;
    float* scratch;
};

struct DownsampleParams {
    StemParams stem;  // its y, pool, threads and scratch are not used
    Taps taps1;
    Matrix weight1;
    Taps taps2;
    Matrix weight2;
    Activation mid_act, act;
    float* y;  // [batch, h / 8, w / 8, weight2.out], rounded up at every stride
    Pool* pool;
    int threads;
    float* scratch;
    Quantizer to_bytes = {};   // inverse 0: none, else
    uint8_t* bytes = nullptr;  // takes the map instead of y
};

struct InvertedResidualParams {
    const float* x;  // [batch, h, w, expand.k]
    int batch, h, w;
    int stride;
    Matrix expand;
    Taps taps;
    Matrix project;
    Activation act;  // after expand and after the depthwise convolution
    bool residual;   // adds x
    float* y;        // [batch, out h, out w, project.out]
    Pool* pool;
    int threads;
    float* scratch;
};

constexpr int kMaxBranches = 4;

struct PyramidPoolParams {
    const float* x;  // [batch, h, w, channels]
    int batch, h, w, channels;
    int branches;  // up to kMaxBranches
    int bins[kMaxBranches];
    Matrix branch[kMaxBranches];
    AxisView rows[kMaxBranches], cols[kMaxBranches];  // bins -> h, bins -> w
    int join_kernel;                                  // 1 or 3
    Matrix join;                 // 1x1: of x alone, with the bias; 3x3: of everything
    Matrix slice[kMaxBranches];  // 1x1: of every branch, without bias
    int offset[kMaxBranches +
               1];  // 3x3: first channel of every branch and of x in the join's input
    float* y;       // [batch, h, w, join.out]
    Pool* pool;
    int threads;
    float* scratch;
};

struct FeatureFusionParams {
    const float* high;  // [batch, rows.out, cols.out, high_weight.k]
    const float* low;   // [batch, rows.in, cols.in, low_weight.k]
    int batch;
    AxisView rows, cols;
    Taps taps;  // of the depthwise convolution; data null: none, only the ReLU
    int dilation;
    Matrix low_weight, high_weight;
    float* y;  // [batch, rows.out, cols.out, low_weight.out]
    Pool* pool;
    int threads;
    float* scratch;
};

// Mean and biased variance of the channels of a map.
struct MomentsParams {
    const void* x;  // [pixels, channels], float32 or bfloat16
    bool bf16;
    int64_t pixels;
    int channels;
    float *mean, *var;  // [channels]
    Pool* pool;
    int threads;
    float* scratch;
};

// y = act((x - mean) / sqrt(var + eps) * weight + bias) per channel.
struct Norm {
    const float *weight, *bias, *mean, *var;  // [channels]; weight null: y = x
    float eps;
    bool batch_moments;  // mean and var are those of x itself, and move with it
    Activation act;
};

// Sets elements to zero by a hash of the seed and of where they lie (modulo 2^32).
struct Dropout {
    uint32_t below;    // of 2^32 values of the hash, those that drop; 0: no dropout
    uint32_t seed[2];
    float scale;       // of the elements that are kept
};

struct BatchNormParams {
    const void* x;  // [pixels, channels], float32 or bfloat16
    bool bf16;
    int64_t pixels;
    int channels;
    Norm norm;
    Dropout drop;  // behind the activation
    void* y;       // like x
    Pool* pool;
    int threads;
    float* scratch;
};

struct BatchNormBackwardParams {
    const void* dy;  // [pixels, channels], float32 or bfloat16
    const void* x;   // likewise
    bool bf16;
    int64_t pixels;
    int channels;
    Norm norm;
    Dropout drop;
    const float* sums;       // [2, channels], those of dy and dy * (x - mean) where known, or null
    void* dx;                // like x; may be dy
    float *dweight, *dbias;  // [channels]
    Pool* pool;
    int threads;
    float* scratch;
};

// 3x3 depthwise convolution of a normalised map, and the moments of the result.
struct NormDepthwiseParams {
    const void* x;  // [batch, h, w, channels], float32 or bfloat16
    bool bf16;
    int batch, h, w, channels;
    int stride, dilation;  // stride 1 or 2
    Norm norm;
    const float* taps;  // [channels, 9]
    const float* bias;  // [channels] of the convolution, or null
    void* y;            // [batch, (h - 1) / stride + 1, (w - 1) / stride + 1, channels]
    float *mean, *var;  // [channels] of y, or null
    Pool* pool;
    int threads;
    float* scratch;
};

struct NormDepthwiseBackwardParams {
    NormDepthwiseParams of;         // its y, mean, var and bias are not used
    const void* dy;                 // like y
    void* dx;                       // like x, or null
    float *dweight, *dbias;         // [channels] of the norm, if there is one
    float *dtaps, *dtaps_bias;      // [channels, 9] and [channels] of the convolution
};

// Labels to the classes' colours, or to a frame tinted with them.
struct OverlayParams {
    const uint8_t* labels;  // [rows, width]
    const uint8_t* frame;   // [rows] of width pixels of 3 bytes, or null: the colours alone
    int64_t stride;         // bytes from row to row of the frame
    const uint8_t* colors;  // [classes, 3], in the order of the frame's channels
    int classes;            // labels from here on are black, or leave the frame as it is
    int alpha;              // opacity of the colours over a frame, 0..256
    uint8_t* y;             // [rows, width, 3]
    int64_t rows;
    int width;
    Pool* pool;
    int threads;
};

struct Kernels {
    const char* name;  // instruction set
    int lanes;         // floats in a vector
    // [out][inputs][taps] to packed; with `to` null returns the floats needed, bias included.
    int64_t (*pack_matrix)(const float* weight, const float* bias, int out, int inputs, int taps,
                           float* to);
    int64_t (*stem_conv)(const StemParams&);
    int64_t (*depthwise_conv)(const DepthwiseParams&);
    int64_t (*pointwise_conv)(const PointwiseParams&);
    int64_t (*dsconv)(const DsconvParams&);
    int64_t (*classifier)(const ClassifierParams&);
    int64_t (*learning_to_downsample)(const DownsampleParams&);
    int64_t (*inverted_residual)(const InvertedResidualParams&);
    int64_t (*pyramid_pool)(const PyramidPoolParams&);
    int64_t (*feature_fusion)(const FeatureFusionParams&);
    int64_t (*dense_head)(const DenseHeadParams&);
    int64_t (*cross_entropy_head)(const CrossEntropyHeadParams&);
    int64_t (*moments)(const MomentsParams&);
    int64_t (*batch_norm)(const BatchNormParams&);
    int64_t (*batch_norm_backward)(const BatchNormBackwardParams&);
    int64_t (*norm_depthwise)(const NormDepthwiseParams&);
    int64_t (*norm_depthwise_backward)(const NormDepthwiseBackwardParams&);
    void (*argmax_head)(const ArgmaxHeadParams&);
    void (*overlay)(const OverlayParams&);
    int64_t (*resize_frame)(const ResizeFrameParams&);
};

}  // namespace fastscnn
