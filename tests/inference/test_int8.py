"""Int8 on the CPU: the operations against integer twins bit for bit, calibration, the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import network
from PIL import Image
from torch import Tensor

import fastscnn
from fastscnn.checkpoints.card import Card
from fastscnn.checkpoints.files import CheckpointError, read_checkpoint, save
from fastscnn.cli import main
from fastscnn.inference.cpu_runtime import CpuRuntime
from fastscnn.inference.fold import fold
from fastscnn.inference.fused import FusedFastSCNN
from fastscnn.inference.ranges import int8_inputs
from fastscnn.media.demo import street_scene
from fastscnn.network.config import PRESETS
from fastscnn.quantize import Quantized, _observer, calibrate, quantize
from fastscnn.training.data import open_data
from fastscnn.training.evaluate import evaluate
from fastscnn_kernels import reference
from fastscnn_kernels import reference_int8 as int8
from fastscnn_kernels.cpu import int8 as cpu_int8
from fastscnn_kernels.extension import device_info

ISAS = device_info()["cpu_int8_instruction_sets"]

# 1x1: every tap but one is padding; 7x13: no multiple of any tile; 19x53: several runs, odd.
SIZES = [(1, 1), (7, 13), (19, 53)]


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.empty is filled with NaN, so that an element that is never written is found; int8 runs
    on any CPU."""
    monkeypatch.setattr(cpu_int8, "pays", lambda: True)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def tensor(n: int, c: int, h: int, w: int) -> Tensor:
    return torch.randn(n, c, h, w).contiguous(memory_format=torch.channels_last)


def dense(out: int, inputs: int) -> tuple[Tensor, Tensor]:
    return torch.randn(out, inputs, 1, 1) / inputs**0.5, torch.randn(out) / 4


def depthwise(channels: int) -> tuple[Tensor, Tensor]:
    return torch.randn(channels, 1, 3, 3) / 3, torch.randn(channels) / 4


def same(got: Tensor, expected: Tensor) -> None:
    """Every bit; the message shows the worst element."""
    worst = int((got - expected).abs().nan_to_num(torch.inf).argmax())
    assert torch.equal(got, expected), f"{got.flatten()[worst]}, not {expected.flatten()[worst]}"


# --- operations -----------------------------------------------------------------------------------

# The network's own widths, and some that fill neither a block of 64 bytes nor a vector of 16 sums.
BLOCKS = [(64, 384, 64, 1), (64, 384, 96, 2), (128, 768, 128, 1), (6, 36, 6, 1), (9, 70, 21, 2)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_inverted_residual(block: tuple[int, ...], size: tuple[int, int], isa: str) -> None:
    inputs, hidden, out, stride = block
    weights = int8.inverted_residual_weights(
        *(dense(hidden, inputs), depthwise(hidden), dense(out, hidden)),
        ((-3.0, 4.0), (0.0, 3.0), (0.0, 2.0)),
    )
    packed, x = cpu_int8.InvertedResidual(weights), tensor(2, inputs, *size)
    for residual in {False, stride == 1 and inputs == out}:
        twin = int8.inverted_residual(x, weights, stride=stride, residual=residual)
        for threads in (1, 3):
            options: Any = {"stride": stride, "residual": residual, "threads": threads, "isa": isa}
            same(cpu_int8.inverted_residual(x, packed, **options), twin)
    q = torch.randint(0, 256, x.shape, dtype=torch.uint8)
    twin = int8.inverted_residual(q, weights, stride=stride)
    same(cpu_int8.inverted_residual(q, packed, stride=stride, threads=3, isa=isa), twin)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("channels", [(128, 128, 11), (40, 70, 19), (3, 65, 2)], ids=str)
def test_classifier(channels: tuple[int, int, int], size: tuple[int, int], isa: str) -> None:
    inputs, wide, out = channels
    x = torch.randint(0, 256, (2, inputs, *size), dtype=torch.uint8)
    for low in (-1.0, 0.0):  # 0: a ReLU between depthwise and pointwise
        weights = int8.classifier_weights(
            (
                *(depthwise(inputs), dense(wide, inputs), depthwise(wide), dense(wide, wide)),
                dense(out, wide),
            ),
            ((0.0, 3.0), (low, 3.0), (0.0, 2.0), (low, 2.0), (0.0, 2.0)),
        )
        packed, twin = cpu_int8.Classifier(weights), int8.classifier(x, weights)
        for threads in (1, 3):
            same(cpu_int8.classifier(x, packed, threads=threads, isa=isa), twin)


# Low map, high map: ratios at which bilinear weights are exact, so that no rounding differs.
FUSIONS = [((1, 1), (1, 1), False), ((4, 7), (16, 28), False), ((3, 14), (5, 27), True)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sizes", FUSIONS, ids=str)
@pytest.mark.parametrize("dilation", [0, 1, 4])
def test_feature_fusion(dilation: int, sizes: Any, isa: str) -> None:
    """Dilation 0: no depthwise convolution."""
    small, large, align = sizes
    for channels in ((64, 128, 128), (10, 64, 30)):
        low = torch.randint(-16, 16, (2, channels[1], *small)) / 8
        high = torch.randint(0, 256, (2, channels[0], *large), dtype=torch.uint8)
        weights = int8.feature_fusion_weights(
            depthwise(channels[1]) if dilation else None,
            *(dense(channels[2], channels[1]), dense(channels[2], channels[0])),
            ((-1.5, 2.0), (0.0, 2.0), (0.0, 4.0), (0.0, 3.0)),
        )
        packed = cpu_int8.FeatureFusion(weights)
        how: Any = {"dilation": dilation or 1, "align_corners": align}
        twin = int8.feature_fusion(high, low, weights, **how)
        for threads in (1, 3):
            same(cpu_int8.feature_fusion(high, low, packed, threads=threads, isa=isa, **how), twin)


@pytest.mark.parametrize("isa", ISAS)
def test_values_beyond_the_ranges_are_limited(isa: str) -> None:
    """Inputs, sums and biases far outside; channels without weights; ranges of nothing."""
    x = tensor(1, 64, 5, 9)
    x[0, :4, 0, 0] = torch.tensor([torch.inf, -torch.inf, 1e30, -1e30])
    expand, taps, project = dense(384, 64), depthwise(384), dense(64, 384)
    expand[0][:7] = 0
    expand[1][:7] = torch.tensor([0.0, 1e-9, -1e-9, 1e9, -1e9, 3.0, 1e30])
    for spans in ((-1.0, 1.0), (0.0, 0.1), (0.0, 0.1)), ((0.0, 0.0),) * 3:
        weights = int8.inverted_residual_weights(expand, taps, project, spans)  # type: ignore
        packed = cpu_int8.InvertedResidual(weights)
        same(cpu_int8.inverted_residual(x, packed, isa=isa), int8.inverted_residual(x, weights))


def test_twins_are_close_to_the_float_operations() -> None:
    """Else kernel and twin could share a mistake. With the ranges of the data, the error is that of
    8 bits: a few steps of 1/255."""
    x, high = tensor(2, 64, 16, 24), tensor(2, 64, 32, 48)
    e, d, p = dense(384, 64), depthwise(384), dense(64, 384)
    hidden = F.relu(F.conv2d(x, *e))
    filtered = F.relu(F.conv2d(hidden, *d, padding=1, groups=384))
    weights = int8.inverted_residual_weights(e, d, p, (span(x), span(hidden), span(filtered)))
    exact = reference.inverted_residual(x, *e, *d, *p, residual=True)
    close(int8.inverted_residual(x, weights, residual=True), exact)

    d, low, other = depthwise(64), dense(96, 64), dense(96, 64)
    up, high = F.interpolate(x, (32, 48), mode="bilinear"), high.relu()
    filtered = F.relu(F.conv2d(up, *d, padding=4, dilation=4, groups=64))
    exact = F.relu(F.conv2d(filtered, *low) + F.conv2d(high, *other))
    spans = span(up), span(filtered), span(high), span(exact)
    fusion = int8.feature_fusion_weights(d, low, other, spans)
    q = int8.quantizer(spans[2])(high).to(torch.uint8)
    got = int8.feature_fusion(q, x, fusion, dilation=4, align_corners=False)
    close(got / int8.quantizer(spans[3]).inverse, exact)

    q = torch.randint(0, 256, (2, 64, 16, 24), dtype=torch.uint8)
    d1, p1, d2, p2, last = depthwise(64), dense(32, 64), depthwise(32), dense(32, 32), dense(11, 32)
    maps = [q / 85.0]
    maps.append(F.conv2d(maps[-1], *d1, padding=1, groups=64))
    maps.append(F.relu(F.conv2d(maps[-1], *p1)))
    maps.append(F.conv2d(maps[-1], *d2, padding=1, groups=32))
    maps.append(F.relu(F.conv2d(maps[-1], *p2)))
    five: Any = ((0.0, 3.0), *map(span, maps[1:]))
    classifier = int8.classifier_weights((d1, p1, d2, p2, last), five)
    close(int8.classifier(q, classifier), F.conv2d(maps[-1], *last))


def span(x: Tensor) -> tuple[float, float]:
    return float(x.min()), float(x.max())


def close(got: Tensor, exact: Tensor) -> None:
    error = (got - exact).abs() / (exact.max() - exact.min())
    assert error.mean() < 1 / 255, float(error.mean())
    assert error.max() < 8 / 255, float(error.max())


def test_bad_input_of_operations() -> None:
    block = dense(24, 4), depthwise(24), dense(8, 24)
    with pytest.raises(ValueError, match="expected ones that start at 0"):
        int8.inverted_residual_weights(*block, ((-1.0, 1.0), (-1.0, 1.0), (0.0, 1.0)))
    weights = int8.inverted_residual_weights(*block, ((-1.0, 1.0), (0.0, 1.0), (0.0, 1.0)))
    positive: Any = ((0.0, 1.0),) * 3
    with pytest.raises(ValueError, match=r"feature_fusion_int8: ranges .* start at 0"):
        int8.feature_fusion_weights(None, *block[::2], (*positive, (-1.0, 1.0)))
    with pytest.raises(ValueError, match=r"classifier_int8: ranges .* start at 0"):
        int8.classifier_weights((*block, *block[1:]), (*positive, (0.0, 1.0), (-1.0, 1.0)))
    fusion = int8.feature_fusion_weights(None, dense(8, 24), dense(8, 4), (*positive, (0.0, 1.0)))
    with pytest.raises(ValueError, match="low has 24 channels, expected a multiple of 64"):
        cpu_int8.FeatureFusion(fusion)
    fusion = int8.feature_fusion_weights(None, dense(8, 64), dense(8, 4), (*positive, (0.0, 1.0)))
    high, how = torch.zeros(2, 4, 5, 5, dtype=torch.uint8), {"dilation": 1, "align_corners": False}
    with pytest.raises(ValueError, match="batch of low: got 1, expected 2"):
        cpu_int8.feature_fusion(high, tensor(1, 64, 3, 3), cpu_int8.FeatureFusion(fusion), **how)
    packed = cpu_int8.InvertedResidual(weights)
    x = tensor(1, 4, 5, 5)
    with pytest.raises(ValueError, match="residual with float32, stride 1 and 4 to 8"):
        cpu_int8.inverted_residual(x, packed, residual=True)
    with pytest.raises(ValueError, match="x has 5 channels, its weight expects 4"):
        cpu_int8.inverted_residual(tensor(1, 5, 5, 5), packed)
    with pytest.raises(TypeError, match=r"x is torch\.float64"):
        cpu_int8.inverted_residual(x.double(), packed)
    with pytest.raises(ValueError, match="stride=3, expected 1 or 2"):
        cpu_int8.inverted_residual(x, packed, stride=3)
    with pytest.raises(ValueError, match="'sse9' is not available here; choose one of: "):
        cpu_int8.inverted_residual(x, packed, isa="sse9")


# --- the network ----------------------------------------------------------------------------------


def scenes(count: int, size: tuple[int, int] = (96, 128)) -> list[np.ndarray]:
    return [np.asarray(street_scene(*size, seed=i)) for i in range(count)]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset(preset: str) -> None:
    """Random weights, which 8 bits hold worse than trained ones."""
    model, frame = network(preset), torch.randint(0, 256, (2, 97, 130, 3), dtype=torch.uint8)
    ranges = calibrate(model, list(frame))
    assert list(ranges) == int8_inputs(model.config)
    folded, config = fold(model), model.config
    floats = CpuRuntime(folded, config, 19).logits(frame)
    bytes_ = CpuRuntime(folded, config, 19, ranges=ranges)
    logits = bytes_.logits(frame)
    noise = (logits - floats).pow(2).mean() / (floats - floats.mean()).pow(2).mean()
    assert 0 < noise < 0.01, float(noise)
    for threads in (1, 2, 3):
        same(bytes_.logits(frame, threads=threads), logits)
    same(bytes_.logits(frame[1:]), logits[1:])


def test_labels_of_the_shipped_weights() -> None:
    model = fastscnn.load("camvid", device="cpu")
    frames = scenes(4, (180, 240))
    expected = [model.segment(f) for f in frames]
    assert model.card is not None
    model.card = replace(model.card, ranges=calibrate(model, frames))
    model.refold()
    got = [model.segment(f) for f in frames]
    agreement = np.mean([a == b for a, b in zip(got, expected, strict=True)])
    assert 0.98 < agreement < 1, agreement


def test_float32_where_int8_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = FusedFastSCNN(3).eval(), torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(x)
        model.card = Card(num_classes=3, ranges=calibrate(model, scenes(1)))
        model.refold()
        assert not torch.equal(model(x), expected)
        monkeypatch.setattr(cpu_int8, "pays", lambda: False)
        model.refold()
        same(model(x), expected)


def test_miou_of_the_shipped_weights(data_dir: Path) -> None:
    """On half of CamVid's validation frames, calibrated on training frames."""
    model = fastscnn.load("camvid", device="cpu")
    train, val = (open_data(data_dir / "camvid", split) for split in ("train", "val"))
    frames = [image.permute(1, 2, 0).contiguous() for image, _ in train_pairs(train, 16)]
    ranges = calibrate(model, frames)
    half = val.limited(50)
    before = evaluate(model.segment, train_pairs(half, 50), val.classes).miou
    assert model.card is not None
    model.card = replace(model.card, ranges=ranges)
    model.refold()
    after = evaluate(model.segment, train_pairs(half, 50), val.classes).miou
    assert after != before
    assert abs(after - before) < 0.005


def train_pairs(data: Any, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    limited = data.limited(count)
    return (limited[i] for i in range(len(limited)))


def test_training_drops_the_ranges() -> None:
    model = FusedFastSCNN(3).eval()
    model.card = Card(num_classes=3, ranges=calibrate(model, scenes(1)))
    model.eval()
    assert model.card.ranges
    model.train()
    assert model.card.ranges == {}


def test_other_weights_drop_the_ranges() -> None:
    model, other, x = FusedFastSCNN(3).eval(), FusedFastSCNN(3).eval(), torch.rand(1, 3, 64, 96)
    model.card = Card(num_classes=3, ranges=calibrate(model, scenes(1)))
    model.load_state_dict(other.state_dict())
    with torch.no_grad():
        same(model(x), other(x))


def test_calibration_takes_the_mean_of_the_frames_extremes() -> None:
    model = network("paper").eval()
    frames = scenes(3)
    inputs: list[Tensor] = []
    name = "global_feature_extractor.bottleneck2.1.expand"
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    with torch.no_grad():
        for frame in frames:
            model(model.preprocess(frame, size=(64, 96)))
    hook.remove()
    low, high = calibrate(model, frames, size=(64, 96))[name]
    assert low == pytest.approx(np.mean([float(x.min()) for x in inputs]))
    assert high == pytest.approx(np.mean([float(x.max()) for x in inputs]))
    _observer(name, seen := [])(model, (torch.tensor([2.0, 5.0]),))
    _observer(name, seen)(model, (torch.tensor([-5.0, -2.0]),))
    assert seen == [(0, 5), (-5, 0)]
    with pytest.raises(ValueError, match="no frames to calibrate on"):
        calibrate(model, [])
    model.learning_to_downsample.dsconv2.pointwise.conv.weight.data[0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"bottleneck1\.0\.expand is from .* expected finite"):
        calibrate(model, frames[:1])


# --- an independent truth -------------------------------------------------------------------------


def byte_values(x: np.ndarray, span: tuple[float, float]) -> np.ndarray:
    """What the bytes of a range stand for: 255 steps from low to high, 0 among them."""
    step = (span[1] - span[0]) / 255
    zero = np.rint(-span[0] / step)
    return (np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step


def int8_unit(weight: np.ndarray) -> np.ndarray:
    """Weights are whole numbers of their output channel's own unit: its largest is 127 of them."""
    unit: np.ndarray = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127
    return unit


def int8_values(weight: np.ndarray) -> np.ndarray:
    unit = int8_unit(weight)
    return np.rint(weight / unit) * unit


def uneven(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Channels of very different size, as batch norm leaves them."""
    scale = torch.logspace(-1.5, 0, len(weight))[torch.randperm(len(weight))]
    return weight * scale.reshape(-1, 1, 1, 1), bias * scale


def rms(x: Any) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(x, dtype=np.float64)))))


def test_a_block_in_numpy() -> None:
    """Nothing here is the package's: integers of weights and maps, and what they stand for."""
    inputs, hidden, h, w = 16, 96, 9, 13
    e, d, p = uneven(*dense(hidden, inputs)), uneven(*depthwise(hidden)), dense(24, hidden)
    x = tensor(1, inputs, h, w)
    spans = ((-3.0, 3.5), (0.0, 2.5), (0.0, 1.5))
    block = cpu_int8.InvertedResidual(int8.inverted_residual_weights(e, d, p, spans))
    got = cpu_int8.inverted_residual(x, block)[0].numpy()

    def block_of(weights: Any, maps: Any) -> np.ndarray:
        (we, be), (wd, bd), (wp, bp) = (
            (weights(a.double().numpy()), b.double().numpy()) for a, b in (e, d, p)
        )
        y = np.einsum("oi,ihw->ohw", we[..., 0, 0], maps(x[0].double().numpy(), spans[0]))
        y = np.pad(maps(np.maximum(y + be[:, None, None], 0), spans[1]), ((0, 0), (1, 1), (1, 1)))
        taps = [(r, c) for r in range(3) for c in range(3)]
        y = sum(wd[:, 0, r, c, None, None] * y[:, r : r + h, c : c + w] for r, c in taps)
        y = maps(np.maximum(y + bd[:, None, None], 0), spans[2])
        return np.einsum("oi,ihw->ohw", wp[..., 0, 0], y) + bp[:, None, None]

    truth = block_of(int8_values, byte_values)
    noise = rms(truth - block_of(np.copy, lambda values, span: np.clip(values, *span)))
    assert rms(got - truth) < 0.2 * noise, (rms(got - truth), noise)


def rounded_network(folded: Any, ranges: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """By convolution: weight and bias that its integers stand for, and its input's range.

    A sum counts in units of weight times input. Both 1x1 of the fusion are one sum, so one unit;
    the high branch reads the bytes of the first bottleneck. A sum that becomes bytes starts at a
    whole number, in which are the bias and the byte that stands for 0.
    """
    names, fusion = list(ranges), ["feature_fusion.low", "feature_fusion.high"]
    spans = {**ranges, fusion[1]: ranges["global_feature_extractor.bottleneck1.0.expand"]}
    step = {name: (high - low) / 255 for name, (low, high) in spans.items()}
    next_input = {a: b for a, b in pairwise(names) if "project" not in a}
    convs = {name: [t.double().numpy() for t in conv] for name, conv in folded.items()}
    for name in names:
        parts = fusion if name in fusion else [name]
        terms = [convs[part][0] * step[part] for part in parts]
        unit = int8_unit(np.concatenate(terms, 1))
        for part, term in zip(parts, terms, strict=True):
            convs[part][0] = np.rint(term / unit) * unit / step[part]
        if after := next_input.get(name):
            zero = np.rint(-spans[after][0] / step[after]) * step[after]
            start = sum(convs[part][1] for part in parts) + zero
            for part in parts:
                convs[part][1] = np.zeros_like(start)
            convs[name][1] = np.rint(start / unit.ravel()) * unit.ravel() - zero
    return convs, spans


@pytest.mark.parametrize("preset", ["paper", "segmentron", "paddleseg"])
def test_the_network_on_rounded_weights_and_maps(preset: str) -> None:
    """The C++ network makes its integers itself; here the reference computes in float64 with
    weights and maps that NumPy rounded."""
    model = network(preset)
    for conv in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        conv.weight.data *= torch.logspace(-1, 0, len(conv.weight))
    frame = torch.from_numpy(scenes(1, (64, 96))[0])
    ranges, folded = calibrate(model, [frame]), fold(model)
    floats_isa = device_info()["cpu_instruction_sets"][0]  # by default bfloat16 where it is faster
    exact, faster = (
        CpuRuntime(folded, model.config, 19, ranges=ranges, isa=isa).logits(frame[None])
        for isa in (floats_isa, "")
    )
    floats = CpuRuntime(folded, model.config, 19).logits(frame[None])

    plain = type(model)(19, config=model.config).double().eval()
    convs, spans = rounded_network(folded, ranges)
    for name, (weight, bias) in convs.items():
        block = plain.get_submodule(name)
        conv = block if isinstance(block, torch.nn.Conv2d) else block.conv
        conv.weight.data = torch.as_tensor(weight)
        conv.bias = torch.nn.Parameter(torch.as_tensor(bias))
        if conv is not block:
            block.bn = None
        if name in spans:
            block.register_forward_pre_hook(
                lambda _, x, span=spans[name]: torch.from_numpy(byte_values(x[0].numpy(), span))
            )
    with torch.no_grad():
        truth = plain(model.preprocess(frame.numpy(), size=(64, 96)).double())
    noise = rms(floats - truth)
    assert rms(exact - truth) < 0.05 * noise, (rms(exact - truth), noise)
    assert rms(faster - truth) < 0.4 * noise, (rms(faster - truth), noise)


# --- the command and its checkpoints --------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i, scene in enumerate(scenes(3)):
        Image.fromarray(scene).save(folder / f"{i}.png")
    return folder


def test_command(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "int8.safetensors"
    args = ["quantize", str(images), "-o", str(out), "--size", "64x96", "--limit", "2"]
    assert main(args) == 0
    printed = capsys.readouterr().out
    assert "calibrated on 2 images" in printed
    ranges = read_checkpoint(out).card.ranges
    model, plain = fastscnn.load(out, device="cpu"), fastscnn.load("camvid", device="cpu")
    for key, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    x = plain.preprocess(scenes(1)[0])
    with torch.no_grad():
        expected = CpuRuntime(fold(plain), plain.config, 11, ranges=ranges).logits(x)
        same(model(x), expected)
        assert not torch.equal(plain(x), expected)
    assert main(args) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*args, "--force"]) == 0


def test_agreement_is_with_float32(images: Path, tmp_path: Path) -> None:
    """Also of weights that are calibrated already: their own ranges must not count as float32."""
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    options: Any = {"size": (64, 96)}
    quantize(images, first, **options)
    done = quantize(images, second, weights=first, **options)
    frames = [np.array(Image.open(p)) for p in sorted(images.iterdir())]
    plain = fastscnn.load("camvid", device="cpu")
    ranges = read_checkpoint(second).card.ranges
    assert ranges == read_checkpoint(first).card.ranges == calibrate(plain, frames, **options)
    same_labels = [
        CpuRuntime(fold(plain), plain.config, 11, ranges=spans).labels(
            torch.from_numpy(frame)[None], size=(64, 96)
        )
        for frame in frames
        for spans in (ranges, None)
    ]
    shares = [
        float((a == b).double().mean())
        for a, b in zip(same_labels[::2], same_labels[1::2], strict=True)
    ]
    assert done == Quantized(3, pytest.approx(np.mean(shares)), pytest.approx(min(shares)))
    assert min(shares) < np.mean(shares) < 1


def test_images_are_spread_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(7):
        Image.fromarray(scenes(1, (40, 48))[0]).save(tmp_path / f"{i}.png")
    taken: list[str] = []

    def progress(files: Sequence[Path]) -> Sequence[Path]:
        taken.extend(f.name for f in files)
        return files

    quantize(tmp_path, tmp_path / "x.safetensors", size=(32, 32), limit=3, progress=progress)
    assert taken == 2 * ["0.png", "2.png", "4.png"]


def test_zero_skip_is_calibrated_as_it_runs() -> None:
    """Without the skip, what the classifier sees has another range."""
    model = network("paper")
    both = []
    for skip in (False, True):
        model.feature_fusion.zero_skip = skip
        inputs: list[Tensor] = []
        first = model.classifier.dsconv1.depthwise
        hook = first.register_forward_pre_hook(lambda _, x, to=inputs: to.append(x[0]))
        frame = scenes(1, (64, 96))[0]
        with torch.no_grad():
            model(model.preprocess(frame))
        hook.remove()
        both.append(calibrate(model, [frame])["classifier.dsconv1.depthwise"])
        assert both[-1][1] == pytest.approx(float(inputs[0].max()))
    assert both[0] != both[1]


def test_command_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "int8.safetensors")
    assert main(["quantize", str(tmp_path), "-o", out]) == 2
    assert "holds no images" in capsys.readouterr().err
    assert main(["quantize", str(tmp_path / "absent"), "-o", out]) == 2
    assert "expected a folder of images" in capsys.readouterr().err
    (tmp_path / "broken.png").write_bytes(b"")
    assert main(["quantize", str(tmp_path), "-o", out]) == 2
    assert "broken.png: it is empty" in capsys.readouterr().err
    assert not Path(out).exists()


@pytest.mark.parametrize("span", [[1.0, 2.0], [0.0], [0.0, float("inf")], ["0", 1], None], ids=str)
def test_a_card_with_bad_ranges_is_refused(span: Any) -> None:
    with pytest.raises(ValueError, match=r"card ranges has a: .* finite low <= 0 <= high"):
        Card(ranges={"a": span})


def test_a_checkpoint_that_lacks_a_range_is_refused(tmp_path: Path) -> None:
    model = FusedFastSCNN(3).eval()
    ranges = calibrate(model, scenes(1))
    del ranges["feature_fusion.low"]
    path = tmp_path / "partial.safetensors"
    save(model, path, Card(num_classes=3, ranges=ranges))
    with pytest.raises(CheckpointError, match=r"feature_fusion\.low"):
        fastscnn.load(path, device="cpu")
