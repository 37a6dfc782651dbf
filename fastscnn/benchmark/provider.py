"""What a way to run the network is, and how its labels are judged."""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fastscnn.network.model import FastSCNN

#: Labels 1 x H x W of the frame that it was built for.
Labeller = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """A uint8 frame 1 x H x W x 3 to label on `threads` threads, and others of its size, N x H x W
    x 3, on which int8 is calibrated; None where there are none."""

    frame: Tensor
    threads: int
    others: Tensor | None = None

    def calibration(self) -> Tensor:
        """The other frames, or `Unavailable`."""
        if self.others is None:
            raise Unavailable("int8 has no frames to be calibrated on but the one that is judged")
        return self.others


Build = Callable[[FastSCNN, Case], Labeller]


class Unavailable(Exception):
    """This provider cannot run here, for the given reason."""


@dataclass(frozen=True)
class Provider:
    """`build(model, case)` takes a float32 model on the CPU, and raises `Unavailable` with a reason
    where it cannot run.

    `exact` ways compute in float32. `ours` is "" for a peer, "head" for a peer's trunk with this
    project's head, "all" for what is this project's from frame to labels. `slow` ones take minutes
    to build.
    """

    name: str
    build: Build
    exact: bool = True
    ours: str = ""
    slow: bool = False

    @property
    def near(self) -> float:
        """How far below the best a label may lie, as a share of the logits' range: float32 rounds;
        a step of a map in int8 is 1/255 of its range, and a dozen of them lie behind each other."""
        return 1e-4 if self.exact else 0.03 if self.ours == "all" else 0.1

    @property
    def share(self) -> float:
        """Of the pixels, how many must be that near; less is no rounding. Peers' own int8 is
        judged more mildly than ours."""
        return 0.9999 if self.exact or self.ours == "all" else 0.98


@dataclass(frozen=True)
class Agreement:
    """Shares of pixels, 0..1: labels `equal` to those of the float32 reference, and `near`ly the
    best: what they chose is at most `Provider.near` of the logits' range below the best."""

    equal: float
    near: float


def agreement(labels: Tensor, logits: Tensor, near: float) -> Agreement:
    """Of labels 1 x H x W with the reference's logits 1 x C x H x W."""
    best = logits.amax(1)
    chosen = logits.gather(1, labels.long().unsqueeze(1)).squeeze(1)
    margin = near * float(logits.max() - logits.min())
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


def without_batch_norm(model: FastSCNN) -> FastSCNN:
    """A copy whose batch norms are folded by PyTorch's own means."""
    model = copy.deepcopy(model)
    module: Any
    for module in model.modules():
        if isinstance(getattr(module, "bn", None), torch.nn.BatchNorm2d):
            module.conv = fuse_conv_bn_eval(module.conv, module.bn)
            module.bn = None
    return model
