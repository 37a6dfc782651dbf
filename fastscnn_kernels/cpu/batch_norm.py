"""Batch norm and depthwise convolutions in training, on CPU tensors in C++; see `operations.py`.

Maps are float32 or bfloat16; arithmetic, weights and their gradients are float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastscnn_kernels import extension
from fastscnn_kernels.cpu import pack

#: Bytes from which memory comes fresh from the system at every request.
_LARGE = 32 << 20


def moments(x: Tensor, *, threads: int | None = None, isa: str = "") -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel."""
    op = "moments"
    x = _map(op, "x", x)
    mean, var = torch.empty(x.shape[1]), torch.empty(x.shape[1])
    extension.load().moments(
        *(*_pixels(x), mean.data_ptr(), var.data_ptr()),
        *(pack.check_threads(op, threads), isa, pack.workspace()),
    )
    return mean, var


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    eps: float,
    batch_moments: bool,
    activation: str = "none",
    dropout: float = 0.0,
    seed: int = 0,
    threads: int | None = None,
    isa: str = "",
) -> Tensor:
    """Normalisation by given moments, an activation, and dropout."""
    op = "batch_norm"
    x = _map(op, "x", x)
    y = _empty(x)
    norm, _kept = _norm(op, (weight, bias, mean, var), eps, batch_moments, activation)
    extension.load().batch_norm(
        *(*_pixels(x), norm, (dropout, seed), y.data_ptr()),
        *(pack.check_threads(op, threads), isa, pack.workspace()),
    )
    return y


def batch_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    eps: float,
    batch_moments: bool,
    activation: str = "none",
    dropout: float = 0.0,
    seed: int = 0,
    threads: int | None = None,
    isa: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias."""
    op = "batch_norm"
    dy, x = _map(op, "gradient", dy.to(x.dtype)), _map(op, "x", x)
    dx, dweight, dbias = _empty(x), torch.empty_like(weight), torch.empty_like(bias)
    norm, _kept = _norm(op, (weight, bias, mean, var), eps, batch_moments, activation)
    extension.load().batch_norm_backward(
        *(dy.data_ptr(), *_pixels(x), norm, (dropout, seed)),
        *(dx.data_ptr(), dweight.data_ptr(), dbias.data_ptr()),
        *(pack.check_threads(op, threads), isa, pack.workspace()),
    )
    return dx, dweight, dbias


def norm_depthwise(
    x: Tensor,
    taps: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    eps: float,
    batch_moments: bool,
    activation: str = "none",
    stride: int = 1,
    dilation: int = 1,
    threads: int | None = None,
    isa: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    """`batch_norm`, a depthwise convolution of it, and the moments of the result; the normalised
    map never exists."""
    op = "norm_depthwise"
    x = _map(op, "x", x)
    norm, _kept = _norm(op, (weight, bias, mean, var), eps, batch_moments, activation)
    y = _empty(x, stride)
    y_mean, y_var = torch.empty_like(mean), torch.empty_like(var)
    source = _depthwise(op, x, taps, None, norm, stride, dilation, threads)
    extension.load().norm_depthwise(
        source, y.data_ptr(), y_mean.data_ptr(), y_var.data_ptr(), isa, pack.workspace()
    )
    return y, y_mean, y_var


def norm_depthwise_backward(
    dy: Tensor,
    x: Tensor,
    taps: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    eps: float,
    batch_moments: bool,
    activation: str = "none",
    stride: int = 1,
    dilation: int = 1,
    threads: int | None = None,
    isa: str = "",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, taps, weight and bias."""
    op = "norm_depthwise"
    dy, x = _map(op, "gradient", dy.to(x.dtype)), _map(op, "x", x)
    norm, _kept = _norm(op, (weight, bias, mean, var), eps, batch_moments, activation)
    dx, dweight, dbias = _empty(x), torch.empty_like(weight), torch.empty_like(bias)
    dtaps, dtaps_bias = torch.empty(taps.shape), torch.empty_like(bias)
    source = _depthwise(op, x, taps, None, norm, stride, dilation, threads)
    gradients = [t.data_ptr() for t in (dweight, dbias, dtaps, dtaps_bias)]
    extension.load().norm_depthwise_backward(
        source, dy.data_ptr(), dx.data_ptr(), gradients, isa, pack.workspace()
    )
    return dx, dtaps, dweight, dbias


def depthwise_conv_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    stride: int = 1,
    dilation: int = 1,
    threads: int | None = None,
    isa: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias of a depthwise convolution without activation."""
    op = "depthwise_conv"
    dy, x = _map(op, "gradient", dy.to(x.dtype)), _map(op, "x", x)
    wide = weight.float()
    dx, dweight, dbias = _empty(x), torch.empty(weight.shape), torch.empty(x.shape[1])
    norm = extension.load().Norm([0] * 4, 0.0, False, pack.ACTIVATIONS["none"])
    source = _depthwise(op, x, wide, None, norm, stride, dilation, threads)
    gradients = [0, 0, dweight.data_ptr(), dbias.data_ptr()]
    extension.load().norm_depthwise_backward(
        source, dy.data_ptr(), dx.data_ptr(), gradients, isa, pack.workspace()
    )
    return dx, dweight.to(weight.dtype), dbias.to(weight.dtype)


def _map(op: str, name: str, x: Tensor) -> Tensor:
    """Dense channels_last, float32 or bfloat16; the same memory where it is so already."""
    if x.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"{op}: {name} is {x.dtype}, expected torch.float32 or torch.bfloat16")
    return x.detach().permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _pixels(x: Tensor) -> tuple[int, bool, int, int]:
    """(address, whether bfloat16, pixels, channels)"""
    channels = x.shape[1]
    return x.data_ptr(), x.dtype == torch.bfloat16, x.numel() // channels, channels


def _norm(
    op: str, vectors: tuple[Tensor, ...], eps: float, batch_moments: bool, activation: str
) -> tuple[Any, list[Tensor]]:
    """The norm, and the tensors that it points to: weight, bias, mean, variance."""
    names = ("weight", "bias", "mean", "var")
    kept = [pack.dense(op, n, v, 1) for n, v in zip(names, vectors, strict=True)]
    bounds = pack.bounds(op, "activation", activation)
    norm = extension.load().Norm([t.data_ptr() for t in kept], eps, batch_moments, bounds)
    return norm, kept


def _depthwise(
    op: str,
    x: Tensor,
    taps: Tensor,
    bias: Tensor | None,
    norm: Any,
    stride: int,
    dilation: int,
    threads: int | None,
) -> Any:
    """What goes into the convolution; `taps` must outlive it."""
    pack.check_stride(op, stride, dilation)
    pack.check_same(op, "channels of the taps", taps.shape[0], x.shape[1])
    n, c, h, w = x.shape
    if not taps.is_contiguous() or taps.dtype != torch.float32:
        raise TypeError(f"{op}: taps are {taps.dtype}, expected contiguous torch.float32")
    return extension.load().NormDepthwise(
        *(x.data_ptr(), x.dtype == torch.bfloat16, (n, h, w, c), stride, dilation, norm),
        *(taps.data_ptr(), 0 if bias is None else bias.data_ptr()),
        pack.check_threads(op, threads),
    )


def _empty(x: Tensor, stride: int = 1) -> Tensor:
    """An uninitialised map of the dtype of x and of its size, divided by the stride."""
    n, c, h, w = x.shape
    y = torch.empty((n, pack.strided(h, stride), pack.strided(w, stride), c), dtype=x.dtype)
    if y.nbytes >= _LARGE:
        extension.load().prefer_large_pages(y.data_ptr(), y.nbytes)
    return y.permute(0, 3, 1, 2)
