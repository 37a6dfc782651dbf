"""The Triton kernels of training, executed: numbers, bounds, races, unwritten outputs."""

from __future__ import annotations

import pytest
import torch
from test_interpreted_ops import watch  # noqa: F401
from training_cases import CASES, TrainingCase, check_training

import fastscnn_kernels.triton as kernels

RUNS = [pytest.param(case, torch.float32, id=case.id) for case in CASES] + [
    pytest.param(case, torch.bfloat16, id=f"{case.id}-bfloat16", marks=pytest.mark.slow)
    for case in CASES
    if not case.op.startswith("cross_entropy_head")  # whose scores are float32 always
]


@pytest.mark.parametrize(("case", "dtype"), RUNS)
def test_equals_twin(case: TrainingCase, dtype: torch.dtype) -> None:
    args, options = case.make(dtype)
    check_training(case, getattr(kernels, case.op)(*args, **options), args, options)


def test_wrong_labels_are_found() -> None:
    scores, target = torch.randn(1, 3, 2, 2), torch.full((1, 4, 4), 3, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=r"label beyond 0\.\.2 that is not ignore_index=255"):
        kernels.cross_entropy_head_sums(scores, target)
