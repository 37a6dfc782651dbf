"""What is measured on a GPU: groups of contestants that do the same work in turns.

A group is a network at one shape with one set of weights, or one of its layers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_providers import COMPILED, OURS, TORCH, Provider

from fastscnn_kernels.cuda import operations as cuda

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
import op_cases

Shape = tuple[int, int, int]  # images, height, width


@dataclass(frozen=True)
class Network:
    """`weights`: "camvid" (shipped, 11 classes, real frames where there are any) or "seeded"
    (19 classes)."""

    weights: str
    shape: Shape
    providers: tuple[Provider, ...]
    slow: bool = False

    @property
    def name(self) -> str:
        slow = ", against compilers" if self.slow else ""
        return f"network {'x'.join(map(str, self.shape))} {self.weights}{slow}"


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
#: Ours that compilers are measured against.
_BEST = tuple(p for p in (*OURS, *TORCH) if p.name.endswith("graph") and "bf16" not in p.name)


def groups(smoke: bool, compiling: bool) -> list[Network | Layer]:
    """In order of importance, as time may run out; `smoke` is the smallest of each kind."""
    fast = (*OURS, *TORCH)
    slow = tuple(p for p in COMPILED if compiling or not p.name.startswith("torch.compile"))
    if smoke:
        return [
            Network("camvid", SMOKE, fast),
            Network("seeded", SMOKE, (*_BEST, *slow), slow=True),
            *(layer for layer in layers(32) if layer.name in ("ltd.dsconv1", "pyramid", "labels")),
        ]
    return [
        *(Network("camvid", shape, fast) for shape in ONE_IMAGE),
        *(Network("seeded", shape, fast) for shape in ONE_IMAGE),
        *(Network("camvid", shape, fast) for shape in BATCHES),
        *layers(1),
        *(Network("camvid", shape, (*_BEST, *slow), slow=True) for shape in ONE_IMAGE),
    ]


def contestants(group: Network | Layer) -> tuple[str, ...]:
    if isinstance(group, Network):
        return tuple(p.name for p in group.providers)
    return group.implementations
