// What the gradients of batch norm and of what surrounds it share.
#pragma once

#include "kernels.h"

namespace fastscnn::FASTSCNN_ISA {

// sums[i] of parts[count][floats], in their order.
void sum_parts(const float* parts, int64_t count, int64_t floats, float* sums);

// y = x * scale + shift, before the activation.
void affine(const Norm& norm, int channels, float* scale, float* shift);

int64_t batch_norm_backward(const BatchNormBackwardParams&);

}  // namespace fastscnn::FASTSCNN_ISA
