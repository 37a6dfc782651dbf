"""Runs the interpreted Triton tests in processes of their own (Triton decides at import)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton (Linux)")

FOLDER = Path(__file__).parent / "triton_interpreter"


def run_interpreted(marks: str, pattern: str = "test_*.py") -> None:
    """The matching test files at once, one process each."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    running = [
        subprocess.Popen(
            [*command, "-m", marks, str(file)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for file in sorted(FOLDER.glob(pattern))
    ]  # fmt: skip
    assert running
    outputs = [process.communicate()[0] for process in running]
    for process, output in zip(running, outputs, strict=True):
        assert process.returncode == 0, output[-8000:]


def test_kernels_interpreted() -> None:
    """fp32 cases of every op, one case per op in fp16, the network for every preset."""
    run_interpreted("not slow")


@pytest.mark.slow
def test_all_dtypes_interpreted() -> None:
    """Every case in fp16 and bf16 too."""
    run_interpreted("slow", "test_interpreted_[ot]*.py")
