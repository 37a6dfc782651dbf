"""What a way to run the network is, and how its labels are judged."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastscnn.network.model import FastSCNN

#: Labels 1 x H x W of the frame that it was built for.
Labeller = Callable[[], Tensor]
Build = Callable[[FastSCNN, Tensor, int], Labeller]


class Unavailable(Exception):
    """This provider cannot run here, for the given reason."""


@dataclass(frozen=True)
class Provider:
    """`build(model, frame, threads)` takes a float32 model on the CPU and a uint8 frame
    1 x H x W x 3, and raises `Unavailable` with a reason where it cannot run.

    `exact` ways compute in float32. `ours` is "" for a peer, "head" for a peer's trunk with this
    project's head, "all" for what is this project's from frame to labels. `slow` ones take minutes
    to build.
    """

    name: str
    build: Build
    exact: bool = True
    ours: str = ""
    slow: bool = False


@dataclass(frozen=True)
class Agreement:
    """Shares of pixels, 0..1: labels `equal` to those of the float32 reference, and `near`ly the
    best: what they chose is at most `NEAR` of the logits' range below the best."""

    equal: float
    near: float

    def wrong(self, exact: bool) -> bool:
        """Whether this cannot be rounding, of float32 or of fewer bits."""
        return self.near < (0.9999 if exact else 0.98)


#: By whether a provider is exact: float32 rounds; a step of a map in int8 is 1/255 of its range,
#: and a dozen of them lie behind each other.
NEAR = {True: 1e-4, False: 0.1}


def agreement(labels: Tensor, logits: Tensor, exact: bool) -> Agreement:
    """Of labels 1 x H x W with the reference's logits 1 x C x H x W."""
    best = logits.amax(1)
    chosen = logits.gather(1, labels.long().unsqueeze(1)).squeeze(1)
    margin = NEAR[exact] * float(logits.max() - logits.min())
    equal = (labels == logits.max(1)[1]).double().mean().item()
    return Agreement(equal, (chosen >= best - margin).double().mean().item())


def need(package: str) -> Any:
    """The module, or `Unavailable` with the command that installs it."""
    if importlib.util.find_spec(package) is None:
        raise Unavailable(f"{package} is not installed (pip install {package})")
    return importlib.import_module(package)


def use_threads(threads: int) -> None:
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
