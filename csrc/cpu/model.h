// What a network is built from: its structure and its folded convolutions.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "kernels.h"

namespace fastscnn {

constexpr int kBranches = 4;  // of the pyramid: bins 1, 2, 3 and 6
constexpr int kSamePadding = -1;

// Structure of one Fast-SCNN; the fields are those of fastscnn/network/config.py.
struct NetworkConfig {
    int classes = 19;                            // 1..255
    int stem_padding = 1;                        // 0, 1 or kSamePadding
    bool dsconv_relu = false;                    // between depthwise and pointwise
    bool bottleneck_relu6 = false;               // else ReLU
    std::array<int, 5> ppm_order{0, 1, 2, 3, 6};  // inputs of the join; 0: the map itself
    int ppm_join_kernel = 1;                     // 1 or 3
    bool ppm_align_corners = false;
    bool ffm_align_corners = false;
    bool head_align_corners = false;
    bool ffm_dense = false;  // first convolution of the low branch: 1x1 instead of depthwise
    int ffm_dilation = 4;
    std::array<double, 3> mean{}, std{1, 1, 1};  // of RGB in 0..1

    // Throws std::invalid_argument naming the field.
    void check() const;
};

// Name and shape of a convolution with batch norm folded in, in the order of a frame's way.
struct ConvShape {
    std::string name;  // of the module in fastscnn/network/model.py
    int out, inputs, kernel;
    bool depthwise;  // one input per output; `inputs` is 1

    int64_t weights() const { return int64_t(out) * inputs * kernel * kernel; }
};

std::vector<ConvShape> conv_shapes(const NetworkConfig& config);

// Names of the convolutions whose inputs are bytes where the trunk runs in int8.
std::vector<std::string> int8_inputs(const NetworkConfig& config);

// weight [out][inputs][kernel][kernel], bias [out]
struct Conv {
    const float* weight;
    const float* bias;
};

// Lowest and highest value of a convolution's input.
using Range = std::array<double, 2>;

struct Model {
    NetworkConfig config;
    std::vector<Conv> convs;    // one for each of conv_shapes(config); read during construction
    std::vector<Range> ranges;  // one for each of int8_inputs(config), or none
    // Dense convolutions round what they multiply to bfloat16 where that is faster. With ranges the
    // few that stay in floats do so anyway.
    bool bfloat16 = false;
};

// The nine bottlenecks: output channels and stride.
struct Bottleneck {
    int inputs, out, stride;
};
constexpr Bottleneck kBottlenecks[9] = {{64, 64, 2}, {64, 64, 1},   {64, 64, 1},
                                        {64, 96, 2}, {96, 96, 1},   {96, 96, 1},
                                        {96, 128, 1}, {128, 128, 1}, {128, 128, 1}};
constexpr int kExpansion = 6;

}  // namespace fastscnn
