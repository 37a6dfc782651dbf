"""Inverted residual block: expansion, then depthwise and projection, fused or as a pair.

y = project(f(depthwise(f(expand(x))))) + x

Equivalent to: reference.inverted_residual. The hidden tensor (6x as wide) is written and read once.
"""

from __future__ import annotations

from torch import Tensor

from fastscnn_kernels import shapes
from fastscnn_kernels.triton.depthwise_conv import depthwise_conv
from fastscnn_kernels.triton.dsconv import dsconv
from fastscnn_kernels.triton.pointwise_conv import pointwise_conv


def inverted_residual(
    x: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    project_weight: Tensor,
    project_bias: Tensor,
    *,
    stride: int = 1,
    activation: str = "relu",
    residual: bool = False,
) -> Tensor:
    """Two launches where the map has enough pixels to fill a GPU with fused tiles, else three."""
    skip = x if residual else None
    hidden = pointwise_conv(x, expand_weight, expand_bias, activation=activation)
    h, w = (shapes.convolved(s, stride) for s in x.shape[2:])
    if x.shape[0] * h * w >= shapes.FUSED_PIXELS:
        return dsconv(
            hidden, depthwise_weight, depthwise_bias, project_weight, project_bias,
            stride=stride, mid_activation=activation, activation="none", residual=skip,
        )  # fmt: skip
    y = depthwise_conv(
        hidden, depthwise_weight, depthwise_bias, stride=stride, activation=activation
    )
    return pointwise_conv(y, project_weight, project_bias, residual=skip)
