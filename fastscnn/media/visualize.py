"""Labels as pictures: overlays, colour maps, palette PNGs and a legend in text."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fastscnn.classes import Classes


def palette(classes: Classes) -> np.ndarray:
    """RGB by label, uint8 256 x 3; labels beyond the classes are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(classes)] = classes.colors
    return table


def colorize(labels: np.ndarray, classes: Classes) -> np.ndarray:
    """uint8 labels H x W in the classes' colours, uint8 H x W x 3."""
    return palette(classes)[labels]


def overlay(
    frame: np.ndarray, labels: np.ndarray, classes: Classes, opacity: float = 0.5
) -> np.ndarray:
    """The frame tinted with the classes' colours; uint8 H x W x 3.

    `opacity` 0 is the frame alone, 1 the colours alone. Ignored pixels (255) stay untinted.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity={opacity}: expected 0..1")
    alpha = round(opacity * 256)
    tint = palette(classes).astype(np.uint16) * alpha
    weight = np.full(256, 256 - alpha, np.uint16)
    weight[len(classes) :] = 256
    tint[len(classes) :] = 0
    mixed = frame.astype(np.uint16) * weight[labels][..., None] + tint[labels]
    return (mixed >> 8).astype(np.uint8)


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
