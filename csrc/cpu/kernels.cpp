// The table of one instruction set's kernels, and the packing of weights for them.

#include "kernels.h"

#include "gemm.h"

namespace fastscnn::FASTSCNN_ISA {

int64_t stem_conv(const StemParams&);
int64_t depthwise_conv(const DepthwiseParams&);
int64_t pointwise_conv(const PointwiseParams&);
int64_t dsconv(const DsconvParams&);
int64_t learning_to_downsample(const DownsampleParams&);
int64_t inverted_residual(const InvertedResidualParams&);
int64_t pyramid_pool(const PyramidPoolParams&);
int64_t feature_fusion(const FeatureFusionParams&);
int64_t dense_head(const DenseHeadParams&);
void argmax_head(const ArgmaxHeadParams&);
void overlay(const OverlayParams&);
int64_t resize_frame(const ResizeFrameParams&);

static int64_t pack_matrix(const float* weight, const float* bias, int out, int inputs, int taps,
                           float* to) {
    const int pitch = pitch_of(out), k = inputs * taps;
    const int64_t floats = int64_t(pitch) * (k + 1);
    if (!to) return floats;
    const Panels panels(out);
    for (int i = 0; i < panels.count; ++i) {
        const int begin = panels.begin(i) * kLanes, end = panels.begin(i + 1) * kLanes;
        for (int tap = 0; tap < taps; ++tap)
            for (int c = 0; c < inputs; ++c)
                for (int o = begin; o < end; ++o)
                    *to++ = o < out ? weight[(int64_t(o) * inputs + c) * taps + tap] : 0.f;
    }
    for (int o = 0; o < pitch; ++o) *to++ = o < out ? bias[o] : 0.f;
    return floats;
}

#define STRING_(x) #x
#define STRING(x) STRING_(x)
extern const Kernels kernels;
const Kernels kernels = {
    STRING(FASTSCNN_ISA), kLanes,         pack_matrix,    stem_conv,
    depthwise_conv,       pointwise_conv, dsconv,         learning_to_downsample,
    inverted_residual,    pyramid_pool,   feature_fusion, dense_head,
    argmax_head,          overlay,        resize_frame,
};

}  // namespace fastscnn::FASTSCNN_ISA
