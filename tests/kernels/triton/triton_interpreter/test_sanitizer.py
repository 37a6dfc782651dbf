"""The watcher itself: it must see what it is there for."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from sanitizer import sanitized
from triton.runtime.errors import InterpreterError


@triton.jit
def copy_kernel(x, y, SIZE, BLOCK: tl.constexpr, STEP: tl.constexpr):
    i = tl.program_id(0) * STEP + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < SIZE, other=0.0), mask=i < SIZE)


def test_counts_distinct_bytes() -> None:
    x, y = torch.randn(12), torch.empty(12)
    with sanitized() as watch:
        copy_kernel[(3,)](x, y, 12, 4, 4)
    assert torch.equal(x, y)
    assert watch.launches[0].touched == {"x": 48, "y": 48}
    assert watch.launches[0].ratio() == 1.0
    assert watch.launches[0].ratio("x") == 1.0


def test_out_of_bounds() -> None:
    with sanitized(), pytest.raises(InterpreterError, match="load out of bounds in 4 of 4 lanes"):
        copy_kernel[(4,)](torch.randn(12), torch.empty(16), 16, 4, 4)


def test_store_race() -> None:
    with sanitized(), pytest.raises(RuntimeError, match="stored more than once"):
        copy_kernel[(3,)](torch.randn(12), torch.empty(12), 12, 4, 2)
