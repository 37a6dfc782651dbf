"""What is measured on a GPU: groups of contestants that do the same work in turns.

A group is a network at one shape with one set of weights, one of its layers, or a training step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_providers import AUTOTUNED, COMPILED, IN_PLACE, OURS, PROBABILITIES, TORCH, Provider

from fastscnn_kernels.cuda import operations as cuda

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
import op_cases

Shape = tuple[int, int, int]  # images, height, width


@dataclass(frozen=True)
class Network:
    """`weights`: "camvid" (shipped, 11 classes, real frames where there are any) or "seeded"
    (19 classes); `what`: in what it differs from a plain comparison at this shape."""

    weights: str
    shape: Shape
    providers: tuple[Provider, ...]
    what: str = ""

    @property
    def name(self) -> str:
        what = f", {self.what}" if self.what else ""
        return f"network {'x'.join(map(str, self.shape))} {self.weights}{what}"


@dataclass(frozen=True)
class Layer:
    """One operation in float16; `make` gives its arguments. Implementations by name."""

    name: str
    op: str
    make: Callable[[torch.dtype], op_cases.Inputs]

    @property
    def implementations(self) -> tuple[str, ...]:
        ours = ("CUDA C++", "Triton") if self.op in cuda.OPERATIONS else ("Triton",)
        return (*ours, "torch")


@dataclass(frozen=True)
class Training:
    """A step of SGD under autocast: loss, gradients, update. Contestants as in test_training.py."""

    images: int
    classes: int
    size: tuple[int, int]
    dtype: str  # "bf16" or "fp32"
    steppers: tuple[str, ...] = ("eager", "channels_last", "unchanged_loop", "ours")

    @property
    def name(self) -> str:
        h, w = self.size
        return f"training step {self.images}x{h}x{w}, {self.classes} classes, {self.dtype}"


def labels_alone(scores: Any, size: Any, dtype: torch.dtype) -> op_cases.Inputs:
    args, kwargs = op_cases.head(scores, size, False, dtype)
    return args, {**kwargs, "confidence": False}


def layers(scale: int) -> list[Layer]:
    """Layers of the paper's network at 1024x2048, each side divided by `scale`."""

    def s(*sides: int) -> tuple[int, ...]:
        return tuple(side // scale for side in sides)

    c = op_cases
    made: dict[str, tuple[str, Callable[[torch.dtype], op_cases.Inputs]]] = {
        "downsample": (
            "learning_to_downsample", lambda d: c.downsample((1, *s(1024, 2048)), 1, d)),
        "stem": ("stem_conv", lambda d: c.stem((1, *s(1024, 2048)), 1, d)),
        "ltd.dsconv1": ("dsconv", lambda d: c.separable((1, 32, *s(512, 1024)), 48, d, stride=2)),
        "ltd.dsconv2": ("dsconv", lambda d: c.separable((1, 48, *s(256, 512)), 64, d, stride=2)),
        "bottleneck1.0": (
            "inverted_residual", lambda d: c.bottleneck((1, 64, *s(128, 256)), 64, d, stride=2)),
        "bottleneck1.1": (
            "inverted_residual",
            lambda d: c.bottleneck((1, 64, *s(64, 128)), 64, d, residual=True)),
        "bottleneck2.0": (
            "inverted_residual", lambda d: c.bottleneck((1, 64, *s(64, 128)), 96, d, stride=2)),
        "bottleneck2.1": (
            "inverted_residual", lambda d: c.bottleneck((1, 96, *s(32, 64)), 96, d, residual=True)),
        "bottleneck3.0": (
            "inverted_residual", lambda d: c.bottleneck((1, 96, *s(32, 64)), 128, d)),
        "bottleneck3.1": (
            "inverted_residual",
            lambda d: c.bottleneck((1, 128, *s(32, 64)), 128, d, residual=True)),
        "pyramid": ("pyramid_pool", lambda d: c.pyramid((1, 128, *s(32, 64)), 32, 1, d)),
        "fusion": (
            "feature_fusion",
            lambda d: c.fusion((64, *s(128, 256)), (128, *s(32, 64)), False, d)),
        "classifier": ("dsconv", lambda d: c.separable((1, 128, *s(128, 256)), 128, d)),
        "classifier+scores": (
            "dsconv", lambda d: c.with_head((1, 128, *s(128, 256)), 128, 19, d)),
        "scores": ("pointwise_conv", lambda d: c.pointwise((1, 128, *s(128, 256)), 19, d)),
        "labels": ("argmax_head", lambda d: labels_alone((1, 19, *s(128, 256)), s(1024, 2048), d)),
    }  # fmt: skip
    return [Layer(name, op, make) for name, (op, make) in made.items()]


ONE_IMAGE: tuple[Shape, ...] = ((1, 1024, 2048), (1, 512, 1024), (1, 256, 512))
BATCHES: tuple[Shape, ...] = ((4, 1024, 2048), (16, 1024, 2048), (16, 512, 1024))
SMOKE: Shape = (2, 32, 48)
MAX_AUTOTUNE = "against max-autotune"
#: Ours that compilers are measured against.
_BEST = tuple(p for p in (*OURS, *TORCH) if p.name.endswith("graph") and "bf16" not in p.name)
Group = Network | Layer | Training


def groups(smoke: bool, compiling: bool) -> list[Group]:
    """In order of importance, as time may run out; `smoke` is the smallest of each kind."""
    fast = (*OURS, *IN_PLACE, *TORCH)
    tuned = tuple(AUTOTUNED) if compiling else ()
    others = tuple(p for p in COMPILED if compiling or not p.name.startswith("torch.compile"))
    prob = tuple(PROBABILITIES)
    headline, *smaller = ONE_IMAGE
    if smoke:
        return [
            Network("camvid", SMOKE, fast),
            Network("seeded", SMOKE, (*_BEST, *tuned, *others), "against compilers"),
            Network("seeded", SMOKE, prob, "probabilities"),
            *(layer for layer in layers(32) if layer.name in ("ltd.dsconv1", "pyramid", "labels")),
            Training(2, 5, (64, 96), "bf16"),
        ]
    paper = [
        (Network("seeded", shape, fast), Network("seeded", shape, prob, "probabilities"))
        for shape in ONE_IMAGE
    ]
    return [
        Network("camvid", headline, fast),
        *([Network("camvid", headline, (*_BEST, *tuned), MAX_AUTOTUNE)] if tuned else []),
        *(Network("camvid", shape, fast) for shape in smaller),
        *(group for pair in paper for group in pair),
        *(Network("camvid", shape, fast) for shape in BATCHES),
        *layers(1),
        Training(8, 11, (448, 608), "bf16"),
        Training(2, 19, (1024, 2048), "bf16"),
        *(
            Network("camvid", shape, (*_BEST, *tuned), MAX_AUTOTUNE)
            for shape in (smaller if tuned else ())
        ),
        *(Network("camvid", shape, (*_BEST, *others), "against compilers") for shape in ONE_IMAGE),
    ]


def contestants(group: Group) -> tuple[str, ...]:
    if isinstance(group, Network):
        return tuple(p.name for p in group.providers)
    return group.steppers if isinstance(group, Training) else group.implementations
