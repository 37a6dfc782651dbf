"""The NEON kernels, built by a cross compiler (the wheel `ziglang`), give the portable kernels'
results under an emulator (`qemu-aarch64`). Skipped where either is missing."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]
#: Without what picks an instruction set, the threads, and int8; tests/cpp builds all of it.
LISTED = (ROOT / "CMakeLists.txt").read_text().partition("set(KERNEL_SOURCES")[2].partition(")")[0]
KERNELS = [ROOT / name for name in [*LISTED.split(), "csrc/cpu/axis.cpp"]]
MAIN = ROOT / "tests/kernels/cpu/cpu_cross/main.cpp"
FLAGS = ("-std=gnu++17", "-O2", "-ffp-contract=fast", "-Wno-psabi", f"-I{ROOT / 'csrc/cpu'}")
STRICT = ("-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None, reason="needs ziglang (pip install ziglang)"
)


def zig(*arguments: object) -> None:
    """Zig's clang for AArch64; its C++ library is not used, as building that takes minutes."""
    command = [sys.executable, "-m", "ziglang", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """All kernels and the program around them, compiled without a warning."""
    folder, made = tmp_path_factory.mktemp("neon"), []
    for source in [*KERNELS, MAIN]:
        made.append(folder / f"{source.stem}.o")
        options = (*FLAGS, *STRICT, "-fno-exceptions", "-DFASTSCNN_ISA=neon")
        zig("c++", "-target", "aarch64-linux-musl", *options, "-c", source, "-o", made[-1])
    return made


def test_neon_compiles(objects: list[Path]) -> None:
    assert all(o.read_bytes()[18:20] == b"\xb7\x00" for o in objects)  # ELF machine AArch64


@pytest.mark.slow
def test_neon_gives_the_portable_results(objects: list[Path], tmp_path: Path) -> None:
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("needs qemu-aarch64 (Debian: qemu-user)")
    zig("cc", "-target", "aarch64-linux-musl", *objects, "-o", tmp_path / "neon")
    host = ["c++", *FLAGS, "-DFASTSCNN_ISA=portable", *KERNELS, MAIN, "-o", tmp_path / "portable"]
    subprocess.run(host, check=True)
    runs = ([tmp_path / "portable"], [emulator, tmp_path / "neon"])
    portable, neon = (
        np.frombuffer(subprocess.run(r, check=True, capture_output=True).stdout, np.float32)
        for r in runs
    )
    assert neon.shape == portable.shape
    error = np.abs(neon.astype(np.float64) - portable) / np.abs(portable).max()
    assert error.max() < 1e-6, f"output {error.argmax()} differs by {error.max():.1e} of the range"
