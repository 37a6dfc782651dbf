// The table of one instruction set's kernels, and the packing of weights for them.

#include "kernels.h"

#include "gemm.h"

namespace fastscnn::FASTSCNN_ISA {

int64_t stem_conv(const StemParams&);
int64_t depthwise_conv(const DepthwiseParams&);
int64_t pointwise_conv(const PointwiseParams&);
int64_t dsconv(const DsconvParams&);
int64_t classifier(const ClassifierParams&);
int64_t learning_to_downsample(const DownsampleParams&);
int64_t inverted_residual(const InvertedResidualParams&);
int64_t pyramid_pool(const PyramidPoolParams&);
int64_t feature_fusion(const FeatureFusionParams&);
int64_t dense_head(const DenseHeadParams&);
int64_t cross_entropy_head(const CrossEntropyHeadParams&);
int64_t moments(const MomentsParams&);
int64_t batch_norm(const BatchNormParams&);
int64_t batch_norm_backward(const BatchNormBackwardParams&);
int64_t norm_depthwise(const NormDepthwiseParams&);
int64_t norm_depthwise_backward(const NormDepthwiseBackwardParams&);
void argmax_head(const ArgmaxHeadParams&);
void overlay(const OverlayParams&);
int64_t resize_frame(const ResizeFrameParams&);

// The inputs of a step as they are kept.
static float one_step(const float* values) {
    float step = values[0];
#if defined(__AVX512BF16__)
    const uint32_t pair = bfloat16(values[0]) | uint32_t(bfloat16(values[1])) << 16;
    std::memcpy(&step, &pair, sizeof step);
#endif
    return step;
}

static int64_t pack_matrix(const float* weight, const float* bias, int out, int inputs, int taps,
                           float* to) {
    // A 3x3 convolution is three rows of inputs, each in whole steps.
    const int pitch = pitch_of(out), rows = taps == 9 ? 3 : 1, k = inputs * taps / rows;
    const int64_t floats = int64_t(pitch) * (rows * steps(k) + 1);
    if (!to) return floats;
    const Panels panels(out);
    for (int i = 0; i < panels.count; ++i) {
        const int begin = panels.begin(i) * kLanes, end = panels.begin(i + 1) * kLanes;
        for (int row = 0; row < rows; ++row)
            for (int step = 0; step < steps(k); ++step)
                for (int o = begin; o < end; ++o, ++to) {
                    float values[kStep] = {};
                    for (int i = 0; i < kStep; ++i) {
                        const int at = step * kStep + i, tap = row * 3 + at / inputs;
                        if (o < out && at < k)
                            values[i] = weight[(int64_t(o) * inputs + at % inputs) * taps + tap];
                    }
                    *to = one_step(values);
                }
    }
    for (int o = 0; o < pitch; ++o) *to++ = o < out ? bias[o] : 0.f;
    return floats;
}

#define STRING_(x) #x
#define STRING(x) STRING_(x)
extern const Kernels kernels;
const Kernels kernels = {
    STRING(FASTSCNN_ISA),
    kLanes,
    pack_matrix,
    stem_conv,
    depthwise_conv,
    pointwise_conv,
    dsconv,
    classifier,
    learning_to_downsample,
    inverted_residual,
    pyramid_pool,
    feature_fusion,
    dense_head,
    cross_entropy_head,
    moments,
    batch_norm,
    batch_norm_backward,
    norm_depthwise,
    norm_depthwise_backward,
    argmax_head,
    overlay,
    resize_frame,
};

}  // namespace fastscnn::FASTSCNN_ISA
