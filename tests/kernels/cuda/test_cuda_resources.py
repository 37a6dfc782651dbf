"""RESOURCES.md and BUDGET.md are what the sources give; every kernel fits every target."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cuda_budget
import pytest


@pytest.mark.slow
def test_every_target_builds_without_warnings_and_fits() -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    script = Path(__file__).with_name("cuda_resources.py")
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def baseline() -> dict[str, Any]:
    return dict(json.loads(cuda_budget.BASELINE.read_text()))


def test_budget_is_what_its_numbers_say(baseline: dict[str, Any]) -> None:
    assert cuda_budget.OUT.read_text() == cuda_budget.report(baseline)


def test_a_kernel_that_grew_is_named(baseline: dict[str, Any]) -> None:
    """By over 3 % of its floor; what grew beside what binds it did not."""
    now = copy.deepcopy(baseline)
    kernel = now["kernels"]["learning_to_downsample"]
    assert cuda_budget.grown(now, baseline) == []
    kernel["macs"] *= 1.5
    kernel["instructions"] *= 1.02
    assert cuda_budget.grown(now, baseline) == []
    kernel["instructions"] *= 1.02
    now["kernels"]["new"] = dict(kernel)
    found = cuda_budget.grown(now, baseline)
    assert [line.split(":")[0] for line in found] == ["learning_to_downsample", "new"]
    assert "bound by issue" in found[0]


def test_the_multiprocessor_with_most_blocks_decides(baseline: dict[str, Any]) -> None:
    fields = baseline["kernels"]["dsconv classifier 1"]
    one, two = (
        cuda_budget.Cost(**{**fields, "blocks": n, "instructions": 7600.0, "warps": 4})
        for n in (cuda_budget.MULTIPROCESSORS, cuda_budget.MULTIPROCESSORS + 1)
    )
    assert one.us["issue"] == pytest.approx(1.0)  # 1900 clocks of four schedulers
    assert two.us["issue"] == pytest.approx(2.0)
    narrow = cuda_budget.Cost(**{**fields, "blocks": 1, "instructions": 7600.0, "warps": 2})
    assert narrow.us["issue"] == pytest.approx(2.0)  # two of the schedulers have no warp


@pytest.mark.slow
def test_no_kernel_grew() -> None:
    script = Path(__file__).with_name("cuda_budget.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if "not compared" in done.stdout:
        pytest.skip(done.stdout.splitlines()[-1])
