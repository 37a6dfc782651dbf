"""Inverted residual block: expand 1x1, depthwise 3x3, project 1x1, optional skip."""

from __future__ import annotations

from torch import Tensor

from fastscnn_kernels import checks, registration
from fastscnn_kernels.shapes import convolved, empty_map


def _fake(
    x: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    project_weight: Tensor,
    project_bias: Tensor,
    stride: int,
    activation: str,
    residual: bool,
) -> Tensor:
    h, w = (convolved(s, stride) for s in x.shape[2:])
    return empty_map(x, project_weight.shape[0], h, w)


_op = registration.define(
    "inverted_residual",
    "(Tensor x, Tensor expand_weight, Tensor expand_bias, Tensor depthwise_weight,"
    " Tensor depthwise_bias, Tensor project_weight, Tensor project_bias, *, SymInt stride,"
    " str activation, bool residual) -> Tensor",
    _fake,
)


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
    """Expand, depthwise and project, each folded; the projection has no activation.

    y = project(f(depthwise(f(expand(x))))) (+ x with `residual`)

    `x` N x C x H x W; weights E x C x 1 x 1, E x 1 x 3 x 3, O x E x 1 x 1; returns
    N x O x ceil(H / s) x ceil(W / s), channels_last. `residual` needs stride 1 and O = C.
    Raises TypeError or ValueError naming what does not fit.

    Ideally moves C + O / s^2 activations per input pixel (Triton: 2 E more, for the hidden
    tensor); 2 C E flops per input and 18 E + 2 E O per output pixel.

    Equivalent to:
        h = f(F.conv2d(x, expand_weight, expand_bias))
        h = f(F.conv2d(h, depthwise_weight, depthwise_bias, stride, 1, groups=E))
        F.conv2d(h, project_weight, project_bias) + x
    """
    op = "inverted_residual"
    checks.check_map(op, "x", x)
    c, e, o = x.shape[1], expand_weight.shape[0], project_weight.shape[0]
    checks.check_conv(op, "expand_", expand_weight, expand_bias, (e, c, 1, 1), x)
    checks.check_conv(op, "depthwise_", depthwise_weight, depthwise_bias, (e, 1, 3, 3), x)
    checks.check_conv(op, "project_", project_weight, project_bias, (o, e, 1, 1), x)
    checks.check_step(op, stride, 1)
    checks.check_activation(op, activation)
    if residual and (stride != 1 or o != c):
        raise ValueError(
            f"{op}: residual=True with stride {stride} and {c} -> {o} channels, expected stride 1 "
            "and equal channels"
        )
    y: Tensor = _op(
        x,
        expand_weight,
        expand_bias,
        depthwise_weight,
        depthwise_bias,
        project_weight,
        project_bias,
        stride=stride,
        activation=activation,
        residual=residual,
    )
    return y
