"""Which layout the tensors of a checkpoint have, and where they differ from the nearest one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from torch import Tensor

from fastscnn.checkpoints.card import MAX_CLASSES
from fastscnn.checkpoints.layouts import LAYOUTS, Layout, Shape
from fastscnn.network.config import FastSCNNConfig
from fastscnn.network.model import FastSCNN


@dataclass(frozen=True)
class Match:
    """How the tensors of a file fit a layout; a perfect match has no faults."""

    layout: Layout
    config: FastSCNNConfig
    num_classes: int
    #: Keys that the layout has, and those of them whose shapes fit too.
    known: int
    fitting: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    #: (key, found, expected) where the shapes differ.
    reshaped: tuple[tuple[str, Shape, Shape], ...]

    @property
    def faults(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.reshaped)

    def __str__(self) -> str:
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} keys missing (first: {self.missing[0]})")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} unexpected (first: {self.unexpected[0]})")
        if self.reshaped:
            key, found, expected = self.reshaped[0]
            parts.append(
                f"{len(self.reshaped)} of another shape (first: {key} is {list(found)}, "
                f"expected {list(expected)})"
            )
        return ", ".join(parts)


def match(layout: Layout, tensors: Mapping[str, Tensor], config: FastSCNNConfig) -> Match:
    """Compare keys and shapes with what `layout` stores for a network of that config."""
    last = tensors.get(layout.names([layout.last])[layout.last])
    most = 255 if layout.net is FastSCNN else MAX_CLASSES
    num_classes = 19 if last is None or not last.dim() else min(max(last.shape[0], 1), most)
    shapes = layout.shapes(num_classes, config)
    expected = {theirs: shapes[ours] for ours, theirs in layout.names(shapes).items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    return Match(
        layout,
        config,
        num_classes,
        known=sum(key in found for key in expected),
        fitting=sum(found.get(key) == shape for key, shape in expected.items()),
        missing=tuple(
            k for k in expected if k not in found and not k.endswith("num_batches_tracked")
        ),
        unexpected=tuple(k for k in found if k not in expected and not k.startswith(layout.aux)),
        reshaped=tuple(
            (k, found[k], shape)
            for k, shape in expected.items()
            if k in found and found[k] != shape
        ),
    )


def without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by what remains of their names without the modules that all of them share."""
    levels = zip(*(key.split(".")[:-1] for key in tensors), strict=False)
    shared = len(list(takewhile(lambda names: len(set(names)) == 1, levels)))
    return {key.split(".", shared)[-1]: value for key, value in tensors.items()}


def recognise(tensors: Mapping[str, Tensor], own: FastSCNNConfig | None = None) -> Match:
    """The best match among all layouts; `own` is the config that a card of ours names."""
    matches = [
        match(layout, tensors, layout.config if layout.table or own is None else own)
        for layout in LAYOUTS.values()
    ]
    return min(
        matches,
        key=lambda m: (m.faults > 0, -m.fitting, -m.known, m.layout.net is not FastSCNN, m.faults),
    )


def refusal(path: Path, tensors: Mapping[str, Tensor], best: Match, *, has_card: bool) -> str:
    """Why a file whose best match has faults cannot be read, in one line."""
    layout = best.layout
    if not best.known:
        return (
            f"{path} fits no known layout: none of its {len(tensors)} keys "
            f"({', '.join(list(tensors)[:2])}, ...) is known; layouts: {', '.join(LAYOUTS)}"
        )
    last = tensors.get(layout.names([layout.last])[layout.last])
    if last is not None and last.dim() and last.shape[0] > best.num_classes:
        return (
            f"{path} has {last.shape[0]} classes: expected at most {best.num_classes} (labels are "
            "uint8 and 255 means ignore)"
        )
    hint = ""
    if not layout.table and not has_card:
        hint = "; without a card the paper's config is assumed: write it with checkpoints.save"
    return f"{path} fits no known layout; nearest is {layout.name} ({layout.title}): {best}{hint}"
