"""The card of a checkpoint: what its weights are, where they come from, and how to use them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from typing import Any

from fastscnn.network.config import FastSCNNConfig

FORMAT = 1

#: Of a classifier for pre-training; labels of a segmentation network end at 254.
MAX_CLASSES = 65535


@dataclass
class Card:
    """What is known about a checkpoint; `to_dict` and `from_dict` are its JSON form.

    Raises ValueError naming the field that does not hold what was expected.
    """

    config: FastSCNNConfig = field(default_factory=FastSCNNConfig.paper)
    num_classes: int = 19
    #: Class names by index, and RGB colours 0..255; empty if unknown.
    classes: tuple[str, ...] = ()
    colors: tuple[tuple[int, int, int], ...] = ()
    #: Working size (height, width) of the network's input; None if unknown.
    size: tuple[int, int] | None = None
    #: Implementation whose checkpoint this was, and the data that the weights were trained on.
    source: str = "fastscnn"
    data: str = ""
    data_terms: str = ""
    recipe: Any = None
    epochs: int | None = None
    commit: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    machine: str = ""
    wall_time: Any = None
    #: Lowest and highest value of the input of every convolution that runs in int8 on a CPU, by the
    #: convolution's name (`fastscnn.quantize`); empty: everything runs in float32.
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    #: Anything else that is JSON.
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.classes = tuple(self.classes or ())
        self.colors = tuple(_color(c) for c in self.colors or ())
        if not _is_int(self.num_classes) or not 1 <= self.num_classes <= MAX_CLASSES:
            self._refuse("num_classes", f"a number 1..{MAX_CLASSES}")
        for name in ("classes", "colors"):
            if len(getattr(self, name)) not in (0, self.num_classes):
                self._refuse(name, f"{self.num_classes} entries (one per class) or none")
        if not all(isinstance(name, str) for name in self.classes):
            self._refuse("classes", "strings")
        if self.size is not None:
            if not _is_list(self.size) or [_is_int(s) and s >= 32 for s in self.size] != [True] * 2:
                self._refuse("size", "[height, width], both at least 32, or null")
            self.size = (self.size[0], self.size[1])
        for name in ("metrics", "extra", "ranges"):
            if not isinstance(getattr(self, name), dict):
                self._refuse(name, "a JSON object")
        self.ranges = {name: _range(name, span) for name, span in self.ranges.items()}

    def _refuse(self, name: str, expected: str) -> None:
        raise ValueError(f"card {name}={getattr(self, name)!r}: expected {expected}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the format's version first."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values |= {
            "config": self.config.to_dict(),
            "classes": list(self.classes),
            "colors": [list(c) for c in self.colors],
            "size": None if self.size is None else list(self.size),
        }
        return {"format": FORMAT, **values}

    @classmethod
    def from_dict(cls, values: Any) -> Card:
        """Inverse of `to_dict`; keys that it does not know are kept in `extra`."""
        if not isinstance(values, dict):
            raise ValueError(f"card: expected a JSON object, got {type(values).__name__}")
        known = dict(values)
        version = known.pop("format", FORMAT)
        if not _is_int(version) or version > FORMAT:
            raise ValueError(
                f"card format={version!r}: this version reads up to {FORMAT}; update fastscnn"
            )
        if isinstance(known.get("config"), dict):
            known["config"] = FastSCNNConfig.from_dict(known["config"])
        if not isinstance(known.setdefault("config", FastSCNNConfig.paper()), FastSCNNConfig):
            raise ValueError(f"card config={known['config']!r}: expected a JSON object")
        names = {f.name for f in fields(cls)}
        extra = {k: known.pop(k) for k in list(known) if k not in names}
        if extra:
            known["extra"] = {**(known.get("extra") or {}), **extra}
        return cls(**known)

    def to_json(self) -> str:
        """Indented JSON; a field that is none is a ValueError that names it."""
        values = self.to_dict()
        for name, value in values.items():
            try:
                json.dumps(value)
            except (TypeError, ValueError) as error:
                raise ValueError(f"card {name}={value!r}: expected JSON values ({error})") from None
        return json.dumps(values, indent=1)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _range(name: str, value: Any) -> tuple[float, float]:
    numbers = _is_list(value) and [isinstance(v, float) or _is_int(v) for v in value]
    if numbers != [True, True] or not -math.inf < value[0] <= 0 <= value[1] < math.inf:
        raise ValueError(
            f"card ranges has {name}: {value!r}: expected [low, high] with finite low <= 0 <= high"
        )
    return float(value[0]), float(value[1])


def _color(value: Any) -> tuple[int, int, int]:
    ok = _is_list(value) and len(value) == 3 and all(_is_int(v) and 0 <= v <= 255 for v in value)
    if not ok:
        raise ValueError(f"card colors has {value!r}: expected [R, G, B], each 0..255")
    return value[0], value[1], value[2]
