"""3x3 depthwise convolution with bias and activation, with gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastscnn_kernels import checks, registration
from fastscnn_kernels.shapes import convolved, empty_map, nhwc

#: What autocast casts.
_CAST = (torch.float32, torch.float16, torch.bfloat16)


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, dilation: int, activation: str
) -> Tensor:
    h, w = (convolved(s, stride) for s in x.shape[2:])
    return empty_map(x, x.shape[1], h, w)


def _setup(
    ctx: Any, inputs: tuple[Tensor, ...], keyword_only_inputs: dict[str, Any], output: Tensor
) -> None:
    x, weight, _ = inputs
    ctx.options = dict(keyword_only_inputs)
    ctx.activation = ctx.options.pop("activation")
    ctx.save_for_backward(x, weight, output if ctx.activation != "none" else None)


@once_differentiable
def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, y = ctx.saved_tensors
    if y is not None:
        high = 6.0 if ctx.activation == "relu6" else float("inf")
        dy = torch.where((y > 0) & (y < high), dy, 0)
    gradients: tuple[Tensor | None, ...] = _backward_op(dy, x, weight, **ctx.options)
    return gradients


_op = registration.define(
    "depthwise_conv",
    "(Tensor x, Tensor weight, Tensor bias, *, SymInt stride, SymInt dilation, str activation)"
    " -> Tensor",
    _fake,
    gradient=(_setup, _backward),
)


def _backward_adapt(
    implementation: registration.Implementation, *args: Any, **options: Any
) -> tuple[Tensor, ...]:
    dx, dweight, dbias = implementation(*args, **options)
    return nhwc(dx), dweight.contiguous(), dbias


_backward_op = registration.define(
    "depthwise_conv_backward",
    "(Tensor dy, Tensor x, Tensor weight, *, SymInt stride, SymInt dilation)"
    " -> (Tensor, Tensor, Tensor)",
    lambda dy, x, weight, **_: (
        empty_map(x, *x.shape[1:]),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape[0]),
    ),
    _backward_adapt,
    halves=True,
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
    channels_last. Other layouts of `x` are copied into channels_last first. `stride` 1 or 2. Under
    autocast all three are cast first. Differentiable once, by all three; the weight's gradient is
    summed in float32, in one order. Raises TypeError or ValueError naming the argument that does
    not fit.

    Moves 1 + 1 / s^2 activations per input element; 18 flops per output element.

    Equivalent to:
        f(F.conv2d(x, weight, bias, stride=s, padding=d, dilation=d, groups=C))
    """
    op = "depthwise_conv"
    checks.check_map(op, "x", x)
    device = x.device.type
    if device in ("cpu", "cuda") and torch.is_autocast_enabled(device) and x.dtype in _CAST:
        x, weight, bias = (t.to(torch.get_autocast_dtype(device)) for t in (x, weight, bias))
    checks.check_conv(op, "", weight, bias, (x.shape[1], 1, 3, 3), x)
    checks.check_step(op, stride, dilation)
    checks.check_activation(op, activation)
    y: Tensor = _op(x, weight, bias, stride=stride, dilation=dilation, activation=activation)
    return y
