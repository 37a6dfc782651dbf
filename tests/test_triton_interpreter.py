"""Runs the interpreted Triton tests in their own process (Triton decides at import)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton (Linux)")

FOLDER = Path(__file__).parent / "triton_interpreter"


def run_interpreted(*arguments: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", *arguments, str(FOLDER)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_kernels_interpreted() -> None:
    """fp32 cases of every op, one case per op in fp16 and bf16, the network for every preset."""
    run_interpreted("-m", "not slow")


@pytest.mark.slow
def test_all_dtypes_interpreted() -> None:
    """Every case in fp16 and bf16 too: pytest tests/test_triton_interpreter.py -m slow"""
    run_interpreted("-m", "slow")
