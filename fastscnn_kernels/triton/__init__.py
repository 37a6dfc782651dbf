"""The operations in Triton, under the names and signatures of their twins in `reference`."""

from fastscnn_kernels.triton.argmax_head import argmax_head, softmax_head
from fastscnn_kernels.triton.batch_norm import batch_norm, batch_norm_backward, moments
from fastscnn_kernels.triton.cross_entropy_head import (
    cross_entropy_head_backward,
    cross_entropy_head_map,
    cross_entropy_head_sums,
)
from fastscnn_kernels.triton.depthwise_conv import depthwise_conv
from fastscnn_kernels.triton.dsconv import dsconv
from fastscnn_kernels.triton.feature_fusion import feature_fusion
from fastscnn_kernels.triton.inverted_residual import inverted_residual
from fastscnn_kernels.triton.learning_to_downsample import learning_to_downsample
from fastscnn_kernels.triton.norm_depthwise import (
    depthwise_conv_backward,
    norm_depthwise,
    norm_depthwise_backward,
)
from fastscnn_kernels.triton.pointwise_conv import pointwise_conv
from fastscnn_kernels.triton.pyramid_pool import pyramid_pool
from fastscnn_kernels.triton.stem_conv import stem_conv

__all__ = [
    "argmax_head",
    "batch_norm",
    "batch_norm_backward",
    "cross_entropy_head_backward",
    "cross_entropy_head_map",
    "cross_entropy_head_sums",
    "depthwise_conv",
    "depthwise_conv_backward",
    "dsconv",
    "feature_fusion",
    "inverted_residual",
    "learning_to_downsample",
    "moments",
    "norm_depthwise",
    "norm_depthwise_backward",
    "pointwise_conv",
    "pyramid_pool",
    "softmax_head",
    "stem_conv",
]
