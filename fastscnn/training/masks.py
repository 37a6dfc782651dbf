"""Mask files to class indices: by value, or by colour where a mask is a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from fastscnn.classes import IGNORE, Classes, Color
from fastscnn.media.frames import ImageError


@dataclass(frozen=True)
class MaskFormat:
    """How the values or colours of a data set's masks become class indices (255 is ignore).

    `values` maps the values of single-channel masks; `others` is the label of all further values,
    None refuses them. RGB masks are converted by the classes' colours; `ignored_colors` become 255.
    """

    classes: Classes
    values: Mapping[int, int]
    others: int | None = None
    ignored_colors: Sequence[Color] = ()
    _table: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        table = np.full(256, -1 if self.others is None else self.others, np.int16)
        table[IGNORE] = IGNORE
        table[list(self.values)] = list(self.values.values())
        object.__setattr__(self, "_table", table)

    def read(self, path: Path) -> np.ndarray:
        """Class indices of a mask file, uint8 H x W.

        Raises ImageError for a file that cannot be read, ValueError for one that must not be used.
        """
        raw = _read(path)
        if raw.ndim == 3:
            return self._from_colors(path, raw)
        if raw.max(initial=0) > 255:
            raise ValueError(f"{path} has value {raw.max()}: expected class indices up to 255")
        labels = self._table[raw]
        if labels.min(initial=0) < 0:
            bad = [int(v) for v in np.unique(raw[labels < 0])]
            raise ValueError(
                f"{path} has values {_some(bad)}: expected class indices below "
                f"{len(self.classes)} or 255 (ignore)"
            )
        return labels.astype(np.uint8)

    def _from_colors(self, path: Path, rgb: np.ndarray) -> np.ndarray:
        colors = [*self.classes.colors, *self.ignored_colors]
        labels = [*range(len(self.classes)), *[IGNORE] * len(self.ignored_colors)]
        codes = _codes(np.array(colors, np.uint8).reshape(-1, 3))
        twice = sorted({c for c in colors if colors.count(c) > 1})
        if twice:
            raise ValueError(
                f"{path} is an RGB mask, but the class file gives the colour {_hex(twice[0])} "
                "twice: give every class its own"
            )
        order = np.argsort(codes)
        found = _codes(rgb)
        at = np.searchsorted(codes[order], found).clip(max=len(codes) - 1)
        unknown = codes[order][at] != found
        if unknown.any():
            bad = [_hex(tuple(c)) for c in np.unique(rgb[unknown], axis=0)]
            raise ValueError(
                f"{path} has colours {_some(bad)} that are none of the {len(self.classes)} "
                f"classes': give the classes these colours, list those without a class under "
                f'"ignore_colors" in classes.json, or store class indices'
            )
        return np.array(labels, np.uint8)[order][at]


def _read(path: Path) -> np.ndarray:
    """Values H x W, or H x W x 3 of a mask that is a picture."""
    try:
        with Image.open(path) as im:
            im.load()
            if im.mode in ("L", "P", "1", "I", "I;16"):
                return np.array(im).astype(np.int32)
            if im.mode not in ("RGB", "RGBA"):
                raise ValueError(
                    f"{path} is {im.mode}: expected class indices (L, P) or RGB colours"
                )
            return np.array(im.convert("RGB"))
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError) as error:
        raise ImageError(f"{path}: cannot be read as a mask ({error})") from None


def _codes(rgb: np.ndarray) -> np.ndarray:
    r, g, b = (rgb[..., i].astype(np.int32) for i in range(3))
    return (r << 16) | (g << 8) | b


def _hex(color: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def _some(values: Sequence[object], most: int = 8) -> str:
    text = ", ".join(str(v) for v in values[:most])
    return text if len(values) <= most else f"{text} and {len(values) - most} more"
