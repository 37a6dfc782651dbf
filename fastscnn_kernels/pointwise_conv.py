"""1x1 convolution with bias, residual and activation."""

from __future__ import annotations

from torch import Tensor

from fastscnn_kernels import checks, registration
from fastscnn_kernels.shapes import empty_map


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, activation: str
) -> Tensor:
    return empty_map(x, weight.shape[0], x.shape[2], x.shape[3])


def _adapt(
    implementation: registration.Implementation,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    **options: str,
) -> Tensor:
    return registration.one_map(implementation, x, weight, bias, residual=residual, **options)


_op = registration.define(
    "pointwise_conv",
    "(Tensor x, Tensor weight, Tensor bias, Tensor? residual, *, str activation) -> Tensor",
    _fake,
    _adapt,
)


def pointwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """1x1 convolution; the residual is added before the activation.

    y[n, o, p] = f(bias[o] + sum_k weight[o, k] x[n, k, p] + residual[n, o, p])

    `x` N x K x H x W, `weight` O x K x 1 x 1, `bias` O, `residual` and result N x O x H x W, the
    result channels_last. Raises TypeError or ValueError naming the argument that does not fit.

    Moves K + O (+ O) activations per pixel; 2 K O flops per pixel.

    Equivalent to:
        f(F.conv2d(x, weight, bias) + residual)
    """
    op = "pointwise_conv"
    checks.check_map(op, "x", x)
    n, k, h, w = x.shape
    checks.check_conv(op, "", weight, bias, (weight.shape[0], k, 1, 1), x)
    checks.check_activation(op, activation)
    if residual is not None:
        checks.check_tensor(op, "residual", residual, (n, weight.shape[0], h, w), x)
    y: Tensor = _op(x, weight, bias, residual, activation=activation)
    return y
