"""`fastscnn quantize`: ranges from frames, the command, what it says of the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from int8_cases import (
    int8_anywhere,  # noqa: F401 (used by every test)
    same,
    scenes,
)
from networks import network
from PIL import Image
from torch import Tensor

import fastscnn
from fastscnn.checkpoints.files import read_checkpoint
from fastscnn.cli import main
from fastscnn.inference.cpu_runtime import CpuRuntime
from fastscnn.inference.fold import fold
from fastscnn.quantize import Quantized, _observer, calibrate, quantize


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
