#include "kernels.h"

#include "simd.h"

namespace fastscnn::FASTSCNN_ISA {

void argmax_head(const ArgmaxHeadParams&);
void dense_head(const DenseHeadParams&);

#define STRING_(x) #x
#define STRING(x) STRING_(x)
extern const Kernels kernels;
const Kernels kernels = {STRING(FASTSCNN_ISA), kLanes, argmax_head, dense_head};

}  // namespace fastscnn::FASTSCNN_ISA
