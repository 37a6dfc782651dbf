"""The operations on CPU tensors in C++."""

from fastscnn_kernels.cpu.operations import (
    argmax_head,
    cross_entropy_head_backward,
    cross_entropy_head_map,
    cross_entropy_head_sums,
    depthwise_conv,
    dsconv,
    feature_fusion,
    inverted_residual,
    learning_to_downsample,
    pointwise_conv,
    pyramid_pool,
    resize,
    softmax_head,
    stem_conv,
)

__all__ = [
    "argmax_head",
    "cross_entropy_head_backward",
    "cross_entropy_head_map",
    "cross_entropy_head_sums",
    "depthwise_conv",
    "dsconv",
    "feature_fusion",
    "inverted_residual",
    "learning_to_downsample",
    "pointwise_conv",
    "pyramid_pool",
    "resize",
    "softmax_head",
    "stem_conv",
]
