"""Calibration: the ranges that let the CPU runtime work in int8, from images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastscnn.card import Card
from fastscnn.checkpoints import save
from fastscnn.cpu_trunk import int8_inputs
from fastscnn.frames import IMAGE_SUFFIXES, read_image
from fastscnn.load import load
from fastscnn.model import FastSCNN
from fastscnn.segment import Size

Spans = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Quantized:
    """What `quantize` did: images used, and the share of their pixels with the same label in int8
    as in float32, over all images and of the worst one (0..1)."""

    images: int
    agreement: float
    worst: float


def calibrate(model: FastSCNN, frames: Iterable[Any], *, size: Size | None = None) -> Spans:
    """Ranges of the inputs of the convolutions that run in int8, for `Card.ranges`.

    `frames` are uint8 H x W x 3, as `segment` takes them, and `size` is its network input size. A
    range goes from the mean over the frames of a frame's lowest value (0 if that is higher) to the
    mean of its highest: one odd frame does not widen it. The model is not changed.
    """
    plain = FastSCNN(
        model.num_classes, config=model.config, zero_skip=model.feature_fusion.zero_skip
    ).eval()
    plain.load_state_dict(model.state_dict(), strict=False)  # without auxiliary heads
    plain.card = model.card
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in int8_inputs(model.config)}
    for name, values in seen.items():
        plain.get_submodule(name).register_forward_pre_hook(_observer(name, values))
    count = 0
    with torch.no_grad():
        for frame in frames:
            plain.scores(plain.preprocess(frame, size=size))
            count += 1
    if not count:
        raise ValueError("no frames to calibrate on: expected at least one")
    return {
        name: (sum(low for low, _ in values) / count, sum(high for _, high in values) / count)
        for name, values in seen.items()
    }


def _observer(
    name: str, values: list[tuple[float, float]]
) -> Callable[[nn.Module, tuple[Tensor]], None]:
    def observe(_: nn.Module, inputs: tuple[Tensor]) -> None:
        low, high = (float(v) for v in inputs[0].aminmax())
        if not -torch.inf < low <= high < torch.inf:
            raise ValueError(f"input of {name} is from {low} to {high}: expected finite values")
        values.append((min(0.0, low), max(0.0, high)))

    return observe


def quantize(
    images: str | Path,
    out: str | Path,
    *,
    weights: str | Path = "camvid",
    size: Size | None = None,
    limit: int = 100,
    force: bool = False,
    progress: Callable[[Sequence[Path]], Iterable[Path]] = iter,
) -> Quantized:
    """Writes `weights` to `out` with the ranges that make its trunk run in int8 on a CPU.

    `images` is a folder (or one image) of the kind that the network is for; of more than `limit`
    images, that many are taken evenly. The weights themselves stay as they are, so `out` is a
    checkpoint like any other: where int8 does not apply (GPU, training, other dtypes) the float
    ones are used. Raises ValueError or FileExistsError naming the fix.
    """
    out = Path(out)
    if out.exists() and not force:
        raise FileExistsError(f"{out} exists: use --force (force=True) to overwrite it")
    files = _images(Path(images), limit)
    model = load(weights, device="cpu")
    spans = calibrate(model, (read_image(f) for f in progress(files)), size=size)
    card = replace(model.card or Card(model.config, model.num_classes), ranges=spans)
    floats = load(weights, device="cpu")
    floats.card = replace(card, ranges={})
    model.card = card
    same = []
    for file in progress(files):
        frame = read_image(file)
        same.append((model.segment(frame, size=size) == floats.segment(frame, size=size)).mean())
    save(model, out, card)
    return Quantized(len(files), float(sum(same) / len(same)), float(min(same)))


def _images(source: Path, limit: int) -> list[Path]:
    """Up to `limit` image files of a folder, in the order of their names, evenly spread."""
    if not source.exists():
        raise FileNotFoundError(f"no folder {str(source)!r}: expected a folder of images")
    found = sorted(source.iterdir()) if source.is_dir() else [source]
    files = [p for p in found if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    if not files:
        raise ValueError(f"{source} holds no images: expected {', '.join(sorted(IMAGE_SUFFIXES))}")
    if limit < 1:
        raise ValueError(f"limit={limit}: expected 1 or more")
    count = min(limit, len(files))
    return [files[i * len(files) // count] for i in range(count)]
