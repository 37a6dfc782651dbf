"""libfastscnn: built, installed, found by the example's project; Python's labels, bit for bit."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from libraries import ROOT, build, example, installed, network, run
from PIL import Image

import fastscnn
from fastscnn.export.fscnn import encode, export_fscnn
from fastscnn.media.demo import street_scene

pytestmark = pytest.mark.slow


def photos(data: Path | None) -> list[np.ndarray]:
    """Drawn ones, and with --data a few real ones."""
    real = sorted((data / "street/images").glob("*.png"))[:3] if data else []
    drawn = [street_scene(*size, seed=3) for size in ((360, 480), (101, 139), (33, 700))]
    return drawn + [np.asarray(Image.open(p).convert("RGB")) for p in real]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_the_example_gives_pythons_labels(
    precision: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = network(precision)
    export_fscnn(model, tmp_path / "net.fscnn")
    data = request.config.getoption("--data")
    for i, photo in enumerate(photos(Path(data) if data else None)):
        Image.fromarray(photo).save(tmp_path / "in.ppm")
        out = tmp_path / f"{i}.pgm"
        run(example(), tmp_path / "net.fscnn", tmp_path / "in.ppm", out, 1 + i % 2)
        labels = model.segment(photo, threads=1)
        assert len(np.unique(labels)) > 2
        assert np.array_equal(np.asarray(Image.open(out)), labels)


def test_the_static_library_in_a_program_that_nothing_was_inlined_in(tmp_path: Path) -> None:
    """The header's names and the library's own do not meet in the linker."""
    source, library = ROOT / "examples/cpp/segment_ppm.cpp", installed() / "lib/libfastscnn.a"
    flags = ("-std=c++17", "-O0", f"-I{installed()}/include", "-pthread")
    run("c++", *flags, source, library, "-o", tmp_path / "segment_ppm")
    export_fscnn(network(), tmp_path / "net.fscnn")
    photo = street_scene(101, 139, 3)
    Image.fromarray(photo).save(tmp_path / "in.ppm")
    run(tmp_path / "segment_ppm", *(tmp_path / n for n in ("net.fscnn", "in.ppm", "out.pgm")))
    labels = network().segment(photo, threads=1)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.pgm")), labels)


def test_it_is_small_and_needs_nothing() -> None:
    library = installed() / "lib/libfastscnn.so"
    assert library.exists()
    assert library.stat().st_size < 2_000_000
    assert (installed() / "lib/libfastscnn.a").stat().st_size < 2_000_000
    needed = {line.split()[0] for line in run("ldd", library).splitlines()}
    names = {Path(n).name.split(".")[0] for n in needed}
    assert names <= {
        "linux-vdso",
        "libstdc++",
        "libm",
        "libgcc_s",
        "libc",
        "libpthread",
        "ld-linux-x86-64",
    }
    symbols = run("nm", "-DC", "--defined-only", library).splitlines()
    assert all(s.split()[-1].startswith("fastscnn_") for s in symbols), symbols


def test_a_part_of_another_project(tmp_path: Path) -> None:
    """`add_subdirectory` gives the library's targets and asks for nothing of Python's."""
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.24)\nproject(robot LANGUAGES CXX)\n"
        f"add_subdirectory({ROOT} fastscnn)\n"
        f"add_executable(robot {ROOT}/examples/cpp/segment_ppm.cpp)\n"
        "target_link_libraries(robot PRIVATE fastscnn::fastscnn)\n"
    )
    run("cmake", "-S", tmp_path, "-B", tmp_path / "build")
    assert "FASTSCNN_PYTHON:BOOL=OFF" in (tmp_path / "build/CMakeCache.txt").read_text()


def package(prefix: Path, libraries: str, *wanted: str) -> list[str]:
    """What pkg-config says of the library that was put under `prefix`."""
    if shutil.which("pkg-config") is None:
        pytest.skip("needs pkg-config")
    places = os.environ | {"PKG_CONFIG_PATH": str(prefix / libraries / "pkgconfig")}
    return shlex.split(run("pkg-config", *wanted, "fastscnn", env=places))


def test_pkg_config_and_c(tmp_path: Path) -> None:
    """A program in C, compiled with what the .pc file says of an installation that was moved."""
    prefix = tmp_path / "moved"
    shutil.copytree(installed(), prefix, symlinks=True)
    flags = package(prefix, "lib", "--cflags", "--libs")
    source = tmp_path / "main.c"
    source.write_text(
        '#include "fastscnn/fastscnn.h"\n'
        "int main(void) { return fastscnn_abi_version() - FASTSCNN_ABI_VERSION; }\n"
    )
    strict = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror")
    run("cc", *strict, source, *flags, "-o", tmp_path / "main")
    run(tmp_path / "main", env={"LD_LIBRARY_PATH": str(prefix / "lib")})


def test_pkg_config_where_libraries_lie_deeper(tmp_path: Path) -> None:
    """As on Debian, whose own are in lib/x86_64-linux-gnu."""
    deep = "lib/x86_64-linux-gnu"
    options = ("-DFASTSCNN_PYTHON=OFF", f"-DCMAKE_INSTALL_LIBDIR={deep}")
    run("cmake", "-S", ROOT, "-B", tmp_path / "build", *options)
    (tmp_path / deep / "pkgconfig").mkdir(parents=True)
    shutil.copy(tmp_path / "build/fastscnn.pc", tmp_path / deep / "pkgconfig")
    [headers] = package(tmp_path, deep, "--variable=includedir")
    [libraries] = package(tmp_path, deep, "--variable=libdir")
    assert Path(headers).resolve() == tmp_path / "include"
    assert Path(libraries).resolve() == tmp_path / deep


def test_the_document_runs(tmp_path: Path) -> None:
    """docs/cpp.md: its commands' program, compiled as it says, prints what Python finds."""
    text = (ROOT / "docs/cpp.md").read_text()
    code = text.partition("```cpp\n")[2].partition("```")[0]
    assert 0 < len(code.strip().splitlines()) <= 20
    (tmp_path / "main.cpp").write_text(code)
    command = next(line for line in text.splitlines() if line.startswith("c++ "))
    command = command.replace("$PREFIX", str(installed()))
    subprocess.run(shlex.split(command), cwd=tmp_path, check=True)
    export_fscnn(network(), tmp_path / "camvid.fscnn")
    photo = street_scene(360, 480, 3)
    (tmp_path / "frame.rgb").write_bytes(photo.tobytes())
    printed = run(tmp_path / "main", cwd=tmp_path).split()
    label = network().segment(photo, threads=1)[300, 240]
    assert printed == ["pixel", "(300,", "240):", fastscnn.load("camvid").card.classes[label]]


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_mutated_files_give_errors(precision: str, tmp_path: Path) -> None:
    """A fixed part of what was run once with 10,000; see CONTRIBUTING.md."""
    folder = build("cpp-sanitize", "-DFASTSCNN_SANITIZE=1")
    (tmp_path / "net.fscnn").write_bytes(encode(network(precision)))
    flags = ("-std=c++17", "-O1", "-fsanitize=address,undefined", f"-I{ROOT}/csrc/include")
    sources = (ROOT / "tests/cpp/fuzz.cpp", folder / "libfastscnn.a")
    run("c++", *flags, *sources, "-pthread", "-o", tmp_path / "fuzz")
    print(run(tmp_path / "fuzz", tmp_path / "net.fscnn", 100))
