"""Cases of the operations of training, for whatever implements the twins' signatures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from op_cases import feature_map, to_double
from tolerance import assert_close
from torch import Tensor

from fastscnn_kernels import reference

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class TrainingCase:
    """`make(dtype)` gives the arguments, of which maps have that dtype."""

    op: str
    name: str
    make: Callable[[torch.dtype], Inputs]

    @property
    def id(self) -> str:
        return f"{self.op}-{self.name}"


def norm_vectors(channels: int) -> tuple[Tensor, ...]:
    """Weight, bias, mean and variance."""
    return *(torch.randn(channels) for _ in range(3)), torch.rand(channels) + 0.1


def _moments(shape: tuple[int, ...], dtype: torch.dtype) -> Inputs:
    n, c, h, w = shape
    return (feature_map(n, c, h, w, torch.float32).add(3).to(dtype),), {}


def _norm(
    backward: bool, shape: tuple[int, ...], dtype: torch.dtype, batch: bool = True, **options: Any
) -> Inputs:
    n, c, h, w = shape
    maps = [feature_map(n, c, h, w, dtype) for _ in range(2 if backward else 1)]
    return (*maps, *norm_vectors(c)), {"eps": 1e-3, "batch_moments": batch, **options}


def _depthwise(
    backward: bool, norm: bool, shape: tuple[int, ...], dtype: torch.dtype, **options: Any
) -> Inputs:
    n, c, h, w = shape
    stride = options["stride"]
    x, taps = feature_map(n, c, h, w, dtype), torch.randn(c, 1, 3, 3)
    dy = feature_map(n, c, (h - 1) // stride + 1, (w - 1) // stride + 1, dtype)
    maps = (dy, x) if backward else (x,)
    if not norm:
        return (*maps, taps.to(dtype)), options
    return (*maps, taps, *norm_vectors(c)), {"eps": 1e-3, "batch_moments": True, **options}


def _head(
    backward: bool,
    shape: tuple[int, ...],
    size: tuple[int, int],
    dtype: torch.dtype,
    labels: torch.dtype = torch.uint8,
    weighted: bool = False,
    **options: Any,
) -> Inputs:
    """Scores are float32, as the public operation makes them."""
    n, k, h, w = shape
    target = torch.randint(0, k, (n, *size)).to(labels)
    target[torch.rand(target.shape) < 0.2] = 255
    weight = torch.rand(k) if weighted else None
    first = (torch.randn(target.shape),) if backward else ()
    return (*first, 4 * feature_map(n, k, h, w, torch.float32), target, weight), options


def _case(
    op: str, name: str, make: Callable[..., Inputs], *args: Any, **options: Any
) -> TrainingCase:
    return TrainingCase(op, name, lambda dtype: make(*args, dtype=dtype, **options))


def _both(op: str, name: str, *args: Any, **options: Any) -> list[TrainingCase]:
    make = _depthwise if "depthwise" in op else _norm
    kind = (True,) if make is _depthwise else ()
    return [
        _case(op, name, make, False, *kind, *args, **options),
        _case(f"{op}_backward", name, make, True, *kind, *args, **options),
    ]


#: Two runs of pixels and two blocks of channels; tiles cut off; channels off the block; one pixel.
WIDE, TILES, ODD, PIXEL = (2, 70, 13, 11), (1, 40, 9, 10), (2, 19, 7, 5), (2, 5, 1, 1)
CASES = (
    _case("moments", "wide", _moments, WIDE),
    _case("moments", "odd", _moments, ODD),
    _case("moments", "pixel", _moments, PIXEL),
    *_both("batch_norm", "relu", WIDE, activation="relu"),
    *_both("batch_norm", "dropout", ODD, activation="relu6", dropout=0.3, seed=1),
    *_both("batch_norm", "long-seed", ODD, activation="none", dropout=0.5, seed=(1 << 62) - 1),
    *_both("batch_norm", "frozen", PIXEL, activation="none", batch=False),
    *_both("norm_depthwise", "relu", TILES, activation="relu", stride=1, dilation=1),
    *_both("norm_depthwise", "stride-2", ODD, activation="relu6", stride=2, dilation=1),
    *_both("norm_depthwise", "dilated", ODD, activation="none", stride=1, dilation=4),
    *_both("norm_depthwise", "both", (1, 33, 9, 5), activation="relu", stride=2, dilation=3),
    *_both("norm_depthwise", "pixel", PIXEL, activation="relu", stride=2, dilation=1),
    _case("depthwise_conv_backward", "dilated", _depthwise, True, False, ODD, stride=1, dilation=4),
    _case("depthwise_conv_backward", "stride-2", _depthwise, True, False, TILES, stride=2,
          dilation=1),
    *(
        case
        for op, backward, extra in (
            ("cross_entropy_head_sums", False, {"gradient": True}),
            ("cross_entropy_head_map", False, {}),
            ("cross_entropy_head_backward", True, {}),
        )
        for case in (
            _case(op, "x8", _head, backward, (2, 11, 3, 5), (24, 40), **extra),
            _case(op, "aligned-smooth", _head, backward, (1, 19, 4, 7), (27, 50), weighted=True,
                  label_smoothing=0.1, align_corners=True, labels=torch.int64, **extra),
            _case(op, "one-pixel", _head, backward, (1, 3, 1, 1), (5, 19), weighted=True, **extra),
            _case(op, "shrink", _head, backward, (1, 33, 5, 11), (3, 5), **extra),
            _case(op, "same-size", _head, backward, (1, 130, 3, 6), (3, 6), label_smoothing=0.3,
                  **extra),
        )
    ),
)  # fmt: skip


def check_training(
    case: TrainingCase, ours: Any, args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    """All results against the twin in float64 and in the arguments' own dtypes."""
    twin = getattr(reference, case.op)
    exact, peer = twin(*(to_double(a) for a in args), **options), twin(*args, **options)
    tuples = [t if isinstance(t, tuple) else (t,) for t in (ours, exact, peer)]
    for mine, truth, other in zip(*tuples, strict=True):
        assert_close(mine, truth, other)
