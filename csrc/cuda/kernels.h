// The CUDA operations. Activations and weights are 16-bit words, NHWC; batch norm is folded; sums
// are fp32. A launcher checks (std::invalid_argument: it does not take the case; nothing was
// launched), chooses launch parameters, launches and returns "" or the error.
#pragma once

#include <cstdint>
#include <string>

struct CUstream_st;

namespace fastscnn {

using Stream = CUstream_st*;  // cudaStream_t

enum class Type { kF16, kBF16 };

struct ArgmaxHeadParams {
    const uint16_t* scores;  // [n][classes][h][w]
    uint8_t* labels;         // [n][oh][ow]
    float* confidence;       // [n][oh][ow] top-1 softmax probability, or null
    int n, classes, h, w;    // classes at most 255
    int oh, ow;
    int align_corners;       // 0 or 1
};
std::string argmax_head(Type type, ArgmaxHeadParams p, Stream stream);

struct DsconvParams {
    const uint16_t* x;            // [n][h][w][c]
    const uint16_t* depthwise;    // [9][round_up(c, 32)], taps by row; zeros after c
    const float* depthwise_bias;  // [round_up(c, 32)]
    const uint16_t* pointwise;    // [round_up(c, 32)][o_stride], zeros outside c x o
    const float* pointwise_bias;  // [o_stride]
    const uint16_t* head;         // [128][k_stride], zeros outside o x k; null: no head
    const float* head_bias;       // [k_stride]
    uint16_t* y;                  // [n][oh][ow][o]; with a head its scores [n][k][oh][ow]
    int n, h, w;
    int c, o, k;                  // channels in, out (multiples of 8), classes of the head
    int o_stride, k_stride;       // multiples of 64 (128 from o = 65 on) and of 32
    int oh, ow;
    int stride, dilation;         // 1 or 2; padding = dilation
    float mid_low, mid_high;      // bounds of the activation between the convolutions
    float low, high;              // and of the one after them
};
std::string dsconv(Type type, DsconvParams p, Stream stream);

struct InvertedResidualParams {
    const uint16_t* x;            // [n][h][w][c]
    const uint16_t* expand;       // [round_up(c, 16)][hidden_stride], zeros outside c x hidden
    const float* expand_bias;     // [hidden_stride]
    const uint16_t* depthwise;    // [9][hidden_stride], taps by row
    const float* depthwise_bias;  // [hidden_stride]
    const uint16_t* project;      // [hidden_stride][64, 96 or 128, the first not below o]
    const float* project_bias;    // [as many]
    uint16_t* y;                  // [n][oh][ow][o]
    float* partial;               // sums of the shares, as many as the plan says
    int* counters;                // zeros before and after, as many as the plan says
    int n, h, w;
    int c, o;                     // channels in, out (multiples of 8; o at most 128)
    int hidden_stride;            // hidden channels up to a multiple of 32
    int oh, ow;
    int stride, residual;         // 1 or 2; adds x (stride 1, c == o)
    float low, high;              // bounds of the activation after expand and depthwise
    int split, share;             // blocks of a tile, 32 hidden channels of each: the launcher's
};
struct InvertedResidualPlan {
    int tile_h, tiles, split;  // tiles of tile_h x 8 pixels per image, blocks per tile
    int shared;                // bytes of shared memory
    int counters;              // ints, 0 without a split
    int64_t partial;           // floats, 0 without a split
};
InvertedResidualPlan plan_inverted_residual(const InvertedResidualParams& p);
std::string inverted_residual(Type type, InvertedResidualParams p, Stream stream);

constexpr int kMaxBranches = 4, kMaxSegments = 16;

struct PyramidPoolParams {
    const uint16_t* x;         // [n][h][w][c]
    const uint16_t* branch;    // fragments: [branches][round_up(c, 16) / 16][width / 16][32][8]
    const float* branch_bias;  // [branches][width], width up to a multiple of 16 here and above
    const uint16_t* join;      // fragments: [kernel^2][inputs / 16][o_stride / 16][32][8]; inputs:
                               // x's and each branch's, each up to a multiple of 16
    const float* join_bias;    // [o_stride]
    uint16_t* y;               // [n][h][w][o]
    float* sums;               // [n][h][sum of bins][c]
    int n, h, w;
    int c, width, o;           // channels in (a multiple of 8), of a branch, out (of 8)
    int o_stride;              // o up to a multiple of 64
    int kernel;                // of the join: 1 or 3
    int branches;              // at most kMaxBranches
    int bins[kMaxBranches];    // grid of each branch; at most kMaxSegments in all
    int align_corners;         // 0 or 1
    int segments, cells;       // sums of the bins and of their squares: set by the launcher
};
std::string pyramid_pool(Type type, PyramidPoolParams p, Stream stream);

struct FeatureFusionParams {
    const uint16_t* high;         // [n][h][w][ch]
    const uint16_t* low;          // [n][lh][lw][cl]
    const uint16_t* depthwise;    // [9][round_up(cl, 64)], taps by row; null: none
    const float* depthwise_bias;  // [round_up(cl, 64)]
    const uint16_t* low_weight;   // fragments: [round_up(cl, 64) / 16][o_stride / 16][32][8]
    const uint16_t* high_weight;  // fragments: [round_up(ch, 64) / 16][o_stride / 16][32][8]
    const float* bias;            // [o_stride]: of both
    uint16_t* y;                  // [n][h][w][o]
    int n, h, w, lh, lw;
    int ch, cl, o;                // multiples of 8
    int o_stride;                 // o up to a multiple of 128
    int dilation;                 // 0 without a depthwise convolution
    int align_corners;            // 0 or 1
};
std::string feature_fusion(Type type, FeatureFusionParams p, Stream stream);

struct LearningToDownsampleParams {
    const uint8_t* frame;          // [n][h][w][3], or null
    const float* x;                // without a frame: normalised [n][3][h][w] by x_strides
    int64_t x_strides[4];          // in elements
    float scale[3], shift[3];      // of the frame's colours: 1 / (255 std), -mean / std
    const uint16_t* stem;          // [32 outputs][32]: 9 inputs and a zero per row of taps, 2 zeros
    const float* stem_bias;        // [32]
    const uint16_t* depthwise1;    // [9][32]
    const float* depthwise1_bias;  // [32]
    const uint16_t* pointwise1;    // [32][48]
    const float* pointwise1_bias;  // [48]
    const uint16_t* depthwise2;    // [9][48]
    const float* depthwise2_bias;  // [48]
    const uint16_t* pointwise2;    // [48][64]
    const float* pointwise2_bias;  // [64]
    uint16_t* y;                   // [n][h3][w3][64]
    int n, h, w;
    int top, left;                 // zeros before the frame
    int h1, w1, h2, w2, h3, w3;    // sizes after stem, first, second DSConv
    float mid_low, mid_high;       // bounds of the activation inside the DSConvs
};
std::string learning_to_downsample(Type type, LearningToDownsampleParams p, Stream stream);

}  // namespace fastscnn
