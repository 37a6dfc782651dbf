"""Labels as pictures: overlays, colour maps, palette PNGs and a legend in text."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastscnn.classes import Classes
from fastscnn_kernels.cpu import operations as cpu


def palette(classes: Classes) -> np.ndarray:
    """RGB by label, uint8 256 x 3; labels beyond the classes are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(classes)] = classes.colors
    return table


def colorize(labels: np.ndarray, classes: Classes) -> np.ndarray:
    """uint8 labels H x W in the classes' colours, uint8 H x W x 3; labels beyond the classes are
    black."""
    return cpu.colorize(_bytes("labels", labels), _colors(classes)).numpy()


def overlay(
    frame: np.ndarray, labels: np.ndarray, classes: Classes, opacity: float = 0.5
) -> np.ndarray:
    """The frame tinted with the classes' colours; uint8 H x W x 3.

    `opacity` 0 is the frame alone, 1 the colours alone. Ignored pixels (255) stay untinted.
    """
    mixed = cpu.overlay(
        _bytes("frame", frame), _bytes("labels", labels), _colors(classes), opacity=opacity
    )
    return mixed.numpy()


def _colors(classes: Classes) -> Tensor:
    return torch.tensor(classes.colors, dtype=torch.uint8).reshape(-1, 3)


def _bytes(name: str, values: np.ndarray) -> Tensor:
    """`values` of any integer dtype as uint8; the same memory where that is possible."""
    if values.dtype != np.uint8:
        if values.dtype.kind not in "iu" or (
            values.size and not 0 <= values.min() <= values.max() < 256
        ):
            raise ValueError(f"{name} is {values.dtype}: expected uint8 values 0..255")
        values = values.astype(np.uint8)
    values = np.ascontiguousarray(values)
    # torch has no read-only tensors
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def palette_image(labels: np.ndarray, classes: Classes) -> Image.Image:
    """Labels as an indexed picture: pixel values are class indices, colours come with it."""
    image = Image.fromarray(labels, mode=None).convert("L")
    image.putpalette(palette(classes).tobytes())
    return image


def legend(counts: np.ndarray, classes: Classes, *, color: bool = False) -> str:
    """One line per class that occurs, largest share first; ANSI colour swatches with `color`.

    `counts` are pixels by label (at least one per class).
    """
    total = max(1, int(counts.sum()))
    order = [i for i in np.argsort(-counts[: len(classes)], kind="stable") if counts[i]]
    width = max((len(classes.names[i]) for i in order), default=0)
    lines = []
    for i in order:
        r, g, b = classes.colors[i]
        swatch = f"\x1b[48;2;{r};{g};{b}m  \x1b[0m " if color else ""
        share = 100 * counts[i] / total
        lines.append(f"  {swatch}{classes.names[i]:{width}} {share:5.1f} %  #{r:02x}{g:02x}{b:02x}")
    return "\n".join(lines)
