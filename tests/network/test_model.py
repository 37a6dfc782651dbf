"""The reference network against the paper's tables."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastscnn.network.config import PRESETS, FastSCNNConfig
from fastscnn.network.model import FastSCNN, FastSCNNClassifier


def conv_macs(model: nn.Module, x: torch.Tensor) -> int:
    """Multiply-accumulates of all convolutions, counted from the real output shapes."""
    total = 0

    def count(m: nn.Conv2d, args: object, out: torch.Tensor) -> None:
        nonlocal total
        total += m.weight.numel() * out.shape[0] * out.shape[2] * out.shape[3]

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d)]
    model(x)
    for h in hooks:
        h.remove()
    return total


def test_paper_counts() -> None:
    """1.11 M convolution weights and 6.71 GMAC at 1024x2048 (Table 4 of the paper, Params)."""
    with torch.device("meta"):
        model = FastSCNN(19).eval()
        x = torch.empty(1, 3, 1024, 2048)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert sum(m.weight.numel() for m in convs) == 1_114_096
    assert sum(p.numel() for p in model.parameters()) == 1_137_795
    assert conv_macs(model, x) == 6_709_649_408


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("tramac", 1_138_051),
        ("mmseg", 1_399_939),
        ("paddleseg", 1_401_187),
        ("segmentron", 1_153_283),
        ("gluoncv", 1_138_051),
        ("leftthomas", 1_137_539),
    ],
)
def test_preset_parameter_counts(preset: str, parameters: int) -> None:
    """Published parameter counts of the implementations that the presets stand for."""
    model = FastSCNN(19, config=PRESETS[preset])
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_table_1_shapes() -> None:
    """Output of every stage at 1024x2048 (Table 1)."""
    with torch.device("meta"):
        model = FastSCNN(19).eval()
        x = torch.empty(1, 3, 1024, 2048)
        ltd = model.learning_to_downsample
        gfe = model.global_feature_extractor
        shapes = []
        for stage in (ltd.conv, ltd.dsconv1, ltd.dsconv2):
            x = stage(x)
            shapes.append(tuple(x.shape[1:]))
        high = x
        for stage in (gfe.bottleneck1, gfe.bottleneck2, gfe.bottleneck3, gfe.ppm):
            x = stage(x)
            shapes.append(tuple(x.shape[1:]))
        x = model.feature_fusion(high, x)
        shapes += [tuple(x.shape[1:]), tuple(model.classifier(x).shape[1:])]
    assert shapes == [
        (32, 512, 1024),
        (48, 256, 512),
        (64, 128, 256),
        (64, 64, 128),
        (96, 32, 64),
        (128, 32, 64),
        (128, 32, 64),
        (128, 128, 256),
        (19, 128, 256),
    ]


def test_stem_padding_shapes() -> None:
    """Padding 0 gives the 511x1023 map of the published nets that do not pad."""
    sizes = {}
    for padding in (0, 1, "same"):
        with torch.device("meta"):
            model = FastSCNN(config=FastSCNNConfig(stem_padding=padding))
            y = model.learning_to_downsample.conv(torch.empty(2, 3, 1024, 2048))
        sizes[padding] = tuple(y.shape[2:])
    assert sizes == {0: (511, 1023), 1: (512, 1024), "same": (512, 1024)}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [(32, 32), (97, 161)])
def test_any_size_any_batch(preset: str, size: tuple[int, int]) -> None:
    """Logits have the input's size; images of a batch do not see each other."""
    torch.manual_seed(0)
    model = FastSCNN(7, config=PRESETS[preset]).eval()
    x = torch.randn(3, 3, *size)
    with torch.no_grad():
        y = model(x)
        alone = model(x[1:2])
    assert y.shape == (3, 7, *size)
    assert torch.allclose(y[1:2], alone, atol=1e-5)


def test_auxiliary_heads() -> None:
    """Two heads for training, absent from the plain state dict; forward stays one tensor."""
    model = FastSCNN(5, aux=True)
    x = torch.randn(2, 3, 64, 96)
    assert [tuple(y.shape) for y in model.forward_aux(x)] == [(2, 5, 64, 96)] * 3
    assert model(x).shape == (2, 5, 64, 96)
    with torch.no_grad():
        main, high, low = model.eval().scores_aux(x)
        first = model.learning_to_downsample(x)
        assert torch.equal(high, model.aux["high"](first))
        assert torch.equal(low, model.aux["low"](model.global_feature_extractor(first)))
        assert torch.equal(main, model.scores(x))
    plain = set(FastSCNN(5).state_dict())
    assert {k for k in model.state_dict() if not k.startswith("aux.")} == plain
    with pytest.raises(RuntimeError, match="aux=True"):
        FastSCNN(5).forward_aux(x)


def test_zero_skip_removes_the_high_resolution_branch() -> None:
    """Section 3.2: only the upsampled global features reach the classifier."""
    torch.manual_seed(0)
    model = FastSCNN(5, zero_skip=True).eval()
    fusion = model.feature_fusion
    low = torch.randn(1, 128, 4, 4)
    with torch.no_grad():
        a = fusion(torch.randn(1, 64, 16, 16), low)
        b = fusion(torch.randn(1, 64, 16, 16), low)
        fusion.zero_skip = False
        c = fusion(torch.randn(1, 64, 16, 16), low)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_classifier_shares_the_backbone() -> None:
    """Section 3.4: average pooling instead of fusion; the backbone loads into the segmenter."""
    model = FastSCNNClassifier(10)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 10)
    maps = torch.arange(256.0).reshape(1, 128, 1, 2)
    model.eval()._features = lambda x: (x, maps)  # type: ignore[method-assign]
    with torch.no_grad():
        model.linear.weight.fill_(0).fill_diagonal_(1)
        model.linear.bias.fill_(0)
        assert model(maps)[0].tolist() == [2 * i + 0.5 for i in range(10)]
    backbone = {
        k: v for k, v in model.state_dict().items() if not k.startswith(("linear", "dropout"))
    }
    missing, unexpected = FastSCNN(19).load_state_dict(backbone, strict=False)
    assert not unexpected
    assert all(k.startswith(("feature_fusion", "classifier")) for k in missing)


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (torch.zeros(1, 3, 31, 64), ValueError, "31x64.*at least 32.*32x64"),
        (torch.zeros(0, 3, 64, 64), ValueError, "batch of 0"),
        (torch.zeros(1, 4, 64, 64), ValueError, "N x 3 x H x W"),
        (torch.zeros(3, 64, 64), ValueError, "N x 3 x H x W"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), TypeError, "uint8"),
    ],
)
def test_bad_input(x: torch.Tensor, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        FastSCNN(5).eval()(x)


def test_training_on_one_image_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="batch of 2 or more"):
        FastSCNN(5).train()(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize("count", [0, 256])
def test_class_count_limits(count: int) -> None:
    with pytest.raises(ValueError, match=r"1\.\.255"):
        FastSCNN(count)


def test_what_a_config_sets_for_training() -> None:
    config = FastSCNNConfig(dropout=0.3, bn_eps=2e-3, bn_momentum=0.02)
    for model in (FastSCNN(3, config=config, aux=True), FastSCNNClassifier(3, config=config)):
        norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert {(m.eps, m.momentum) for m in norms} == {(2e-3, 0.02)}
        assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.3}


def test_config_round_trip_and_errors() -> None:
    for config in PRESETS.values():
        assert FastSCNNConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="unknown keys \\['colour'\\]"):
        FastSCNNConfig.from_dict({"colour": 1})
    with pytest.raises(ValueError, match="ppm_order"):
        FastSCNNConfig(ppm_order=(1, 2, 3))
    with pytest.raises(ValueError, match="unknown preset 'x'"):
        FastSCNNConfig.preset("x")
