"""Depthwise separable convolution: depthwise 3x3 and pointwise in one kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastscnn_kernels import checks, registration
from fastscnn_kernels.shapes import convolved, empty_map, nhwc


def _fake(
    x: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor,
    head_weight: Tensor | None,
    head_bias: Tensor | None,
    stride: int,
    dilation: int,
    mid_activation: str,
    activation: str,
) -> Tensor:
    h, w = (convolved(s, stride) for s in x.shape[2:])
    if head_weight is None:
        return empty_map(x, pointwise_weight.shape[0], h, w)
    return torch.empty((x.shape[0], head_weight.shape[0], h, w), dtype=x.dtype, device=x.device)


def _adapt(
    implementation: registration.Implementation,
    x: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor,
    head_weight: Tensor | None,
    head_bias: Tensor | None,
    **options: Any,
) -> Tensor:
    weights = depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias
    if head_weight is None:
        return nhwc(implementation(x, *weights, **options))
    y: Tensor = implementation(x, *weights, head=(head_weight, head_bias), **options)
    return y.contiguous()


_op = registration.define(
    "dsconv",
    "(Tensor x, Tensor depthwise_weight, Tensor depthwise_bias, Tensor pointwise_weight,"
    " Tensor pointwise_bias, Tensor? head_weight, Tensor? head_bias, *, SymInt stride,"
    " SymInt dilation, str mid_activation, str activation) -> Tensor",
    _fake,
    _adapt,
)


def dsconv(
    x: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor,
    *,
    stride: int = 1,
    dilation: int = 1,
    mid_activation: str = "none",
    activation: str = "relu",
    head: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Depthwise 3x3, optional activation, pointwise 1x1, activation; optionally class scores.

    y = f(pointwise(g(depthwise(x)))) with g = `mid_activation`, f = `activation`

    `x` N x C x H x W; weights C x 1 x 3 x 3 and O x C x 1 x 1; returns
    N x O x ceil(H / s) x ceil(W / s), channels_last. On a GPU the middle tensor is rounded to the
    activations' dtype but never stored. `head` is weight K x O x 1 x 1 and bias K of a further 1x1
    convolution: then the result is its N x K x .. x .., planar (contiguous), which the heads read
    fastest. Raises TypeError or ValueError naming what does not fit.

    Moves C + O / s^2 activations per input pixel; (18 C + 2 C O) flops per output pixel. With
    `head` K instead of O (Triton: 2 O more, for the map between).

    Equivalent to:
        m = g(F.conv2d(x, depthwise_weight, depthwise_bias, s, d, d, groups=C))
        y = f(F.conv2d(m, pointwise_weight, pointwise_bias))
        F.conv2d(y, *head)
    """
    op = "dsconv"
    checks.check_map(op, "x", x)
    c, o = x.shape[1], pointwise_weight.shape[0]
    checks.check_conv(op, "depthwise_", depthwise_weight, depthwise_bias, (c, 1, 3, 3), x)
    checks.check_conv(op, "pointwise_", pointwise_weight, pointwise_bias, (o, c, 1, 1), x)
    if head is not None:
        checks.check_conv(op, "head ", *head, (head[0].shape[0], o, 1, 1), x)
    checks.check_step(op, stride, dilation)
    checks.check_activation(op, mid_activation, "mid_activation")
    checks.check_activation(op, activation)
    y: Tensor = _op(
        x,
        depthwise_weight,
        depthwise_bias,
        pointwise_weight,
        pointwise_bias,
        *(head or (None, None)),
        stride=stride,
        dilation=dilation,
        mid_activation=mid_activation,
        activation=activation,
    )
    return y
