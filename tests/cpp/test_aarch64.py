"""libfastscnn built for AArch64 by a cross compiler (the wheel `ziglang`), as a robot's toolchain
does; its example under an emulator (`qemu-aarch64`) where there is one."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from libraries import ROOT, network, run
from PIL import Image

from fastscnn.export.fscnn import export_fscnn
from fastscnn.media.demo import street_scene

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ziglang") is None, reason="needs ziglang (pip install ziglang)"
    ),
]
FOLDER = ROOT / "build" / "cpp-aarch64"


def tool(name: str, arguments: str) -> Path:
    """Zig's tools are one program; CMake wants a file for each."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    script = FOLDER / name
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m ziglang {arguments} "$@"\n')
    script.chmod(0o755)
    return script


@pytest.fixture(scope="module")
def static() -> Path:
    """The static library: linking a shared one would build Zig's C++ library, for minutes."""
    options = {
        "FASTSCNN_PYTHON": "OFF",
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_CXX_COMPILER": tool("c++", "c++ -target aarch64-linux-musl"),
        "CMAKE_AR": tool("ar", "ar"),
        "CMAKE_RANLIB": tool("ranlib", "ranlib"),
        "CMAKE_TRY_COMPILE_TARGET_TYPE": "STATIC_LIBRARY",
    }
    generator = ("-G", "Ninja") if shutil.which("ninja") else ()
    made = FOLDER / "made"
    given = [f"-D{name}={value}" for name, value in options.items()]
    run("cmake", "-S", ROOT, "-B", made, *generator, *given)
    run("cmake", "--build", made, "--target", "fastscnn_static", "-j2")
    return made / "libfastscnn.a"


def test_it_is_built(static: Path, tmp_path: Path) -> None:
    run(FOLDER / "ar", "x", static, cwd=tmp_path)
    objects = list(tmp_path.iterdir())
    assert len(objects) > 30
    assert all(o.read_bytes()[18:20] == b"\xb7\x00" for o in objects)  # ELF machine AArch64


def test_the_example_runs(static: Path, tmp_path: Path) -> None:
    """NEON sums in another order than AVX: labels may differ where two classes nearly tie."""
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("needs qemu-aarch64 (Debian: qemu-user)")
    source = ROOT / "examples/cpp/segment_ppm.cpp"
    flags = ("-std=c++17", "-O1", f"-I{ROOT}/csrc/include", "-static")
    run(FOLDER / "c++", *flags, source, static, "-o", tmp_path / "segment_ppm")
    export_fscnn(network(), tmp_path / "net.fscnn")
    photo = street_scene(101, 139, 3)
    Image.fromarray(photo).save(tmp_path / "in.ppm")
    program = (emulator, tmp_path / "segment_ppm")
    run(*program, *(tmp_path / n for n in ("net.fscnn", "in.ppm", "out.pgm")), 2)
    labels = network().segment(photo, threads=1)
    assert (np.asarray(Image.open(tmp_path / "out.pgm")) == labels).mean() > 0.999
