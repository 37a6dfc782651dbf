"""The C++ threads under ThreadSanitizer: the pool by itself, and networks shared by threads."""

from __future__ import annotations

import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent / "threads"
FLAGS = ("-std=c++17", "-O1", "-g1", "-fsanitize=thread", "-pthread", f"-I{ROOT / 'csrc/cpu'}")


def run(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr[:5000]}"
    return done.stdout


def listed(name: str) -> list[Path]:
    """The sources that CMakeLists.txt lists under a name, but for the choice of instruction set."""
    found = re.search(rf"{name}\s([^)]*)\)", (ROOT / "CMakeLists.txt").read_text())
    assert found is not None
    sources = [ROOT / word for word in found[1].split() if word.endswith(".cpp")]
    return [s for s in sources if s.stem not in ("isa", "isa_int8")]


def build(folder: Path, program: Path, sources: list[Path], *flags: str) -> Path:
    def compiled(source: Path) -> Path:
        target = folder / f"{source.stem}{'.main' if source == program else ''}.o"
        run("c++", *FLAGS, *flags, "-c", source, "-o", target)
        return target

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        objects = list(pool.map(compiled, [program, *sources]))
    run("c++", *FLAGS, *objects, "-o", folder / "program")
    return folder / "program"


def test_late_helpers_of_the_pool(tmp_path: Path) -> None:
    """Without `seats = 0` at the end of a job, a helper that wakes late joins the next one's."""
    program = build(tmp_path, HERE / "pool.cpp", [ROOT / "csrc/cpu/pool.cpp"])
    assert run(program) == "0 faults in 5000 jobs\n"


@pytest.mark.slow
def test_networks_shared_by_threads(tmp_path: Path) -> None:
    sources = [p for name in ("KERNEL_SOURCES", "INT8_SOURCES", "OBJECT") for p in listed(name)]
    assert {"network", "pool", "gemm", "gemm_int8"} <= {p.stem for p in sources}
    flags = ("-DFASTSCNN_ISA=portable", "-DFASTSCNN_FLOATS=portable", "-Wno-psabi")
    assert run(build(tmp_path, HERE / "network.cpp", sources, *flags)) == "0 results differ\n"
