"""The script that runs compute-sanitizer, with a stand-in for it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "sanitize_gpu.sh"


def run(path: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_HOME"} | {"PATH": path}
    command = ["sh", str(SCRIPT), "PYTHON"]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture
def sanitizer(tmp_path: Path) -> Path:
    """Prints its arguments; finds something where FAIL holds the tool's name."""
    program = tmp_path / "compute-sanitizer"
    program.write_text(
        f'#!/bin/sh\necho "ran $*"\n[ "$2" != "$(cat {tmp_path}/FAIL 2>/dev/null)" ]\n'
    )
    program.chmod(0o755)
    return program


def test_both_tools_run_on_the_selected_tests(sanitizer: Path) -> None:
    done = run(f"{sanitizer.parent}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("ran ")]
    assert [line.split()[2] for line in lines] == ["memcheck", "racecheck"]
    for line in lines:
        assert "--error-exitcode 1 PYTHON -m pytest" in line
        assert line.endswith("tests/kernels/cuda/test_cuda_gpu.py -k every_kernel_once")
    text = (SCRIPT.parent / "test_cuda_gpu.py").read_text()
    assert text.count("def test_every_kernel_once(") == 1


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_what_a_tool_finds_fails_the_script(sanitizer: Path, tool: str) -> None:
    (sanitizer.parent / "FAIL").write_text(tool)
    assert run(f"{sanitizer.parent}:{os.environ['PATH']}").returncode != 0


def test_without_the_tool_it_says_so() -> None:
    if Path("/usr/local/cuda/bin/compute-sanitizer").exists():
        pytest.skip("compute-sanitizer is installed")
    done = run("/usr/bin:/bin")
    assert done.returncode == 0
    assert "not run: compute-sanitizer" in done.stdout
