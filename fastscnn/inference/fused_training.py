"""The reference's mathematics with gradients, in fused operations: batch norm with its activation,
depthwise convolutions with both. Dense convolutions are torch's."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastscnn_kernels as k
from fastscnn.network.blocks import Bottleneck, ConvBN, DSConv, activate, resize, same_padding
from fastscnn.network.config import Activation
from fastscnn.network.model import (
    AuxiliaryHead,
    Classifier,
    FastSCNN,
    FeatureFusion,
    PyramidPooling,
)


class Pending(NamedTuple):
    """A convolution's result whose batch norm and activation are still to come."""

    map: Tensor
    norm: nn.BatchNorm2d
    moments: k.Moments
    activation: Activation


def runs_fused(model: FastSCNN) -> bool:
    """Whether the model's layers are those of `network.blocks`, and nothing watches them."""
    inner = [m for m in model.modules() if m is not model]
    plain = (nn.Conv2d, nn.BatchNorm2d, nn.Dropout, nn.Sequential, nn.ModuleList, nn.ModuleDict)
    return all(
        (type(m) in plain or type(m).__module__.startswith("fastscnn.network."))
        and not (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks)
        and not (m._backward_pre_hooks)
        for m in inner
    ) and all(m.affine for m in inner if isinstance(m, nn.BatchNorm2d))


def scores(model: FastSCNN, x: Tensor) -> Tensor:
    """Class scores at 1/8 of the input size."""
    high, low = features(model, x)
    return classify(model.classifier, fuse(model.feature_fusion, high, low))


def scores_aux(model: FastSCNN, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Class scores, and those of the auxiliary heads, which the model must have."""
    assert model.aux is not None
    high, low = features(model, x)
    main = classify(model.classifier, fuse(model.feature_fusion, high, low))
    first, second = (cast(AuxiliaryHead, model.aux[name]) for name in ("high", "low"))
    return main, auxiliary(first, high), auxiliary(second, low)


def features(model: FastSCNN, x: Tensor) -> tuple[Tensor, Tensor]:
    """High-resolution and global features, as `Backbone` has them."""
    x = x.contiguous(memory_format=torch.channels_last)
    first, extractor = model.learning_to_downsample, model.global_feature_extractor
    high = finish(dsconv(first.dsconv2, dsconv(first.dsconv1, convolve(first.conv, x))))
    low = high
    for stage in (extractor.bottleneck1, extractor.bottleneck2, extractor.bottleneck3):
        for block in stage:
            low = bottleneck(cast(Bottleneck, block), low)
    return high, pyramid(extractor.ppm, low)


def convolve(layer: ConvBN, x: Tensor) -> Pending:
    """The layer's convolution, in torch."""
    if layer.same:
        top, bottom = same_padding(x.shape[2])
        left, right = same_padding(x.shape[3])
        x = F.pad(x, (left, right, top, bottom))
    return pending(layer, layer.conv(x))


def pending(layer: ConvBN, y: Tensor, batch: k.Moments | None = None) -> Pending:
    """Takes the moments of y, `batch` where they are known, into the layer's statistics."""
    norm = layer.bn
    assert norm is not None
    return Pending(y, norm, moments_of(norm, y, batch), layer.activation)


def moments_of(norm: nn.BatchNorm2d, y: Tensor, batch: k.Moments | None = None) -> k.Moments:
    """What the layer normalises y by; in training its running statistics move, as in torch."""
    if norm.running_mean is not None and norm.running_var is not None and not norm.training:
        return k.Moments(norm.running_mean, norm.running_var, False)
    count = y.numel() // y.shape[1]
    if count == 1:
        raise ValueError(
            "training needs more than one value per channel: batch norm has one; got a map of "
            f"{tuple(y.shape)} (use model.eval() or a larger batch)"
        )
    batch = batch or k.moments(y)
    if norm.training and norm.running_mean is not None and norm.running_var is not None:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        momentum = norm.momentum
        if momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
        with torch.no_grad():
            norm.running_mean.mul_(1 - momentum).add_(batch.mean, alpha=momentum)
            unbiased = momentum * count / (count - 1)
            norm.running_var.mul_(1 - momentum).add_(batch.var, alpha=unbiased)
    return batch


def finish(p: Pending, dropout: nn.Dropout | None = None) -> Tensor:
    """The batch norm, the activation, and dropout, whose seed torch's generator gives."""
    share = dropout.p if dropout is not None and dropout.training else 0.0
    seed = int(torch.randint(1 << 62, ())) if share else 0
    return k.batch_norm(
        p.map, p.norm.weight, p.norm.bias, p.moments,
        eps=p.norm.eps, activation=p.activation, dropout=share, seed=seed,
    )  # fmt: skip


def depthwise(layer: ConvBN, x: Pending | Tensor) -> Pending:
    """The layer's depthwise convolution of a map, whose batch norm it takes over."""
    conv = layer.conv
    stride, dilation = conv.stride[0], conv.dilation[0]
    if isinstance(x, Pending) and conv.bias is None:
        y, batch = k.norm_depthwise(
            x.map, conv.weight, x.norm.weight, x.norm.bias, x.moments,
            eps=x.norm.eps, activation=x.activation, stride=stride, dilation=dilation,
        )  # fmt: skip
        return pending(layer, y, batch)
    x = finish(x) if isinstance(x, Pending) else x
    bias = conv.bias if conv.bias is not None else conv.weight.new_zeros(conv.out_channels)
    return pending(layer, k.depthwise_conv(x, conv.weight, bias, stride=stride, dilation=dilation))


def dsconv(block: DSConv, x: Pending | Tensor) -> Pending:
    return convolve(block.pointwise, finish(depthwise(block.depthwise, x)))


def bottleneck(block: Bottleneck, x: Tensor) -> Tensor:
    hidden = depthwise(block.depthwise, convolve(block.expand, x))
    y = finish(convolve(block.project, finish(hidden)))
    return x + y if block.residual else y


def pyramid(block: PyramidPooling, x: Tensor) -> Tensor:
    block.check_batch(x)
    size = (x.shape[2], x.shape[3])
    maps = {0: x}
    for bins, branch in zip(block.bins, block.branches, strict=True):
        y = finish(convolve(cast(ConvBN, branch), F.adaptive_avg_pool2d(x, bins)))
        maps[bins] = resize(y, size, block.align_corners)
    return finish(convolve(block.join, torch.cat([maps[b] for b in block.order], dim=1)))


def fuse(block: FeatureFusion, high: Tensor, low: Tensor) -> Tensor:
    low = resize(low, (high.shape[2], high.shape[3]), block.align_corners)
    dense = block.depthwise.conv.groups == 1
    y = finish(convolve(block.depthwise, low) if dense else depthwise(block.depthwise, low))
    y = unless_bare(block.low, y)
    if not block.zero_skip:
        y = y + unless_bare(block.high, high)
    return F.relu(y)


def unless_bare(layer: ConvBN, x: Tensor) -> Tensor:
    """A layer that may have no batch norm."""
    return (
        activate(layer.conv(x), layer.activation)
        if layer.bn is None
        else finish(convolve(layer, x))
    )


def classify(block: Classifier, x: Tensor) -> Tensor:
    scores: Tensor = block.conv(
        finish(dsconv(block.dsconv2, dsconv(block.dsconv1, x)), block.dropout)
    )
    return scores


def auxiliary(head: AuxiliaryHead, x: Tensor) -> Tensor:
    first, dropout, last = head
    scores: Tensor = last(finish(convolve(cast(ConvBN, first), x), cast(nn.Dropout, dropout)))
    return scores
