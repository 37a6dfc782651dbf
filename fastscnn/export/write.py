"""From a model to a file that was checked against it before it got its name."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from fastscnn.checkpoints.card import Card
from fastscnn.checkpoints.formats import write_atomically
from fastscnn.classes import Classes
from fastscnn.export.compare import ExportError, Row, hold, pictures
from fastscnn.export.fscnn import export_fscnn, is_bfloat16
from fastscnn.export.program import build_program
from fastscnn.export.subject import Subject, need, of_onnx, of_program
from fastscnn.inference.fold import fold
from fastscnn.info import __version__
from fastscnn.network.model import FastSCNN
from fastscnn.network.segment import Size

INPUTS = ("frame", "tensor")
OUTPUTS = ("labels", "probabilities", "logits")
SUFFIXES = (".onnx", ".pt2", ".fscnn")


@dataclass(frozen=True)
class Options:
    """What `export` leaves to choose; see `onnx_graph.build`.

    `resize=False` leaves the card's working size out. `frames` are image files to check on in
    place of drawn ones.
    """

    input: str = "frame"
    output: str = "labels"
    size: Size | None = None
    resize: bool = True
    tensorrt: bool = False
    frames: Sequence[Path] = ()


def export(
    model: FastSCNN, path: Path, options: Options = Options(), *, force: bool = False
) -> list[Row]:
    """Write a model on the CPU as .onnx, .pt2 or .fscnn and return the checks it passed.

    Raises ImportError naming the extra, FileExistsError, ValueError, or ExportError where the file
    differs from the model; then nothing was written.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        known = " or ".join(SUFFIXES)
        raise ValueError(f"{path}: unknown ending {path.suffix!r}; expected {known}")
    if suffix != ".onnx" and options.tensorrt:
        raise ValueError(f"{path}: --for tensorrt is for .onnx files: leave it out")
    if suffix != ".fscnn" and is_bfloat16(model):
        raise ValueError(f"{path}: --bf16 is for .fscnn files: leave it out")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give a file's name")
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists: use --force (force=True) to overwrite it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no folder: make it first")
    if suffix == ".fscnn":
        return _fscnn(model, path, options, force)
    if options.size is not None:
        model.input_size(options.size, options.size)
    card = model.card
    framed = options.resize and options.input == "frame"
    side = min(card.size) if framed and card and card.size else None
    metadata = _metadata(model, side)
    with torch.no_grad():
        if suffix == ".onnx":
            subject, write = _onnx(model, path, options, side, metadata)
        else:
            subject, write = _program(model, path, options, side, metadata)
        rows = check(model, subject, options.frames)
    failed = [row for row in rows if not row.passed]
    if failed:
        raise ExportError(f"{path} was not written: it differs from the model ({failed[0]})")
    write_atomically(path, write)
    return rows


def check(model: FastSCNN, subject: Subject, frames: Sequence[Path] = ()) -> list[Row]:
    """Hold what was built against the model on drawn frames, or those of image files."""
    return [hold(subject, model, batch)[0] for batch in pictures(subject, frames)]


def _onnx(
    model: FastSCNN, path: Path, options: Options, side: int | None, metadata: dict[str, Any]
) -> tuple[Subject, Any]:
    for package in ("onnx", "onnxruntime"):
        need(package)
    from fastscnn.export.onnx_graph import build

    graph = build(
        fold(model),
        model.config,
        model.num_classes,
        input=options.input,  # type: ignore[arg-type]
        output=options.output,  # type: ignore[arg-type]
        size=options.size,
        working_side=side,
        tensorrt=options.tensorrt,
        metadata={k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()},
    )
    data = graph.SerializeToString()
    return of_onnx(graph, str(path)), lambda temporary: temporary.write_bytes(data)


def _program(
    model: FastSCNN, path: Path, options: Options, side: int | None, metadata: dict[str, Any]
) -> tuple[Subject, Any]:
    program = build_program(
        model, input=options.input, output=options.output, size=options.size, working_side=side
    )
    file = io.BytesIO()  # a path would be named in the file
    torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})
    subject = of_program(program, side, str(path))
    return subject, lambda temporary: temporary.write_bytes(file.getvalue())


def _fscnn(model: FastSCNN, path: Path, options: Options, force: bool) -> list[Row]:
    plain = Options(tensorrt=options.tensorrt)
    for name in (f.name for f in fields(Options)):
        if getattr(options, name) != getattr(plain, name):
            option = {"resize": "--no-resize"}.get(name, f"--{name}")
            raise ValueError(
                f"{option} is for .onnx and .pt2 files: a program chooses when it runs a .fscnn"
            )
    return export_fscnn(model, path, force=force)


def _metadata(model: FastSCNN, side: int | None) -> dict[str, Any]:
    card = model.card or Card(model.config, model.num_classes)
    classes = Classes.for_count(model.num_classes, card.classes, card.colors)
    return {
        "version": __version__,
        "layout": card.source,
        "classes": list(classes.names),
        "colors": [list(c) for c in classes.colors],
        "mean": list(model.config.mean),
        "std": list(model.config.std),
        "working_side": side,
    }
