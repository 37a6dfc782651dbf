"""Fused operations on tensors; they know nothing of any network.

CPU tensors run in C++, CUDA tensors in CUDA C++ and Triton; `fastscnn_kernels.reference` holds the
plain-PyTorch twin of each. Importing this package touches no GPU and needs neither Triton nor the
C++ extension.
"""

from fastscnn_kernels.argmax_head import argmax_head
from fastscnn_kernels.batch_norm import Moments, batch_norm, moments, norm_depthwise
from fastscnn_kernels.cross_entropy_head import cross_entropy_head, cross_entropy_head_sums
from fastscnn_kernels.depthwise_conv import depthwise_conv
from fastscnn_kernels.dsconv import dsconv
from fastscnn_kernels.feature_fusion import feature_fusion
from fastscnn_kernels.inverted_residual import inverted_residual
from fastscnn_kernels.learning_to_downsample import learning_to_downsample
from fastscnn_kernels.pointwise_conv import pointwise_conv
from fastscnn_kernels.pyramid_pool import pyramid_pool
from fastscnn_kernels.softmax_head import softmax_head
from fastscnn_kernels.stem_conv import stem_conv

#: Where training runs in these operations by default: their tests have run and paid off there.
TRAINING_DEVICES = ("cpu",)

__all__ = [
    "TRAINING_DEVICES",
    "Moments",
    "argmax_head",
    "batch_norm",
    "cross_entropy_head",
    "cross_entropy_head_sums",
    "depthwise_conv",
    "dsconv",
    "feature_fusion",
    "inverted_residual",
    "learning_to_downsample",
    "moments",
    "norm_depthwise",
    "pointwise_conv",
    "pyramid_pool",
    "softmax_head",
    "stem_conv",
]
