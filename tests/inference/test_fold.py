"""Folding of batch norm is exact in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastscnn import FusedFastSCNN, load
from fastscnn.inference.fold import fold, fold_batch_norm
from fastscnn.network.blocks import ConvBN
from fastscnn.network.config import FastSCNNConfig
from fastscnn.network.model import FastSCNN


@pytest.mark.parametrize(
    ("kernel", "stride", "groups", "bias"),
    [(1, 1, 1, False), (3, 1, 1, True), (3, 2, 1, False), (3, 1, 8, False), (3, 2, 8, True)],
    ids=["pointwise", "plain", "strided", "depthwise", "depthwise strided"],
)
def test_fold_equals_conv_and_batch_norm(kernel: int, stride: int, groups: int, bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, kernel, stride, kernel // 2, groups=groups, bias=bias).double()
    bn = nn.BatchNorm2d(8).double().eval()
    for t in (bn.weight, bn.bias, bn.running_mean):
        nn.init.normal_(t)
    nn.init.uniform_(bn.running_var, 0.1, 3)
    w, b = fold_batch_norm(
        conv.weight, conv.bias, bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps
    )
    x = torch.randn(2, 8, 9, 11, dtype=torch.float64)
    y = F.conv2d(x, w, b, stride, kernel // 2, groups=groups)
    torch.testing.assert_close(y, bn(conv(x)), rtol=1e-12, atol=1e-12)


def test_fold_lists_every_convolution_once() -> None:
    model = FastSCNN(7, aux=True)
    names = {n for n, m in model.named_modules() if isinstance(m, ConvBN) and "aux" not in n}
    assert set(fold(model)) == names | {"classifier.conv"}


def test_fold_of_zero_skip_and_of_bias_only() -> None:
    model = FastSCNN(7, config=FastSCNNConfig(ffm_bn=False), zero_skip=True)
    folded = fold(model)
    assert not folded["feature_fusion.high"].weight.any()
    assert not folded["feature_fusion.high"].bias.any()
    low = model.feature_fusion.low.conv
    assert torch.equal(folded["feature_fusion.low"].bias, low.bias)


def test_fold_leaves_the_model_alone() -> None:
    model = FastSCNN(7)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for conv in fold(model).values():
        conv.weight.zero_()
        conv.bias.zero_()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_identity_is_no_batch_norm() -> None:
    """As a user leaves it who has folded a model by hand, or fine-tunes without batch norm."""
    torch.manual_seed(0)
    model = load(None, num_classes=5)
    assert isinstance(model, FusedFastSCNN)
    model.feature_fusion.low.bn = nn.Identity()
    x = model.preprocess(torch.randint(0, 256, (64, 96, 3), dtype=torch.uint8))
    with torch.no_grad():
        torch.testing.assert_close(model(x), FastSCNN.forward(model, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("part", "layer", "message"),
    [
        ("bn", nn.GroupNorm(4, 128), "bn of type GroupNorm"),
        ("bn", nn.BatchNorm2d(128, track_running_stats=False), "bn without running statistics"),
        ("conv", nn.Identity(), "conv of type Identity"),
    ],
    ids=["group norm", "no statistics", "no convolution"],
)
def test_a_layer_that_cannot_be_folded_is_named(part: str, layer: nn.Module, message: str) -> None:
    model = load(None).eval()
    setattr(model.feature_fusion.low, part, layer.eval())
    x = torch.zeros(1, 3, 64, 96)
    with torch.no_grad(), pytest.raises(TypeError, match=f"feature_fusion.low has {message}") as e:
        model(x)
    assert "fused=False" in str(e.value)
