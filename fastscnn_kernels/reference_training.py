"""The twins of what training adds: losses, batch norm, gradients; see `reference.py`."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy_head(
    scores: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    align_corners: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Bilinear to the target's size and softmax cross-entropy with its labels."""
    size = (target.shape[1], target.shape[2])
    logits = F.interpolate(scores, size, mode="bilinear", align_corners=align_corners)
    return F.cross_entropy(
        logits, target.long(), weight, ignore_index=ignore_index, reduction=reduction,
        label_smoothing=label_smoothing,
    )  # fmt: skip


def cross_entropy_head_map(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    align_corners: bool = False,
) -> Tensor:
    """The losses of the pixels, N x H x W, 0 where ignored."""
    return cross_entropy_head(
        scores, target, weight=weight, ignore_index=ignore_index, align_corners=align_corners,
        label_smoothing=label_smoothing, reduction="none",
    )  # fmt: skip


def cross_entropy_head_backward(
    pixel_grad: Tensor,
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    align_corners: bool = False,
) -> Tensor:
    """The gradient of `scores` for `pixel_grad`, N x H x W, of the losses of the pixels."""
    classes, size = scores.shape[1], (target.shape[1], target.shape[2])
    ones = scores.new_ones(classes)
    w = ones if weight is None else weight.to(scores.dtype)
    labelled = target != ignore_index
    labels = torch.where(labelled, target, 0).long()
    per_pixel = torch.where(labelled, pixel_grad, 0)
    hit = ((1 - label_smoothing) * per_pixel * w[labels])[:, None]
    each = (label_smoothing / classes * per_pixel)[:, None]
    p = F.interpolate(scores, size, mode="bilinear", align_corners=align_corners).softmax(1)
    one_hot = F.one_hot(labels, classes).permute(0, 3, 1, 2)
    grad = p * (hit + each * w.sum()) - one_hot * hit - each * w[:, None, None]
    return torch.ops.aten.upsample_bilinear2d_backward(
        grad.contiguous(), size, scores.shape, align_corners, None, None
    )


def cross_entropy_head_sums(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    gradient: bool = False,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The sum of the pixels' losses, that of the labelled pixels' weights, and the gradient of
    the first (None if not asked for); `options` as of `cross_entropy_head_map`."""
    losses = cross_entropy_head_map(scores, target, weight, **options)
    labelled = target != options.get("ignore_index", 255)
    labels = target[labelled].long()
    counts = scores.new_ones(scores.shape[1]) if weight is None else weight
    grad = None
    if gradient:
        ones = torch.ones_like(losses)
        grad = cross_entropy_head_backward(ones, scores, target, weight, **options)
    return losses.sum(), counts[labels].sum(), grad


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel of N x C x H x W, in float32 (or float64)."""
    var, mean = torch.var_mean(_wide(x), dim=(0, 2, 3), unbiased=False)
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
) -> Tensor:
    """Normalisation by given moments, an activation, and dropout. `batch_moments` concerns the
    gradient: whether `mean` and `var` are those of x itself."""
    scale = weight / torch.sqrt(var + eps)
    shift = bias - mean * scale
    y = _wide(x) * scale[:, None, None] + shift[:, None, None]
    low, high = _BOUNDS[activation]
    return dropped(y.clamp(low, high), dropout, seed).to(x.dtype)


def dropped(x: Tensor, share: float, seed: int) -> Tensor:
    """x / (1 - share) with `share` of its elements zero: those whose hash, of the seed and of their
    place among N x H x W x C modulo 2^32, is below share * 2^32."""
    if share == 0:
        return x
    n, c, h, w = x.shape
    bits = 0xFFFFFFFF
    v = torch.arange(x.numel(), device=x.device) * 0x9E3779B1 + (seed & bits)
    v = v & bits
    v = (v ^ (v >> 16)) * 0x7FEB352D & bits
    v = (v ^ (v >> 15) ^ (seed >> 32)) * 0x846CA68B & bits
    v = v ^ (v >> 16)
    kept = (v >= int(share * 2**32)).view(n, h, w, c).permute(0, 3, 1, 2)
    return x * kept / (1 - share)


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
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias."""
    std = torch.sqrt(var + eps)
    away = _wide(x) - mean[:, None, None]
    u = away * (weight / std)[:, None, None] + bias[:, None, None]
    low, high = _BOUNDS[activation]
    g = torch.where((u > low) & (u < high), dropped(_wide(dy), dropout, seed), 0)
    dbias, product = g.sum((0, 2, 3)), (g * away).sum((0, 2, 3))
    if batch_moments:
        pixels = x.numel() // x.shape[1]
        along = (product / (var + eps))[:, None, None] * away
        g = g - (dbias[:, None, None] + along) / pixels
    return ((weight / std)[:, None, None] * g).to(x.dtype), product / std, dbias


def depthwise_conv_backward(
    dy: Tensor, x: Tensor, weight: Tensor, *, stride: int = 1, dilation: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias of a depthwise convolution without activation.

    In float32 for half precision: torch 2.13 gives a wrong bfloat16 weight gradient where it is
    dilated, on CPUs.
    """
    dx, dweight, dbias = torch.ops.aten.convolution_backward(
        _wide(dy), _wide(x), _wide(weight), [x.shape[1]],
        [stride, stride], [dilation, dilation], [dilation, dilation], False, [0, 0], x.shape[1],
        [True, True, True],
    )  # fmt: skip
    return dx.to(x.dtype), dweight.to(weight.dtype), dbias.to(weight.dtype)


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
) -> tuple[Tensor, Tensor, Tensor]:
    """`batch_norm`, a 3x3 depthwise convolution of it with `taps` C x 1 x 3 x 3 and
    padding = dilation, and the moments of the result."""
    a = batch_norm(
        _wide(x), weight, bias, mean, var,
        eps=eps, batch_moments=batch_moments, activation=activation,
    )  # fmt: skip
    y = F.conv2d(a, taps, None, stride, dilation, dilation, x.shape[1])
    return y.to(x.dtype), *moments(y)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, taps, weight and bias."""
    norm: dict[str, Any] = {"eps": eps, "batch_moments": batch_moments, "activation": activation}
    wide = _wide(x)
    a = batch_norm(wide, weight, bias, mean, var, **norm)
    da, dtaps, _ = depthwise_conv_backward(_wide(dy), a, taps, stride=stride, dilation=dilation)
    dx, dweight, dbias = batch_norm_backward(da, wide, weight, bias, mean, var, **norm)
    return dx.to(x.dtype), dtaps, dweight, dbias


_BOUNDS = {"none": (-math.inf, math.inf), "relu": (0.0, math.inf), "relu6": (0.0, 6.0)}


def _wide(x: Tensor) -> Tensor:
    """float64 stays, everything else becomes float32."""
    return x if x.dtype == torch.float64 else x.float()
