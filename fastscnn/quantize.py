"""Calibration: the ranges that let the CPU runtime work in int8, from images."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastscnn.arguments import positive
from fastscnn.arguments import size as size_type
from fastscnn.checkpoints.card import Card
from fastscnn.checkpoints.files import save
from fastscnn.inference.ranges import int8_inputs
from fastscnn.load import load
from fastscnn.media.frames import IMAGE_SUFFIXES, read_image
from fastscnn.network.model import FastSCNN
from fastscnn.network.segment import Size

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
    files = image_files(Path(images), limit)
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


def image_files(source: Path, limit: int) -> list[Path]:
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


def add_quantize_parser(commands: Any) -> None:
    """Adds `quantize`; its `run(args)` returns the exit code."""
    p = commands.add_parser("quantize", help="calibrate a checkpoint for int8 on CPUs")
    p.add_argument("images", type=Path, metavar="IMAGES", help="folder of images to calibrate on")
    p.add_argument("-o", "--out", type=Path, required=True, help="checkpoint (.safetensors)")
    p.add_argument("--weights", default="camvid", help="checkpoint file or shipped name")
    p.add_argument("--size", type=size_type, help="network input HxW (default: the weights' own)")
    p.add_argument("--limit", type=positive, default=100, help="images at most (default 100)")
    p.add_argument("--force", action="store_true", help="overwrite an existing file")
    p.set_defaults(run=_quantize)


def _quantize(args: argparse.Namespace) -> int:
    from fastscnn_kernels.cpu.int8 import pays

    done = quantize(
        args.images,
        args.out,
        weights=args.weights,
        size=args.size,
        limit=args.limit,
        force=args.force,
        progress=lambda files: tqdm(files, unit="image"),
    )
    print(
        f"calibrated on {done.images} images; int8 labels are those of float32 on "
        f"{done.agreement:.2%} of their pixels ({done.worst:.2%} of the worst image)\n"
        f"written to {args.out}"
    )
    if not pays():
        print("this CPU, without AVX-512, runs it in float32: the comparison says nothing of int8")
    return 0
