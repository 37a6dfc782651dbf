"""Batch norm and activation in one pass, with gradients; alone or in front of a depthwise 3x3."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastscnn_kernels import checks, registration
from fastscnn_kernels.shapes import convolved, empty_map, nhwc

_VECTORS = "Tensor weight, Tensor bias, Tensor mean, Tensor var"
_NORM = "float eps, bool batch_moments, str activation"
_DROP = "float dropout, int seed"
_STEP = "SymInt stride, SymInt dilation"


class Moments(NamedTuple):
    """Mean and biased variance per channel; `batch` where they are those of the map itself, so
    that the map's gradient goes through them too."""

    mean: Tensor
    var: Tensor
    batch: bool


def _several(implementation: registration.Implementation, *args: Any, **options: Any) -> Any:
    """Maps in channels_last, vectors as they are."""
    return tuple(nhwc(t) if t.dim() == 4 else t for t in implementation(*args, **options))


def _moments_fake(x: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(x.shape[1], dtype=wide), x.new_empty(x.shape[1], dtype=wide)


_moments_op = registration.define(
    "moments", "(Tensor x) -> (Tensor, Tensor)", _moments_fake, _several, halves=True
)

_norm_backward_op = registration.define(
    "batch_norm_backward",
    f"(Tensor dy, Tensor x, {_VECTORS}, *, {_NORM}, {_DROP}) -> (Tensor, Tensor, Tensor)",
    lambda dy, x, weight, bias, mean, var, **_: (
        empty_map(x, *x.shape[1:]),
        torch.empty_like(weight),
        torch.empty_like(bias),
    ),
    _several,
    halves=True,
)


def _setup(
    ctx: Any, inputs: tuple[Tensor, ...], keyword_only_inputs: dict[str, Any], output: Any
) -> None:
    ctx.save_for_backward(*inputs)
    ctx.options = keyword_only_inputs
    if isinstance(output, tuple):
        ctx.mark_non_differentiable(*output[1:])


@once_differentiable
def _norm_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return (*_norm_backward_op(dy, *ctx.saved_tensors, **ctx.options), None, None)


_norm_op = registration.define(
    "batch_norm",
    f"(Tensor x, {_VECTORS}, *, {_NORM}, {_DROP}) -> Tensor",
    lambda x, *_, **__: empty_map(x, *x.shape[1:]),
    gradient=(_setup, _norm_backward),
    halves=True,
)


def _depthwise_fake(
    x: Tensor, taps: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor,
    *, stride: int, **_: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    h, w = (convolved(s, stride) for s in x.shape[2:])
    return empty_map(x, x.shape[1], h, w), torch.empty_like(mean), torch.empty_like(var)


_depthwise_backward_op = registration.define(
    "norm_depthwise_backward",
    f"(Tensor dy, Tensor x, Tensor taps, {_VECTORS}, *, {_NORM}, {_STEP})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    lambda dy, x, taps, weight, bias, mean, var, **_: (
        empty_map(x, *x.shape[1:]),
        taps.new_empty(taps.shape),
        torch.empty_like(weight),
        torch.empty_like(bias),
    ),
    lambda implementation, *args, **options: _taps_dense(*implementation(*args, **options)),
    halves=True,
)


def _taps_dense(dx: Tensor, dtaps: Tensor, *vectors: Tensor) -> tuple[Tensor, ...]:
    return nhwc(dx), dtaps.contiguous(), *vectors


@once_differentiable
def _depthwise_backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return (*_depthwise_backward_op(dy, *ctx.saved_tensors, **ctx.options), None, None)


_depthwise_op = registration.define(
    "norm_depthwise",
    f"(Tensor x, Tensor taps, {_VECTORS}, *, {_NORM}, {_STEP}) -> (Tensor, Tensor, Tensor)",
    _depthwise_fake,
    _several,
    gradient=(_setup, _depthwise_backward),
    halves=True,
)


def moments(x: Tensor) -> Moments:
    """The batch moments of N x C x H x W, C values each in float32; no gradient of their own."""
    checks.check_map("moments", "x", x)
    mean, var = _moments_op(x.detach())
    return Moments(mean, var, True)


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    given: Moments,
    *,
    eps: float = 1e-5,
    activation: str = "none",
    dropout: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Batch norm by given moments, an activation, and dropout.

    y = drop(f((x - mean) / sqrt(var + eps) * weight + bias))

    `x` N x C x H x W, float32, float16 or bfloat16; the vectors of `given`, `weight` and `bias`
    hold C float32 values. Returns the dtype of x, channels_last. Differentiable once, by x, weight
    and bias; x's gradient includes that of its moments where `given.batch`. `dropout` in [0, 1) is
    the share of elements that become zero, by a hash of `seed` (0 to 2^63 - 1) and of where they
    lie; the others are divided by 1 - dropout. Raises TypeError or ValueError naming the argument
    that does not fit.

    Reads x and writes y; backward reads x and dy twice and writes dx. Nothing else is stored.

    Equivalent to:
        f(F.batch_norm(x, None, None, weight, bias, training=True, eps=eps))    given = moments(x)
        f(F.batch_norm(x, mean, var, weight, bias, eps=eps))       given = Moments(mean, var, False)
    """
    vectors = _check_norm("batch_norm", x, weight, bias, given, activation)
    if not 0 <= dropout < 1:
        raise ValueError(f"batch_norm: dropout={dropout}, expected 0 or more and below 1")
    if not 0 <= seed < 1 << 63:
        raise ValueError(f"batch_norm: seed={seed}, expected 0 to 2^63 - 1")
    y: Tensor = _norm_op(
        x, *vectors, eps=eps, batch_moments=given.batch, activation=activation,
        dropout=float(dropout), seed=seed,
    )  # fmt: skip
    return y


def norm_depthwise(
    x: Tensor,
    taps: Tensor,
    weight: Tensor,
    bias: Tensor,
    given: Moments,
    *,
    eps: float = 1e-5,
    activation: str = "none",
    stride: int = 1,
    dilation: int = 1,
) -> tuple[Tensor, Moments]:
    """A 3x3 depthwise convolution of `batch_norm(x, ...)`, and the batch moments of its result.

    `taps` C x 1 x 3 x 3 float32, padding = dilation, stride 1 or 2; the rest as `batch_norm`. The
    normalised map never exists, and is not stored for the gradients.

    Equivalent to:
        y = F.conv2d(batch_norm(x, ...), taps, None, stride, dilation, dilation, groups=C)
        y, moments(y)
    """
    op = "norm_depthwise"
    vectors = _check_norm(op, x, weight, bias, given, activation)
    checks.check_tensor(op, "taps", taps, (x.shape[1], 1, 3, 3), weight)
    checks.check_step(op, stride, dilation)
    y, mean, var = _depthwise_op(
        x, taps, *vectors, eps=eps, batch_moments=given.batch, activation=activation,
        stride=stride, dilation=dilation,
    )  # fmt: skip
    return y, Moments(mean, var, True)


def _check_norm(
    op: str, x: Tensor, weight: Tensor, bias: Tensor, given: Moments, activation: str
) -> tuple[Tensor, ...]:
    checks.check_map(op, "x", x)
    checks.check_activation(op, activation)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    vectors = {"weight": weight, "bias": bias, "mean": given.mean, "var": given.var}
    for name, vector in vectors.items():
        checks.check_tensor(op, name, vector, (x.shape[1],))
        if vector.dtype != wide or vector.device != x.device:
            raise TypeError(
                f"{op}: {name} is {vector.dtype} on {vector.device}, expected {wide} on {x.device}"
            )
    return weight, bias, given.mean, given.var
