"""The reference network against the paper's tables."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


class Plain:
    """Fast-SCNN from a state dict as Tables 1 to 3 tell it, with nothing but torch's functions."""

    def __init__(self, model: FastSCNN) -> None:
        self.state, self.config = model.state_dict(), model.config
        self.inner = F.relu6 if self.config.bottleneck_activation == "relu6" else F.relu

    def conv(self, name: str, x: Tensor, **options: Any) -> Tensor:
        """Convolution, then batch norm of its statistics where there is one."""
        weight, bias = self.state[f"{name}.conv.weight"], self.state.get(f"{name}.conv.bias")
        x = F.conv2d(x, weight, bias, groups=x.shape[1] // weight.shape[1], **options)
        if f"{name}.bn.weight" in self.state:
            names = ("running_mean", "running_var", "weight", "bias")
            mean, var, gain, shift = (
                self.state[f"{name}.bn.{n}"][:, None, None] for n in names
            )  # fmt: skip
            x = (x - mean) / (var + self.config.bn_eps).sqrt() * gain + shift
        return x

    def stem(self, x: Tensor) -> Tensor:
        name = "learning_to_downsample.conv"
        if self.config.stem_padding != "same":
            return F.relu(self.conv(name, x, stride=2, padding=self.config.stem_padding))
        pads = []  # TensorFlow's rule: ceil(n / 2) outputs, the odd zero at the end
        for n in (x.shape[3], x.shape[2]):
            total = max(2 * (-(-n // 2) - 1) + 3 - n, 0)
            pads += [total // 2, total - total // 2]
        return F.relu(self.conv(name, F.pad(x, pads), stride=2))

    def dsconv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        x = self.conv(f"{name}.depthwise", x, stride=stride, padding=1)
        x = F.relu(x) if self.config.dsconv_relu else x
        return F.relu(self.conv(f"{name}.pointwise", x))

    def bottleneck(self, name: str, x: Tensor, stride: int) -> Tensor:
        y = self.inner(self.conv(f"{name}.expand", x))
        y = self.inner(self.conv(f"{name}.depthwise", y, stride=stride, padding=1))
        y = self.conv(f"{name}.project", y)
        return x + y if y.shape == x.shape else y

    def pyramid(self, name: str, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        maps = {0: x}
        for branch, bins in enumerate((1, 2, 3, 6)):
            pooled = x.new_empty(*x.shape[:2], bins, bins)
            for i in range(bins):
                for j in range(bins):
                    rows = slice(i * h // bins, -(-(i + 1) * h // bins))
                    columns = slice(j * w // bins, -(-(j + 1) * w // bins))
                    pooled[:, :, i, j] = x[:, :, rows, columns].mean((2, 3))
            y = F.relu(self.conv(f"{name}.branches.{branch}", pooled))
            maps[bins] = self.upsample(y, (h, w), self.config.ppm_align_corners)
        joined = torch.cat([maps[bins] for bins in self.config.ppm_order], 1)
        return F.relu(self.conv(f"{name}.join", joined, padding=self.config.ppm_join_kernel // 2))

    def upsample(self, x: Tensor, size: Any, aligned: bool) -> Tensor:
        return F.interpolate(x, tuple(size), mode="bilinear", align_corners=aligned)

    def __call__(self, x: Tensor) -> Tensor:
        frame, c = x.shape[2:], self.config
        x = self.dsconv("learning_to_downsample.dsconv1", self.stem(x), 2)
        high = x = self.dsconv("learning_to_downsample.dsconv2", x, 2)
        for stage, stride in ((1, 2), (2, 2), (3, 1)):
            for block in range(3):
                name = f"global_feature_extractor.bottleneck{stage}.{block}"
                x = self.bottleneck(name, x, stride if block == 0 else 1)
        x = self.pyramid("global_feature_extractor.ppm", x)
        x = self.upsample(x, high.shape[2:], c.ffm_align_corners)
        around = {} if c.ffm_kernel == "dense" else {"padding": c.ffm_dilation}
        spread = {"dilation": c.ffm_dilation} if around else {}
        x = F.relu(self.conv("feature_fusion.depthwise", x, **around, **spread))
        x = F.relu(self.conv("feature_fusion.low", x) + self.conv("feature_fusion.high", high))
        x = self.dsconv("classifier.dsconv2", self.dsconv("classifier.dsconv1", x))
        return self.upsample(self.conv("classifier", x), frame, c.head_align_corners)


def settle(model: nn.Module) -> None:
    """In float64, with random statistics of a size that lets every layer matter."""
    torch.manual_seed(1)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
                m.running_var.uniform_(0.02, 0.3)  # type: ignore[union-attr]
                m.bias.normal_(0.2, 0.3)
    model.eval().double()


#: The presets, what no preset has alone, and an eps that is not torch's.
CONFIGS = {
    **PRESETS,
    "fusion aligned alone": FastSCNNConfig(ffm_align_corners=True, bn_eps=1e-2),
    "pyramid aligned alone": FastSCNNConfig(ppm_align_corners=True),
    "head aligned alone": FastSCNNConfig(head_align_corners=True),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", [(64, 96), (97, 131)], ids=str)
def test_logits_are_those_of_the_tables(name: str, size: tuple[int, int]) -> None:
    model = FastSCNN(5, config=CONFIGS[name])
    settle(model)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        ours, plain = model(x), Plain(model)(x)
    assert float((ours - plain).abs().max()) < 1e-9 * float(plain.abs().max())


def test_what_only_training_sees_is_the_configs() -> None:
    config = FastSCNNConfig(dropout=0.3, bn_momentum=0.02, bn_eps=1e-3)
    for model in (FastSCNN(5, config=config, aux=True), FastSCNNClassifier(5, config=config)):
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(norms) > 30
        assert {(m.momentum, m.eps) for m in norms} == {(0.02, 1e-3)}
        assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.3}


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
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    settle(model)
    with torch.no_grad():
        low = model.global_feature_extractor(model.learning_to_downsample(x))
        pooled = low.flatten(2).sum(2) / (low.shape[2] * low.shape[3])
        logits = pooled @ model.linear.weight.t() + model.linear.bias
        assert torch.allclose(model(x), logits, rtol=1e-9)
    assert logits.shape == (2, 10)
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


def test_config_round_trip_and_errors() -> None:
    for config in PRESETS.values():
        assert FastSCNNConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="unknown keys \\['colour'\\]"):
        FastSCNNConfig.from_dict({"colour": 1})
    with pytest.raises(ValueError, match="ppm_order"):
        FastSCNNConfig(ppm_order=(1, 2, 3))
    with pytest.raises(ValueError, match="unknown preset 'x'"):
        FastSCNNConfig.preset("x")
