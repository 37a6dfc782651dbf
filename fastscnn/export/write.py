"""From a model to an ONNX file that was checked against it before it got its name."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastscnn.checkpoints.formats import write_atomically
from fastscnn.inference.fold import fold
from fastscnn.info import __version__
from fastscnn.media.demo import street_scene
from fastscnn.network.model import FastSCNN
from fastscnn.network.segment import Size

INPUTS = ("frame", "tensor")
OUTPUTS = ("labels", "probabilities", "logits")
#: Frames that a file of free size is checked on: small, odd, wide.
SIZES: tuple[Size, ...] = ((64, 96), (101, 139), (96, 256))
LABELS_EQUAL = 0.9995
NEAR = 1e-4


class ExportError(ValueError):
    """A file that does not compute what the model computes; nothing was written."""


@dataclass(frozen=True)
class Row:
    """One check: the frames' shape, the share of equal labels, and the largest difference.

    `error` is relative to the range of the values; None where the file gives labels only.
    """

    shape: tuple[int, int, int]
    labels: float
    error: float | None

    @property
    def passed(self) -> bool:
        return self.labels >= LABELS_EQUAL and (self.error is None or self.error <= NEAR)

    def __str__(self) -> str:
        n, h, w = self.shape
        error = "-" if self.error is None else f"{self.error:.1e}"
        return f"{n} x {h}x{w:<6} {self.labels:9.4%} labels equal, largest difference {error}"


def export_onnx(
    model: FastSCNN,
    path: Path,
    *,
    input: str = "frame",
    output: str = "labels",
    size: Size | None = None,
    resize: bool = True,
    tensorrt: bool = False,
    force: bool = False,
) -> list[Row]:
    """Write a float32 model on the CPU as .onnx and return the checks that it passed.

    `input`, `output`, `size` and `tensorrt` are those of `onnx_graph.build`; `resize=False` leaves
    the card's working size out. Raises ImportError naming the extra, FileExistsError, ValueError,
    or ExportError where the file differs from the model.
    """
    if path.suffix.lower() != ".onnx":
        raise ValueError(f"{path}: unknown ending {path.suffix!r}; expected .onnx")
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists: use --force (force=True) to overwrite it")
    if size is not None:
        model.input_size(size, size)
    for package in ("onnx", "onnxruntime"):
        _need(package)
    from fastscnn.export.onnx_graph import build

    card = model.card
    side = min(card.size) if resize and input == "frame" and card and card.size else None
    graph = build(
        fold(model),
        model.config,
        model.num_classes,
        input=input,  # type: ignore[arg-type]
        output=output,  # type: ignore[arg-type]
        size=size,
        working_side=side,
        tensorrt=tensorrt,
        metadata=_metadata(model, side),
    )
    data = graph.SerializeToString()
    rows = check(model, data, [size] if size else SIZES, resize=side is not None)
    failed = [row for row in rows if not row.passed]
    if failed:
        raise ExportError(f"{path} was not written: it differs from the model ({failed[0]})")
    write_atomically(path, lambda temporary: temporary.write_bytes(data))
    return rows


def check(model: FastSCNN, data: bytes, sizes: Sequence[Size], *, resize: bool) -> list[Row]:
    """Run an ONNX file of ours in ONNX Runtime on drawn frames, one and two at once."""
    session = _need("onnxruntime").InferenceSession(data, providers=["CPUExecutionProvider"])
    name, output = session.get_inputs()[0].name, session.get_outputs()[0].name
    rows = []
    for h, w in sizes:
        for n in (1, 2):
            frames = np.stack([street_scene(h, w, seed) for seed in range(n)])
            own = model.input_size((h, w)) if resize else (h, w)
            x = model.preprocess(frames, size=own)
            got = session.run(None, {name: frames if name == "frame" else x.numpy()})[0]
            if output == "labels":
                expected = model.segment(frames, size=own)
                rows.append(Row((n, h, w), float((got == expected).mean()), None))
                continue
            logits = model._upsample(model.scores(x), x.new_empty(n, 3, h, w))
            values = (logits.softmax(1) if output == "probabilities" else logits).numpy()
            error = float(np.abs(got - values).max() / np.ptp(values))
            equal = float((got.argmax(1) == values.argmax(1)).mean())
            rows.append(Row((n, h, w), equal, error if np.isfinite(error) else np.inf))
    return rows


def _metadata(model: FastSCNN, side: int | None) -> dict[str, str]:
    card = model.card
    values: dict[str, Any] = {
        "version": __version__,
        "layout": card.source if card else "",
        "classes": list(card.classes) if card else [],
        "colors": [list(c) for c in card.colors] if card else [],
        "mean": list(model.config.mean),
        "std": list(model.config.std),
        "working_side": side,
    }
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}


def _need(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ImportError(
            f"export needs the package {package}: pip install 'fastscnn[export]'"
        ) from None
