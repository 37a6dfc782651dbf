"""Class names, colours and categories of the data sets that the package knows."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Color = tuple[int, int, int]

#: Label of pixels that count nowhere, in every mask inside the package.
IGNORE = 255


@dataclass(frozen=True)
class Classes:
    """Names and RGB colours by class index, and optional groups of classes (categories)."""

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    categories: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def __post_init__(self) -> None:
        if len(self.names) != len(self.colors):
            raise ValueError(f"{len(self.names)} class names but {len(self.colors)} colours")

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def numbered(cls, count: int) -> Classes:
        """Classes without names, in distinct colours."""
        hues = [(i * 0.618034) % 1 for i in range(count)]
        colors = [colorsys.hsv_to_rgb(h, 0.65, 0.6 + 0.35 * (i % 2)) for i, h in enumerate(hues)]
        return cls(
            tuple(f"class {i}" for i in range(count)),
            tuple((round(r * 255), round(g * 255), round(b * 255)) for r, g, b in colors),
        )

    @classmethod
    def for_count(
        cls, count: int, names: Sequence[str] = (), colors: Sequence[Any] = ()
    ) -> Classes:
        """The given names and colours; where missing, Cityscapes' for 19 classes, else numbers."""
        fallback = CITYSCAPES if count == 19 else CAMVID if count == 11 else cls.numbered(count)
        return cls(
            tuple(names) if len(names) == count else fallback.names,
            tuple((int(r), int(g), int(b)) for r, g, b in colors)
            if len(colors) == count
            else fallback.colors,
        )

    @classmethod
    def read(cls, path: Path) -> Classes:
        """From a JSON file {"classes": ["road", ...], "colors": [[128, 64, 128], ...]}.

        Colours are optional. Raises ValueError naming the file and what is wrong with it.
        """
        try:
            data = json.loads(path.read_text())
            names = data["classes"]
            colors = data.get("colors", data.get("colours", []))
            return cls.for_count(len(names), [str(n) for n in names], colors)
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise ValueError(
                f'{path}: expected JSON like {{"classes": ["road", "car"], '
                f'"colors": [[128, 64, 128], [0, 0, 142]]}} ({type(e).__name__}: {e})'
            ) from None


CAMVID = Classes(
    (
        "Sky",
        "Building",
        "Pole",
        "Road",
        "Pavement",
        "Tree",
        "SignSymbol",
        "Fence",
        "Car",
        "Pedestrian",
        "Bicyclist",
    ),
    (
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
)

CITYSCAPES = Classes(
    (
        "road",
        "sidewalk",
        "building",
        "wall",
        "fence",
        "pole",
        "traffic light",
        "traffic sign",
        "vegetation",
        "terrain",
        "sky",
        "person",
        "rider",
        "car",
        "truck",
        "bus",
        "train",
        "motorcycle",
        "bicycle",
    ),
    (
        (128, 64, 128),
        (244, 35, 232),
        (70, 70, 70),
        (102, 102, 156),
        (190, 153, 153),
        (153, 153, 153),
        (250, 170, 30),
        (220, 220, 0),
        (107, 142, 35),
        (152, 251, 152),
        (70, 130, 180),
        (220, 20, 60),
        (255, 0, 0),
        (0, 0, 142),
        (0, 0, 70),
        (0, 60, 100),
        (0, 80, 100),
        (0, 0, 230),
        (119, 11, 32),
    ),
    (
        ("flat", (0, 1)),
        ("construction", (2, 3, 4)),
        ("object", (5, 6, 7)),
        ("nature", (8, 9)),
        ("sky", (10,)),
        ("human", (11, 12)),
        ("vehicle", (13, 14, 15, 16, 17, 18)),
    ),
)

#: Cityscapes labelId of each of the 19 train ids, in order.
CITYSCAPES_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
