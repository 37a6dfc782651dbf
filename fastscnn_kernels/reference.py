"""The specification: every operation in plain PyTorch, importable with no GPU and no extension.

Activations are N x C x H x W tensors in channels_last memory; convolution weights have torch's
layout (out, in / groups, kh, kw) with batch norm already folded into weight and bias.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastscnn_kernels.reference_training import (  # noqa: F401
    batch_norm,
    batch_norm_backward,
    cross_entropy_head,
    cross_entropy_head_backward,
    cross_entropy_head_map,
    cross_entropy_head_sums,
    depthwise_conv_backward,
    moments,
    norm_depthwise,
    norm_depthwise_backward,
)


def activate(x: Tensor, activation: str) -> Tensor:
    """ReLU, ReLU6 or nothing."""
    if activation == "relu":
        return F.relu(x)
    if activation == "relu6":
        return F.relu6(x)
    if activation == "none":
        return x
    raise ValueError(f"activation={activation!r}: expected 'none', 'relu' or 'relu6'")


def resize(x: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Bilinear sampling of N x C x h x w to N x C x H x W."""
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def resize_frame(frame: Tensor, size: tuple[int, int], *, bgr: bool = False) -> Tensor:
    """Bilinear resize of uint8 N x H x W x 3, RGB or `bgr`, to RGB in integers, first columns, then
    rows.

    Weights are those of half-pixel sampling in units of 2^-b, with the largest b for which they
    stay below 2^15; each axis rounds to bytes, halves up. This is what PyTorch does for uint8 on
    x86-64 CPUs with AVX2:
    F.interpolate(frame.permute(0, 3, 1, 2), size, mode="bilinear").permute(0, 2, 3, 1)
    """
    frame = frame.flip(-1) if bgr else frame
    return _resize_bytes(_resize_bytes(frame, 2, size[1]), 1, size[0])


def _resize_bytes(x: Tensor, dim: int, out: int) -> Tensor:
    size = x.shape[dim]
    at = ((torch.arange(out, dtype=torch.float64) + 0.5) * (size / out) - 0.5).clamp_min(0)
    low = at.long().clamp_max(size - 1)
    t = torch.where(low + 1 < size, at - low, 0.0)
    bits = 0
    while int(0.5 + float(torch.maximum(t, 1 - t).max()) * 2 ** (bits + 1)) < 2**15:
        bits += 1
    shape = [-1 if i == dim else 1 for i in range(x.dim())]
    w0, w1 = ((w * 2**bits + 0.5).int().reshape(shape) for w in (1 - t, t))
    left, right = (x.index_select(dim, i.clamp_max(size - 1)).int() for i in (low, low + 1))
    return ((left * w0 + right * w1 + 2 ** (bits - 1)) >> bits).byte()


def same_padding(size: int, stride: int = 2, kernel: int = 3) -> tuple[int, int]:
    """Zeros before and after an axis under TensorFlow's SAME rule: the odd one goes to the end."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def stem_padding(height: int, width: int, padding: int | str) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) zeros of the stem for padding 0, 1 or "same"."""
    if padding == "same":
        return (*same_padding(width), *same_padding(height))
    p = int(padding)
    return p, p, p, p


def normalize(frame: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 N x H x W x 3 to float32 N x 3 x H x W: (x / 255 - mean) / std, channels_last."""
    m, s = (  # made on the device: a graph capture allows no copy from the host
        torch.stack([frame.new_full((), v, dtype=torch.float32) for v in t]) for t in (mean, std)
    )
    return ((frame.float() / 255 - m) / s).permute(0, 3, 1, 2)


def stem_conv(
    frame: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    padding: int | str = 1,
    activation: str = "relu",
) -> Tensor:
    """3x3 stride-2 convolution of a uint8 frame, or of normalised N x 3 x H x W floats."""
    x = normalize(frame, mean, std) if frame.dtype == torch.uint8 else frame
    x = F.pad(x.to(weight.dtype), stem_padding(x.shape[2], x.shape[3], padding))
    return activate(F.conv2d(x, weight, bias, stride=2), activation)


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int = 1,
    dilation: int = 1,
    activation: str = "none",
) -> Tensor:
    """3x3 depthwise convolution with padding = dilation."""
    y = F.conv2d(
        x, weight, bias, stride=stride, padding=dilation, dilation=dilation, groups=x.shape[1]
    )
    return activate(y, activation)


def pointwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """1x1 convolution; the residual is added before the activation."""
    y = F.conv2d(x, weight, bias)
    if residual is not None:
        y = y + residual
    return activate(y, activation)


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
    """Depthwise 3x3, optional activation, pointwise 1x1, activation; with `head` (weight and bias)
    a further 1x1 convolution to class scores."""
    y = depthwise_conv(
        x,
        depthwise_weight,
        depthwise_bias,
        stride=stride,
        dilation=dilation,
        activation=mid_activation,
    )
    y = pointwise_conv(y, pointwise_weight, pointwise_bias, activation=activation)
    return y if head is None else pointwise_conv(y, *head)


def classifier(
    x: Tensor,
    dsconv1: Sequence[Tensor],
    dsconv2: Sequence[Tensor],
    head: tuple[Tensor, Tensor],
    *,
    mid_activation: str = "none",
) -> Tensor:
    """Two DSConvs (their four tensors each) and a 1x1 to class scores."""
    y = dsconv(x, *dsconv1, mid_activation=mid_activation)
    return dsconv(y, *dsconv2, mid_activation=mid_activation, head=head)


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
    """Expand 1x1, depthwise 3x3, project 1x1 without activation, optionally plus x."""
    y = pointwise_conv(x, expand_weight, expand_bias, activation=activation)
    y = depthwise_conv(y, depthwise_weight, depthwise_bias, stride=stride, activation=activation)
    return pointwise_conv(y, project_weight, project_bias, residual=x if residual else None)


def pyramid_pool(
    x: Tensor,
    branch_weights: Sequence[Tensor],
    branch_biases: Sequence[Tensor],
    join_weight: Tensor,
    join_bias: Tensor,
    *,
    order: Sequence[int] = (0, 1, 2, 3, 6),
    align_corners: bool = False,
) -> Tensor:
    """Adaptive average pools, 1x1 + ReLU each, bilinear back, concat in `order`, join, ReLU.

    Branches are given by ascending bin; 0 in `order` stands for x itself. The join is 1x1 or 3x3.
    """
    size = (x.shape[2], x.shape[3])
    maps = {0: x}
    bins = sorted(b for b in order if b)
    for b, weight, bias in zip(bins, branch_weights, branch_biases, strict=True):
        pooled = F.adaptive_avg_pool2d(x, b)
        maps[b] = resize(
            pointwise_conv(pooled, weight, bias, activation="relu"), size, align_corners
        )
    y = torch.cat([maps[b] for b in order], dim=1)
    return F.relu(F.conv2d(y, join_weight, join_bias, padding=join_weight.shape[-1] // 2))


def feature_fusion(
    high: Tensor,
    low: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    low_weight: Tensor,
    low_bias: Tensor,
    high_weight: Tensor,
    high_bias: Tensor,
    *,
    dilation: int = 4,
    align_corners: bool = False,
) -> Tensor:
    """relu(low_1x1(relu(depthwise(bilinear(low)))) + high_1x1(high)).

    A 1x1 `depthwise_weight` (C x C x 1 x 1) stands for the dense variant.
    """
    up = resize(low, (high.shape[2], high.shape[3]), align_corners)
    if depthwise_weight.shape[-1] == 1:
        up = pointwise_conv(up, depthwise_weight, depthwise_bias, activation="relu")
    else:
        up = depthwise_conv(
            up, depthwise_weight, depthwise_bias, dilation=dilation, activation="relu"
        )
    skip = pointwise_conv(high, high_weight, high_bias)
    return pointwise_conv(up, low_weight, low_bias, residual=skip, activation="relu")


def argmax_head(
    scores: Tensor,
    size: tuple[int, int],
    *,
    align_corners: bool = False,
    confidence: bool = True,
) -> tuple[Tensor, Tensor]:
    """Bilinear to `size`; uint8 labels N x H x W and the top-1 softmax probability (empty if not
    asked for)."""
    logits = resize(scores.float(), size, align_corners)
    top, labels = logits.max(dim=1)
    labels = labels.to(torch.uint8)
    if not confidence:
        return labels, top.new_empty(0)
    return labels, torch.exp(top - torch.logsumexp(logits, dim=1))


def softmax_head(scores: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """Bilinear to `size`; softmax probabilities N x C x H x W in float32."""
    return torch.softmax(resize(scores.float(), size, align_corners), dim=1)


def colorize(labels: Tensor, colors: Tensor) -> Tensor:
    """uint8 labels ... to uint8 RGB ... x 3 by the table `colors`, uint8 K x 3; labels from K on
    are black."""
    table = F.pad(colors, (0, 0, 0, 256 - len(colors)))
    return table[labels.long()]


def overlay(frame: Tensor, labels: Tensor, colors: Tensor, *, opacity: float = 0.5) -> Tensor:
    """uint8 `frame` ... x 3 mixed with the colours of its labels, floor((frame * (256 - a) + colour
    * a) / 256) with a = round(256 * opacity); where a label has no colour, the frame alone."""
    alpha = round(256 * opacity)
    mixed = frame.int() * (256 - alpha) + colorize(labels, colors).int() * alpha
    known = (labels < len(colors)).unsqueeze(-1)
    return torch.where(known, (mixed >> 8).byte(), frame)


def learning_to_downsample(
    frame: Tensor,
    stem_weight: Tensor,
    stem_bias: Tensor,
    dsconv1: Sequence[Tensor],
    dsconv2: Sequence[Tensor],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    padding: int | str = 1,
    mid_activation: str = "none",
) -> Tensor:
    """Stem and two stride-2 DSConvs; each of `dsconv1`, `dsconv2` is the four tensors of one."""
    x = stem_conv(frame, stem_weight, stem_bias, mean=mean, std=std, padding=padding)
    for d in (dsconv1, dsconv2):
        x = dsconv(x, d[0], d[1], d[2], d[3], stride=2, mid_activation=mid_activation)
    return x
