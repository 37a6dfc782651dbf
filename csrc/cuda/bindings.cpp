#include "bindings.h"

#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "device.h"
#include "kernels.h"

namespace fastscnn {

namespace {

using Address = uintptr_t;
using Range = std::pair<float, float>;

template <class T = uint16_t>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

Type type(const std::string& name) { return name == "bfloat16" ? Type::kBF16 : Type::kF16; }

Stream stream_of(Address handle) { return reinterpret_cast<Stream>(handle); }

void check(const std::string& error) {
    if (!error.empty()) throw std::runtime_error(error);
}

void cuda_argmax_head(const std::string& dtype, Address scores, Address labels, Address confidence,
                      int n, int classes, int h, int w, int oh, int ow, bool align_corners,
                      Address handle) {
    check(argmax_head(type(dtype),
                      {pointer(scores), pointer<uint8_t>(labels), pointer<float>(confidence), n,
                       classes, h, w, oh, ow, align_corners},
                      stream_of(handle)));
}

void cuda_dsconv(const std::string& dtype, Address x, Address depthwise, Address depthwise_bias,
                 Address pointwise, Address pointwise_bias, Address head, Address head_bias,
                 Address y, std::array<int, 3> size, std::array<int, 5> channels,
                 std::array<int, 2> out, int stride, int dilation, Range mid, Range last,
                 Address handle) {
    check(dsconv(type(dtype),
                 {pointer(x), pointer(depthwise), pointer<float>(depthwise_bias),
                  pointer(pointwise), pointer<float>(pointwise_bias), pointer(head),
                  pointer<float>(head_bias), pointer(y), size[0], size[1], size[2], channels[0],
                  channels[1], channels[2], channels[3], channels[4], out[0], out[1], stride,
                  dilation, mid.first, mid.second, last.first, last.second},
                 stream_of(handle)));
}

// Floats of `partial` and ints of `counters` that the present GPU wants for this map.
std::pair<int64_t, int> cuda_inverted_residual_workspace(std::array<int, 3> size,
                                                         std::array<int, 3> channels,
                                                         std::array<int, 2> out, int stride) {
    InvertedResidualParams p{};
    p.n = size[0], p.h = size[1], p.w = size[2];
    p.c = channels[0], p.o = channels[1], p.hidden_stride = channels[2];
    p.oh = out[0], p.ow = out[1], p.stride = stride;
    const InvertedResidualPlan plan = plan_inverted_residual(p);
    return {plan.partial, plan.counters};
}

void cuda_inverted_residual(const std::string& dtype, Address x, Address expand,
                            Address expand_bias, Address depthwise, Address depthwise_bias,
                            Address project, Address project_bias, Address y, Address partial,
                            Address counters, std::array<int, 3> size, std::array<int, 3> channels,
                            std::array<int, 2> out, int stride, bool residual, Range range,
                            Address handle) {
    check(inverted_residual(
        type(dtype),
        {pointer(x), pointer(expand), pointer<float>(expand_bias), pointer(depthwise),
         pointer<float>(depthwise_bias), pointer(project), pointer<float>(project_bias),
         pointer(y), pointer<float>(partial), pointer<int>(counters), size[0], size[1], size[2],
         channels[0], channels[1], channels[2], out[0], out[1], stride, residual, range.first,
         range.second, 1, 1},
        stream_of(handle)));
}

// `source` is a uint8 frame or, where `is_frame` is false, floats with `strides`; `weights` are the
// ten of the Params, in their order.
void cuda_learning_to_downsample(const std::string& dtype, Address source, bool is_frame,
                                 std::array<int64_t, 4> strides, std::array<float, 3> scale,
                                 std::array<float, 3> shift, std::array<Address, 10> weights,
                                 Address y, std::array<int, 3> size, int top, int left,
                                 std::array<int, 6> sizes, Range mid, Address handle) {
    LearningToDownsampleParams p{};
    if (is_frame)
        p.frame = pointer<uint8_t>(source);
    else
        p.x = pointer<float>(source);
    for (int i = 0; i < 4; ++i) p.x_strides[i] = strides[i];
    for (int i = 0; i < 3; ++i) p.scale[i] = scale[i], p.shift[i] = shift[i];
    p.stem = pointer(weights[0]), p.stem_bias = pointer<float>(weights[1]);
    p.depthwise1 = pointer(weights[2]), p.depthwise1_bias = pointer<float>(weights[3]);
    p.pointwise1 = pointer(weights[4]), p.pointwise1_bias = pointer<float>(weights[5]);
    p.depthwise2 = pointer(weights[6]), p.depthwise2_bias = pointer<float>(weights[7]);
    p.pointwise2 = pointer(weights[8]), p.pointwise2_bias = pointer<float>(weights[9]);
    p.y = pointer(y);
    p.n = size[0], p.h = size[1], p.w = size[2], p.top = top, p.left = left;
    p.h1 = sizes[0], p.w1 = sizes[1], p.h2 = sizes[2], p.w2 = sizes[3];
    p.h3 = sizes[4], p.w3 = sizes[5];
    p.mid_low = mid.first, p.mid_high = mid.second;
    check(learning_to_downsample(type(dtype), p, stream_of(handle)));
}

// `weights`: branch, branch_bias, join, join_bias of the Params.
void cuda_pyramid_pool(const std::string& dtype, Address x, std::array<Address, 4> weights,
                       Address y, Address sums, std::array<int, 3> size,
                       std::array<int, 4> channels, int kernel, const std::vector<int>& bins,
                       bool align_corners, Address handle) {
    PyramidPoolParams p{};
    p.x = pointer(x), p.y = pointer(y), p.sums = pointer<float>(sums);
    p.branch = pointer(weights[0]), p.branch_bias = pointer<float>(weights[1]);
    p.join = pointer(weights[2]), p.join_bias = pointer<float>(weights[3]);
    p.n = size[0], p.h = size[1], p.w = size[2];
    p.c = channels[0], p.width = channels[1], p.o = channels[2], p.o_stride = channels[3];
    p.kernel = kernel, p.align_corners = align_corners;
    for (int b : bins) {
        if (p.branches == kMaxBranches)
            throw std::invalid_argument("pyramid_pool: more than 4 branches");
        p.bins[p.branches++] = b;
    }
    check(pyramid_pool(type(dtype), p, stream_of(handle)));
}

// `weights`: depthwise, depthwise_bias, low_weight, high_weight, bias of the Params.
void cuda_feature_fusion(const std::string& dtype, Address high, Address low,
                         std::array<Address, 5> weights, Address y, std::array<int, 5> size,
                         std::array<int, 4> channels, int dilation, bool align_corners,
                         Address handle) {
    FeatureFusionParams p{};
    p.high = pointer(high), p.low = pointer(low), p.y = pointer(y);
    p.depthwise = pointer(weights[0]), p.depthwise_bias = pointer<float>(weights[1]);
    p.low_weight = pointer(weights[2]), p.high_weight = pointer(weights[3]);
    p.bias = pointer<float>(weights[4]);
    p.n = size[0], p.h = size[1], p.w = size[2], p.lh = size[3], p.lw = size[4];
    p.ch = channels[0], p.cl = channels[1], p.o = channels[2], p.o_stride = channels[3];
    p.dilation = dilation, p.align_corners = align_corners;
    check(feature_fusion(type(dtype), p, stream_of(handle)));
}

}  // namespace

void bind_cuda(pybind11::module_& m) {
    m.def("cuda_missing_code", &missing_code);
    m.def("cuda_argmax_head", &cuda_argmax_head);
    m.def("cuda_dsconv", &cuda_dsconv);
    m.def("cuda_inverted_residual_workspace", &cuda_inverted_residual_workspace);
    m.def("cuda_inverted_residual", &cuda_inverted_residual);
    m.def("cuda_learning_to_downsample", &cuda_learning_to_downsample);
    m.def("cuda_pyramid_pool", &cuda_pyramid_pool);
    m.def("cuda_feature_fusion", &cuda_feature_fusion);
}

}  // namespace fastscnn
