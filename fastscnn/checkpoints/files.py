"""Checkpoints of any known implementation: recognise, read, save, convert."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastscnn.checkpoints.card import Card
from fastscnn.checkpoints.formats import (
    CheckpointError,
    read_tensors,
    write_atomically,
    write_tensors,
)
from fastscnn.checkpoints.layouts import LAYOUTS, Layout
from fastscnn.checkpoints.recognise import Match, recognise, refusal, without_prefix
from fastscnn.checkpoints.shipped import FOLDER, shipped_weights
from fastscnn.network.config import FastSCNNConfig
from fastscnn.network.model import FastSCNN, FastSCNNClassifier

__all__ = ["Card", "Checkpoint", "CheckpointError", "convert", "read_checkpoint", "save"]

#: Config fields that steer training only: two networks that differ in them compute the same.
TRAINING_ONLY = ("dropout", "bn_momentum")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint under our names: fp32 tensors, without auxiliary heads."""

    path: Path
    layout: Layout
    state: dict[str, Tensor]
    card: Card

    @property
    def config(self) -> FastSCNNConfig:
        return self.card.config

    def __str__(self) -> str:
        return f"{self.path}: {self.layout.title} checkpoint, {self.card.num_classes} classes"


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read and check a checkpoint of any known layout and format.

    The layout is recognised from keys and shapes. A file that fits none raises CheckpointError
    naming the nearest layout and the first keys that do not fit.
    """
    path = Path(path)
    tensors, values = read_tensors(path)
    try:
        card = None if values is None else Card.from_dict(values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    own = None if card is None else card.config
    bare = without_prefix(tensors)
    best = recognise(bare, own)
    tensors = bare if best.known else tensors
    if best.faults:
        raise CheckpointError(refusal(path, tensors, best, has_card=card is not None))
    layout = best.layout
    if card is None or layout.table:
        card = Card(best.config, best.num_classes, source=layout.name)
    elif card.num_classes != best.num_classes:
        raise CheckpointError(
            f"{path}: its card names {card.num_classes} classes but its weights have "
            f"{best.num_classes}"
        )
    return Checkpoint(path, layout, _our_state(path, tensors, best), card)


def find_checkpoint(weights: str | Path) -> Checkpoint:
    """`read_checkpoint` of a path, or of the shipped checkpoint of that name."""
    if isinstance(weights, str) and weights in shipped_weights():
        return read_checkpoint(FOLDER / f"{weights}.safetensors")
    path = Path(weights).expanduser()
    if not path.exists() and isinstance(weights, str):
        raise FileNotFoundError(
            f"no checkpoint {weights!r}: expected a path that exists, or one of the shipped names: "
            f"{', '.join(shipped_weights()) or '(none in this installation)'}"
        )
    return read_checkpoint(path)


def save(
    model: FastSCNN | FastSCNNClassifier,
    path: str | Path,
    card: Card | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model as .safetensors (or .pth, .pt), and its card readable beside it as .json.

    `card` is the model's own (`model.card`) or a bare one by default; config and class count are
    the model's. `dtype` (such as torch.float16) is that of the stored weights. Both files are
    written atomically: there is never a half of one. Raises FileExistsError where the .json is the
    card of a checkpoint of another suffix.
    """
    path = Path(path)
    layout = LAYOUTS["fastscnn" if isinstance(model, FastSCNN) else "fastscnn_classifier"]
    known = card or getattr(model, "card", None) or Card(num_classes=model.num_classes)
    if known.num_classes != model.num_classes and (known.classes or known.colors):
        raise ValueError(
            f"card names {known.num_classes} classes but the model has {model.num_classes}: "
            "give save(..., card=) with the model's class names"
        )
    known = replace(known, config=model.config, num_classes=model.num_classes)
    beside = [path.with_suffix(s) for s in layout.suffixes if s != path.suffix.lower()]
    for other in (p for p in beside if p.exists() and _has_another_card(path, known)):
        raise FileExistsError(
            f"{path.with_suffix('.json')} is the card of {other.name}, which that of {path.name} "
            "would replace: give another name"
        )
    _write_ours(path, layout, model.state_dict(), known, dtype)


def convert(
    in_path: str | Path,
    out_path: str | Path,
    to: str = "fastscnn",
    *,
    force: bool = False,
    dtype: torch.dtype | None = None,
) -> Checkpoint:
    """Write a checkpoint under another implementation's names, or under ours with a card.

    `in_path` is a file, or the name of a shipped checkpoint. Auxiliary heads are left out. Raises
    CheckpointError where the layout `to` cannot express the network, and FileExistsError where
    `out_path` or another card beside it exists unless `force`.
    """
    out_path = Path(out_path)
    layout = _layout_named(to)
    _check_suffix(out_path, layout)
    source = find_checkpoint(in_path)
    if source.layout.net is not layout.net:
        raise CheckpointError(f"{source.path} is a {source.layout.name} checkpoint, not {to}")
    existing = [out_path] if out_path.exists() else []
    if not layout.table and _has_another_card(out_path, source.card):
        existing.append(out_path.with_suffix(".json"))
    if existing and not force:
        raise FileExistsError(f"{existing[0]} exists: use --force (force=True) to overwrite it")
    if not layout.table:
        _write_ours(out_path, layout, source.state, source.card, dtype)
        return source
    differ = config_differences(source.config, layout.config)
    if differ:
        raise CheckpointError(
            f"{source.path} ({source.layout.name}) cannot be written as {to}, which computes "
            f"otherwise: {'; '.join(differ)}"
        )
    names = layout.names(source.state)
    tensors = {names[key]: value for key, value in source.state.items() if key in names}
    write_tensors(out_path, _cast(tensors, dtype), wrapper=layout.wrapper)
    return source


def config_differences(one: FastSCNNConfig, other: FastSCNNConfig) -> list[str]:
    """Fields in which two networks compute differently, as "name 4, there 1"."""
    a, b = one.to_dict(), other.to_dict()
    return [f"{k} {a[k]}, there {b[k]}" for k in a if a[k] != b[k] and k not in TRAINING_ONLY]


def _our_state(path: Path, tensors: Mapping[str, Tensor], best: Match) -> dict[str, Tensor]:
    """Tensors under our names as fp32, checked; batch counters that are not stored are zero."""
    state = {}
    shapes = best.layout.shapes(best.num_classes, best.config)
    names = best.layout.names(shapes)
    for key in shapes:
        name = names.get(key, "")
        if key.endswith("num_batches_tracked"):
            state[key] = tensors.get(name, torch.zeros(())).to(torch.int64)
            continue
        value = tensors[name]
        if not value.is_floating_point() or value.layout != torch.strided or value.is_meta:
            raise CheckpointError(
                f"{path}: {name} is {value.dtype}, {value.layout}, on {value.device}: expected "
                "dense floating-point values"
            )
        state[key] = value.detach().to(torch.float32)
        array = state[key].numpy()  # not torch: a parallel region for each tensor costs more
        bad = array.size - int(np.isfinite(array).sum())
        if bad:
            raise CheckpointError(
                f"{path}: {name} holds {bad} NaN or infinite of {value.numel()} values: "
                "use a checkpoint from before the training diverged, or copy the file again"
            )
        if key.endswith("running_var") and (array < 0).any():
            raise CheckpointError(f"{path}: {name} holds negative variances: expected 0 or more")
    return state


def _write_ours(
    path: Path, layout: Layout, state: Mapping[str, Tensor], card: Card, dtype: torch.dtype | None
) -> None:
    _check_suffix(path, layout)
    text = card.to_json()
    wrapper = None if path.suffix.lower() == ".safetensors" else "model"
    write_tensors(path, _cast(state, dtype), card=text, wrapper=wrapper)
    write_atomically(path.with_suffix(".json"), lambda p: p.write_text(text + "\n", "utf-8"))


def _has_another_card(path: Path, card: Card) -> bool:
    """Whether the .json beside a checkpoint exists and is not that card."""
    beside = path.with_suffix(".json")
    return beside.exists() and beside.read_bytes() != f"{card.to_json()}\n".encode()


def _cast(state: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Floating tensors as `dtype`; a value that it cannot hold is an error."""
    cast = {}
    for key, value in state.items():
        cast[key] = value if dtype is None or not value.is_floating_point() else value.to(dtype)
        if cast[key].dtype != value.dtype and not bool(torch.isfinite(cast[key]).all()):
            raise CheckpointError(
                f"{key} has values up to {float(value.abs().max()):g}, too large for {dtype}: "
                "save it as torch.float32"
            )
    return cast


def _layout_named(name: str) -> Layout:
    if name not in LAYOUTS:
        raise CheckpointError(f"unknown layout {name!r}: expected one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def _check_suffix(path: Path, layout: Layout) -> None:
    if path.suffix.lower() not in layout.suffixes:
        raise CheckpointError(
            f"{path}: {layout.name} checkpoints are written as {' or '.join(layout.suffixes)}; "
            f"use {path.with_suffix(layout.suffixes[0]).name}"
        )
