"""Every Triton kernel, executed: numbers, bounds, races, unwritten outputs, bytes moved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from op_cases import CASES, DTYPES, Case, check
from sanitizer import Sanitizer, sanitized

import fastscnn_kernels.triton as kernels
from fastscnn_kernels import shapes

RUNS = [
    pytest.param(
        case, dtype, id=f"{case.id}-{str(dtype)[6:]}",
        marks=[] if dtype == torch.float32 or (case.core and dtype == torch.float16)
        else [pytest.mark.slow],
    )
    for case in CASES
    for dtype in DTYPES
]  # fmt: skip


@pytest.fixture(autouse=True)
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sanitizer]:
    """Kernels are watched, and whatever they do not write is NaN (or 0xCD)."""
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        t = empty(*args, **kwargs)
        return t.fill_(float("nan") if t.is_floating_point() else 0xCD)

    torch.manual_seed(0)
    monkeypatch.setattr(torch, "empty", poisoned)
    with sanitized() as sanitizer:
        yield sanitizer


@pytest.mark.parametrize(("case", "dtype"), RUNS)
def test_equals_twin(case: Case, dtype: torch.dtype) -> None:
    args, kwargs = case.make(dtype)
    check(case, getattr(kernels, case.op)(*args, **kwargs), args, kwargs)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.op == "inverted_residual"][:2], ids=lambda c: c.name
)
def test_fused_bottleneck_equals_twin(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The form that big maps take, on the small ones."""
    monkeypatch.setattr(shapes, "FUSED_PIXELS", 0)
    args, kwargs = case.make(torch.float16)
    check(case, kernels.inverted_residual(*args, **kwargs), args, kwargs)
