"""3x3 depthwise convolution with bias and activation."""

from __future__ import annotations

from torch import Tensor

from fastscnn_kernels import checks, registration
from fastscnn_kernels.shapes import convolved, empty_map


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, dilation: int, activation: str
) -> Tensor:
    h, w = (convolved(s, stride) for s in x.shape[2:])
    return empty_map(x, x.shape[1], h, w)


_op = registration.define(
    "depthwise_conv",
    "(Tensor x, Tensor weight, Tensor bias, *, SymInt stride, SymInt dilation, str activation)"
    " -> Tensor",
    _fake,
)


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int = 1,
    dilation: int = 1,
    activation: str = "none",
) -> Tensor:
    """3x3 depthwise convolution with padding = dilation.

    y[n, c, h, w] = f(b[c] + sum_ij weight[c, 0, i, j] x[n, c, h s + (i - 1) d, w s + (j - 1) d])

    `x` N x C x H x W, `weight` C x 1 x 3 x 3, `bias` C; returns N x C x ceil(H / s) x ceil(W / s),
    channels_last. Other layouts of `x` are copied into channels_last first. `stride` 1 or 2.
    Raises TypeError or ValueError naming the argument that does not fit.

    Moves 1 + 1 / s^2 activations per input element; 18 flops per output element.

    Equivalent to:
        f(F.conv2d(x, weight, bias, stride=s, padding=d, dilation=d, groups=C))
    """
    op = "depthwise_conv"
    checks.check_map(op, "x", x)
    checks.check_conv(op, "", weight, bias, (x.shape[1], 1, 3, 3), x)
    checks.check_step(op, stride, dilation)
    checks.check_activation(op, activation)
    y: Tensor = _op(x, weight, bias, stride=stride, dilation=dilation, activation=activation)
    return y
