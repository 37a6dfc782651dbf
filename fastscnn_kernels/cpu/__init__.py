"""The operations on CPU tensors in C++."""

from fastscnn_kernels.cpu.operations import (
    argmax_head,
    colorize,
    depthwise_conv,
    dsconv,
    feature_fusion,
    inverted_residual,
    learning_to_downsample,
    overlay,
    pointwise_conv,
    pyramid_pool,
    resize,
    resize_frame,
    softmax_head,
    stem_conv,
)

__all__ = [
    "argmax_head",
    "colorize",
    "depthwise_conv",
    "dsconv",
    "feature_fusion",
    "inverted_residual",
    "learning_to_downsample",
    "overlay",
    "pointwise_conv",
    "pyramid_pool",
    "resize",
    "resize_frame",
    "softmax_head",
    "stem_conv",
]
