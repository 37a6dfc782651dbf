"""What the tests of int8 share: weights, drawn frames, and what integers stand for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastscnn.media.demo import street_scene
from fastscnn_kernels.cpu import int8 as cpu_int8


@pytest.fixture(autouse=True)
def int8_anywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.empty is filled with NaN, so that an element that is never written is found; int8 runs
    on any CPU."""
    monkeypatch.setattr(cpu_int8, "pays", lambda: True)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def tensor(n: int, c: int, h: int, w: int) -> Tensor:
    return torch.randn(n, c, h, w).contiguous(memory_format=torch.channels_last)


def dense(out: int, inputs: int) -> tuple[Tensor, Tensor]:
    return torch.randn(out, inputs, 1, 1) / inputs**0.5, torch.randn(out) / 4


def depthwise(channels: int) -> tuple[Tensor, Tensor]:
    return torch.randn(channels, 1, 3, 3) / 3, torch.randn(channels) / 4


def same(got: Tensor, expected: Tensor) -> None:
    """Every bit; the message shows the worst element."""
    worst = int((got - expected).abs().nan_to_num(torch.inf).argmax())
    assert torch.equal(got, expected), f"{got.flatten()[worst]}, not {expected.flatten()[worst]}"


def scenes(count: int, size: tuple[int, int] = (96, 128)) -> list[np.ndarray]:
    return [np.asarray(street_scene(*size, seed=i)) for i in range(count)]


def byte_values(x: np.ndarray, span: tuple[float, float]) -> np.ndarray:
    """What the bytes of a range stand for: 255 steps from low to high, 0 among them."""
    step = (span[1] - span[0]) / 255
    zero = np.rint(-span[0] / step)
    return (np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step


def int8_values(weight: np.ndarray) -> np.ndarray:
    """Weights in steps of their output channel's own: its largest is 127 of them."""
    step = np.abs(weight).reshape(len(weight), -1).max(1) / 127
    step = step.reshape(-1, *[1] * (weight.ndim - 1))
    return np.clip(np.rint(weight / step), -127, 127) * step


def uneven(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Channels of very different size, as batch norm leaves them."""
    scale = torch.logspace(-1.5, 0, len(weight))[torch.randperm(len(weight))]
    return weight * scale.reshape(-1, 1, 1, 1), bias * scale


def rms(x: Any) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(x, dtype=np.float64)))))
