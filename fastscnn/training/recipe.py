"""Recipes: everything that decides the result of a training run, as small TOML files."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FOLDER = Path(__file__).parent / "recipes"

_CHOICES = {
    "task": ("segment", "classify"),
    "optimizer": ("sgd", "adamw"),
    "class_weights": ("none", "sqrt"),
    "amp": ("none", "bf16", "fp16"),
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run; the defaults are the paper's (section 3.1)."""

    #: "segment", or "classify" for pre-training on folders of images by class (section 3.4).
    task: str = "segment"
    #: Preset of the network (`fastscnn.PRESETS`).
    config: str = "paper"
    epochs: int = 1000
    #: Images per step, over all processes together.
    batch: int = 12
    optimizer: str = "sgd"
    lr: float = 0.045
    #: The learning rate falls as (1 - done) ** power.
    power: float = 0.9
    #: Steps over which it rises linearly at the start.
    warmup_steps: int = 0
    momentum: float = 0.9
    #: On everything but depthwise convolutions.
    weight_decay: float = 4e-5
    #: Largest norm of the gradient; 0 leaves it alone.
    clip_norm: float = 0.0
    #: Weight of each of the two auxiliary losses; 0 builds no auxiliary heads.
    aux_weight: float = 0.4
    dropout: float = 0.1
    label_smoothing: float = 0.0
    #: Share of the labelled pixels, the hardest ones, that the main loss counts; 0 counts all.
    ohem: float = 0.0
    #: Decay of the averaged weights that are validated and kept; 0 uses the trained ones.
    ema: float = 0.0
    #: "none", or "sqrt": classes weigh 1 / sqrt(share of the labelled pixels).
    class_weights: str = "none"
    #: Height and width of a training crop.
    crop: tuple[int, int] = (1024, 2048)
    #: Range of the random resize.
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    #: Largest relative change of brightness, and of each colour channel by itself.
    brightness: float = 0.3
    channel_noise: float = 0.1
    #: Light and quality of a crop, as `fastscnn.training.photometric.Photometric` says; all off.
    gamma: tuple[float, float] = (1.0, 1.0)
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    jpeg: int = 0
    shadow: float = 0.0
    #: A regular expression: what it matches at the beginning of an image's name is its sequence.
    sequence: str = "[^_]+"
    #: Draw all sequences equally often, however many images each has.
    balance: bool = False
    #: Sequences to validate on and not to train on, as "a,b", taken from both splits together.
    hold_out: str = ""
    #: Network input for validation and later use, (height, width); () is the image's own.
    size: tuple[int, int] | tuple[()] = ()
    #: A further split trained together with "train", such as Cityscapes' coarse "train_extra".
    extra_split: str = ""
    #: Use only that many images of each split; 0 uses all.
    limit: int = 0
    #: Leave the skip connection out (the ablation of section 3.2).
    zero_skip: bool = False
    #: Keep batch norm's statistics as they are (fine-tuning with tiny batches).
    freeze_bn: bool = False
    #: Batch norm over all GPUs together.
    sync_bn: bool = False
    amp: str = "none"
    val_every: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            self._require(getattr(self, name) in choices, name, " or ".join(map(repr, choices)))
        for name in ("epochs", "val_every"):
            self._require(getattr(self, name) >= 1, name, "1 or more")
        self._require(self.batch >= 2, "batch", "2 or more (batch norm)")
        self._require(self.lr > 0, "lr", "a positive number")
        for name in (
            "power", "warmup_steps", "weight_decay", "clip_norm", "aux_weight", "limit", "seed",
            "noise", "blur",
        ):  # fmt: skip
            self._require(getattr(self, name) >= 0, name, "0 or more")
        shares = ("momentum", "dropout", "label_smoothing", "ohem", "ema")
        for name in (*shares, "brightness", "channel_noise", "contrast"):
            self._require(0 <= getattr(self, name) < 1, name, "0 or more and below 1")
        for name in ("saturation", "shadow"):
            self._require(0 <= getattr(self, name) <= 1, name, "0 to 1")
        self._require(0 <= self.hue <= 180, "hue", "0 to 180 degrees")
        self._require(0 <= self.jpeg <= 95, "jpeg", "a quality of 1 to 95, or 0")
        for name in ("scale", "gamma"):
            low, high = getattr(self, name) or (0, 0)
            self._require(0 < low <= high, name, "two positive numbers, low to high")
        self._require(min(self.crop) >= 32, "crop", "height and width of at least 32")
        self._require(
            not self.size or min(self.size) >= 32, "size", "height and width of at least 32"
        )

    def _require(self, ok: bool, name: str, expected: str) -> None:
        if not ok:
            raise ValueError(f"recipe {name}={getattr(self, name)!r}: expected {expected}")

    @classmethod
    def names(cls) -> list[str]:
        """The recipes that come with the package."""
        return sorted(p.stem for p in _FOLDER.glob("*.toml"))

    @classmethod
    def read(cls, name: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe:
        """A recipe by name or TOML file, with some values changed.

        Raises ValueError or FileNotFoundError naming the file and the key.
        """
        path = _FOLDER / f"{name}.toml"
        if not path.is_file():
            path = Path(name)
            if not path.is_file():
                raise FileNotFoundError(
                    f"no recipe {str(name)!r}: expected {', '.join(cls.names())} or a TOML file"
                )
        try:
            values = tomllib.loads(path.read_text("utf-8"))
        except (ValueError, OSError) as error:
            raise ValueError(f"{path}: cannot be read as TOML ({error})") from None
        try:
            cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return cls.from_dict({**values, **(changes or {})})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """A recipe of plain values (or texts as on the command line); unknown keys are refused."""
        known = {f.name: f.default for f in fields(cls)}
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                raise ValueError(f"recipe has an unknown key {name!r}; {hint}")
        return cls(**{name: _convert(name, value, known[name]) for name, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def differences(self, other: Recipe) -> list[str]:
        """Keys in which two recipes differ, as "lr 0.045, there 0.01"; `val_every` may."""
        other = replace(other, val_every=self.val_every)
        mine, theirs = self.to_dict(), other.to_dict()
        return [f"{k} {mine[k]}, there {theirs[k]}" for k in mine if mine[k] != theirs[k]]


def _convert(name: str, value: Any, default: Any) -> Any:
    """A TOML value or a text as the type of the recipe's default."""
    kind = type(default)
    try:
        if kind is tuple:
            return _pair(value, float if name in ("scale", "gamma") else int)
        if kind is bool and not isinstance(value, bool):
            return {"true": True, "false": False}[value]
        if kind in (int, float) and isinstance(value, bool):
            raise ValueError
        if kind is int and isinstance(value, float):
            raise ValueError
        if kind is str and not isinstance(value, str):
            raise ValueError
        return kind(value)
    except (ValueError, KeyError, TypeError):
        expected = {int: "a whole number", float: "a number", bool: "true or false"}.get(
            kind, "two numbers" if kind is tuple else "a text"
        )
        raise ValueError(f"recipe {name}={value!r}: expected {expected}") from None


def _pair(value: Any, kind: type) -> tuple[Any, ...]:
    parts = value.lower().replace(",", "x").split("x") if isinstance(value, str) else list(value)
    pair = tuple(kind(p) for p in parts if p != "")
    if len(pair) not in (0, 2) or any(isinstance(p, float) and kind is int for p in parts):
        raise ValueError
    return pair
