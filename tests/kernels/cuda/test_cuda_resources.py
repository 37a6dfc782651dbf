"""RESOURCES.md and BUDGET.md are what the sources give; every kernel fits every target."""

from __future__ import annotations

import shutil
import subprocess
import sys

import cuda_budget
import pytest


@pytest.mark.slow
def test_every_target_builds_without_warnings_and_fits() -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    script = cuda_budget.OUT.parents[2] / "tests" / "cuda_resources.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_budget_is_current() -> None:
    assert cuda_budget.OUT.read_text() == cuda_budget.report()
