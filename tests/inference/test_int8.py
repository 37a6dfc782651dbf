"""The network in int8: against float32, against integers made in NumPy, and when it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from int8_cases import (
    byte_values,
    int8_anywhere,  # noqa: F401 (used by every test)
    int8_values,
    rms,
    same,
    scenes,
)
from networks import network
from torch import Tensor

import fastscnn
from fastscnn.checkpoints.card import Card
from fastscnn.checkpoints.files import CheckpointError, save
from fastscnn.inference.cpu_runtime import CpuRuntime
from fastscnn.inference.fold import fold
from fastscnn.inference.fused import FusedFastSCNN
from fastscnn.inference.ranges import int8_inputs
from fastscnn.network.config import PRESETS
from fastscnn.quantize import calibrate
from fastscnn.training.data import open_data
from fastscnn.training.evaluate import evaluate
from fastscnn_kernels.cpu import int8 as cpu_int8


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


@pytest.mark.parametrize("preset", ["paper", "segmentron", "paddleseg"])
def test_the_network_on_rounded_weights_and_maps(preset: str) -> None:
    """The C++ network makes its integers itself; here the reference computes in float64 with
    weights and maps that NumPy rounded."""
    model = network(preset)
    for conv in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        conv.weight.data *= torch.logspace(-1, 0, len(conv.weight))
    frame = torch.from_numpy(scenes(1, (64, 96))[0])
    ranges, folded = calibrate(model, [frame]), fold(model)
    int8_logits = CpuRuntime(folded, model.config, 19, ranges=ranges).logits(frame[None])
    floats = CpuRuntime(folded, model.config, 19).logits(frame[None])

    plain = type(model)(19, config=model.config).double().eval()
    for name, (weight, bias) in folded.items():
        block = plain.get_submodule(name)
        conv = block if isinstance(block, torch.nn.Conv2d) else block.conv
        rounded = int8_values(weight.double().numpy()) if name in ranges else weight.double()
        conv.weight.data = torch.as_tensor(rounded)
        conv.bias = torch.nn.Parameter(bias.double())
        if conv is not block:
            block.bn = None
        if name in ranges:
            block.register_forward_pre_hook(
                lambda _, x, span=ranges[name]: torch.from_numpy(byte_values(x[0].numpy(), span))
            )
    with torch.no_grad():
        truth = plain(model.preprocess(frame.numpy(), size=(64, 96)).double())
    noise = rms(floats - truth)
    # Not in it: the bytes of the fusion's high branch and of its output.
    assert rms(int8_logits - truth) < 0.4 * noise, (rms(int8_logits - truth), noise)


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
