"""Mask files to class indices, by value or by colour, and which of the two a data set means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from fastscnn.classes import IGNORE, Classes, Color
from fastscnn.media.frames import ImageError

#: What to do about masks in a format that loses values.
LOSSLESS = "export the masks losslessly, as PNG"


@dataclass(frozen=True)
class MaskFormat:
    """How the values or colours of a data set's masks become class indices (255 is ignore).

    `values` maps the values of single-channel masks; `others` is the label of all further values,
    None refuses them. RGB masks are converted by the classes' colours; `ignored_colors` become 255.
    `reading` is "indices" or "colors" where all masks hold the one or the other, however many
    channels they have; indices in RGB are those of the red channel.
    """

    classes: Classes
    values: Mapping[int, int]
    others: int | None = None
    ignored_colors: Sequence[Color] = ()
    reading: str = ""
    #: Nobody said what the masks hold, so classes that are missing may be misread ones.
    guessed: bool = False
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
        raw = _read(path, self.reading)
        if raw.ndim == 3 and self.reading != "indices":
            return self._from_colors(path, raw)
        if raw.ndim == 3:
            raw = _red(path, raw)
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
            red = not rgb[..., 1:].any() and rgb.max(initial=0) < len(self.classes)
            hint = (
                'its red channel looks like class indices: for those write "masks": "indices" in '
                "classes.json; otherwise "
                if red
                else ""
            )
            raise ValueError(
                f"{path} has colours {_some(bad)} that are none of the {len(self.classes)} "
                f"classes': {hint}give the classes these colours, list those without a class under "
                f'"ignore_colors" in classes.json, or store class indices'
            )
        return np.array(labels, np.uint8)[order][at]


def decide_reading(paths: Iterable[Path], masks: MaskFormat) -> str:
    """Whether single-channel masks hold "indices" or "colors"; "" where there are none.

    A value v of a grey mask may be class v or the class whose colour is that grey, and a palette's
    entry class v or the class of the entry's colour. All masks together are read the one way that
    fits them. Raises ValueError where both fit and differ.
    """
    colors = {tuple(c): i for i, c in enumerate(masks.classes.colors)}
    colors |= {tuple(c): IGNORE for c in masks.ignored_colors}
    seen: dict[tuple[int, Color], Path] = {}
    for path in paths:
        seen |= dict.fromkeys(_entries(path) - seen.keys(), path)
        indices = all(v in masks.values or v == IGNORE for v, _ in seen)
        if seen and not (indices and all(c in colors for _, c in seen)):
            return "indices" if indices or any(c not in colors for _, c in seen) else "colors"
    for (value, color), path in sorted(seen.items()):
        by_value = masks.values.get(value, IGNORE)
        if by_value != colors[color]:
            names = [
                "ignored" if i == IGNORE else f"class {masks.classes.names[i]!r}"
                for i in (by_value, colors[color])
            ]
            raise ValueError(
                f"{path}: value {value} is {names[0]} as a class index but {names[1]} as a colour "
                f'({_hex(color)}); write "masks": "indices" or "masks": "colors" in classes.json'
            )
    return "indices" if seen else ""


def _entries(path: Path) -> set[tuple[int, Color]]:
    """Values of a single-channel mask with the colours that they show; none of other files."""
    try:
        with Image.open(path) as im:
            if im.mode not in ("L", "P", "1"):
                return set()
            counts = np.bincount(np.array(im).ravel().astype(np.uint8), minlength=256)
            values = [int(v) for v in np.flatnonzero(counts)]
            if im.mode == "P":
                flat = im.getpalette("RGB") or []
                flat += [0] * (768 - len(flat))
                return {(v, (flat[3 * v], flat[3 * v + 1], flat[3 * v + 2])) for v in values}
            step = 255 if im.mode == "1" else 1
            return {(v, (step * v, step * v, step * v)) for v in values}
    except (OSError, SyntaxError):
        return set()  # reported where it is read


def _red(path: Path, rgb: np.ndarray) -> np.ndarray:
    """The class indices of an RGB mask: all channels alike, or red alone."""
    red, others = rgb[..., 0], rgb[..., 1:]
    if others.any() and (others != red[..., None]).any():
        raise ValueError(
            f'{path} is an RGB mask with colours, but classes.json says "masks": "indices": write '
            '"masks": "colors" there, or store class indices'
        )
    return red.astype(np.int32)


def _read(path: Path, reading: str) -> np.ndarray:
    """Values H x W, or H x W x 3 of a mask that is a picture."""
    try:
        with Image.open(path) as im:
            im.load()
            if im.format == "JPEG":
                raise ValueError(f"{path} is a JPEG, which changes a mask's values: {LOSSLESS}")
            single = im.mode in ("L", "P", "1", "I", "I;16")
            if single and reading != "colors":
                return np.array(im).astype(np.int32)
            if im.mode not in ("RGB", "RGBA", "L", "P", "1"):
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
