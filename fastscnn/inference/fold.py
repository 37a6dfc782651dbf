"""Folding of batch norm: a model's parameters become plain tensors (one pure function)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastscnn.network.blocks import ConvBN
from fastscnn.network.model import FastSCNN

#: (module, stride) of the nine bottlenecks in order.
BOTTLENECKS = tuple(
    (f"global_feature_extractor.bottleneck{stage}.{i}", 2 if i == 0 and stage < 3 else 1)
    for stage in (1, 2, 3)
    for i in range(3)
)


class Conv(NamedTuple):
    """A convolution with everything folded in: weight (out, in / groups, kh, kw) and bias (out)."""

    weight: Tensor
    bias: Tensor


def fold_batch_norm(
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
) -> Conv:
    """Weight and bias of `conv` followed by batch norm in eval mode, as one convolution.

    w' = w * gamma / sqrt(var + eps), b' = (b - mean) * gamma / sqrt(var + eps) + beta, computed in
    float64 and returned in the weight's dtype. Holds for plain, strided and depthwise kernels.
    """
    scale = torch.rsqrt(var.double() + eps)
    if gamma is not None:
        scale = scale * gamma.double()
    shift = -mean.double() * scale
    if bias is not None:
        shift = shift + bias.double() * scale
    if beta is not None:
        shift = shift + beta.double()
    w = weight.double() * scale.reshape(-1, 1, 1, 1)
    return Conv(w.to(weight.dtype), shift.to(weight.dtype))


def fold(model: FastSCNN) -> dict[str, Conv]:
    """Every convolution that inference needs, by module name, batch norm folded in.

    Names are those of `model.named_modules()`: "learning_to_downsample.conv",
    "global_feature_extractor.bottleneck1.0.expand", ..., "classifier.conv". Auxiliary heads are
    left out. With `zero_skip` the fusion's high branch folds to zeros. A layer that was replaced by
    one of another kind raises TypeError, save for nn.Identity in a batch norm's place.
    """
    folded: dict[str, Conv] = {}
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.startswith("aux"):
                continue
            if isinstance(module, ConvBN):
                folded[name] = _fold_block(name, module)
        last = model.classifier.conv
        folded["classifier.conv"] = Conv(last.weight.detach().clone(), _bias(last))
        if model.feature_fusion.zero_skip:
            skip = folded["feature_fusion.high"]
            folded["feature_fusion.high"] = Conv(
                torch.zeros_like(skip.weight), torch.zeros_like(skip.bias)
            )
    return folded


def _fold_block(name: str, block: ConvBN) -> Conv:
    conv, bn = block.conv, block.bn
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(_cannot_fold(f"{name} has conv of type {type(conv).__name__}"))
    if bn is None or isinstance(bn, nn.Identity):
        return Conv(conv.weight.detach().clone(), _bias(conv))
    if not isinstance(bn, nn.modules.batchnorm._BatchNorm):
        raise TypeError(_cannot_fold(f"{name} has bn of type {type(bn).__name__}"))
    if bn.running_mean is None or bn.running_var is None:
        raise TypeError(_cannot_fold(f"{name} has bn without running statistics"))
    return fold_batch_norm(
        conv.weight, conv.bias, bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps
    )


def _cannot_fold(what: str) -> str:
    return (
        f"{what}: expected a Conv2d and a BatchNorm2d with running statistics; run a network of "
        "another structure with fastscnn.load(..., fused=False) or as a FastSCNN"
    )


def _bias(conv: nn.Conv2d) -> Tensor:
    if conv.bias is None:
        return conv.weight.new_zeros(conv.out_channels)
    return conv.bias.detach().clone()
