// The table of one instruction set's int8 kernels.

#include "kernels_int8.h"

#include "gemm.h"

namespace fastscnn::FASTSCNN_ISA {

int64_t inverted_residual_int8(const InvertedResidualInt8Params&);
int64_t feature_fusion_int8(const FeatureFusionInt8Params&);
int64_t classifier_int8(const ClassifierInt8Params&);

#define STRING_(x) #x
#define STRING(x) STRING_(x)
extern const KernelsInt8 kernels_int8;
const KernelsInt8 kernels_int8 = {
    STRING(FASTSCNN_ISA), STRING(FASTSCNN_FLOATS), inverted_residual_int8,
    feature_fusion_int8,  classifier_int8,
};

}  // namespace fastscnn::FASTSCNN_ISA
