"""libfastscnn: built, installed, found by the example's project; Python's labels, bit for bit."""

from __future__ import annotations

import ctypes
import resource
import shlex
import subprocess
from ctypes import byref, c_char_p, c_double, c_int32, c_int64, c_size_t, c_void_p
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from libraries import ROOT, build, example, installed, run
from PIL import Image

import fastscnn
from fastscnn.checkpoints.card import Card
from fastscnn.classes import Classes
from fastscnn.export.fscnn import encode, export_fscnn
from fastscnn.inference.fused import FusedFastSCNN
from fastscnn.media.demo import street_scene
from fastscnn.network.config import PRESETS
from fastscnn.quantize import calibrate

pytestmark = pytest.mark.slow

OK, BAD_ARGUMENT, BAD_FILE, NO_MEMORY = range(4)


def network(int8: bool = False) -> FusedFastSCNN:
    model = fastscnn.load("camvid", device="cpu")
    if int8:
        frames = [street_scene(180, 240, seed) for seed in range(2)]
        model.card = replace(model.card, ranges=calibrate(model, frames))
    return model


def photos(data: Path | None) -> list[np.ndarray]:
    """Drawn ones, and with --data a few real ones."""
    real = sorted((data / "street/images").glob("*.png"))[:3] if data else []
    drawn = [street_scene(*size, seed=3) for size in ((360, 480), (101, 139), (33, 700))]
    return drawn + [np.asarray(Image.open(p).convert("RGB")) for p in real]


@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
def test_the_example_gives_pythons_labels(
    int8: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = network(int8)
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


def test_pkg_config_and_c(tmp_path: Path) -> None:
    """A program in C, compiled with what the installed .pc file says."""
    pc = (installed() / "lib/pkgconfig/fastscnn.pc").read_text()
    assert "-lfastscnn" in pc
    source = tmp_path / "main.c"
    source.write_text(
        '#include "fastscnn/fastscnn.h"\n'
        "int main(void) { return fastscnn_abi_version() - FASTSCNN_ABI_VERSION; }\n"
    )
    flags = (f"-I{installed()}/include", f"-L{installed()}/lib", f"-Wl,-rpath,{installed()}/lib")
    strict = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror")
    run("cc", *strict, source, *flags, "-lfastscnn", "-o", tmp_path / "main")
    run(tmp_path / "main")


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


@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
def test_mutated_files_give_errors(int8: bool, tmp_path: Path) -> None:
    """A fixed part of what was run once with 10,000; see CONTRIBUTING.md."""
    folder = build("cpp-sanitize", "-DFASTSCNN_SANITIZE=1")
    (tmp_path / "net.fscnn").write_bytes(encode(network(int8)))
    flags = ("-std=c++17", "-O1", "-fsanitize=address,undefined", f"-I{ROOT}/csrc/include")
    sources = (ROOT / "tests/cpp/fuzz.cpp", folder / "libfastscnn.a")
    run("c++", *flags, *sources, "-pthread", "-o", tmp_path / "fuzz")
    print(run(tmp_path / "fuzz", tmp_path / "net.fscnn", 100))


# --- The C ABI, called as C calls it ----------------------------------------------------------


class Frame(ctypes.Structure):
    _fields_ = [
        *(("struct_size", c_size_t), ("pixels", c_void_p), ("height", c_int32)),
        *(("width", c_int32), ("stride", c_int64), ("channels", c_int32)),
    ]


class Options(ctypes.Structure):
    _fields_ = [
        *(("struct_size", c_size_t), ("height", c_int32), ("width", c_int32)),
        *(("threads", c_int32), ("opacity", c_double)),
    ]


class Outputs(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        *((n, c_void_p) for n in ("labels", "confidence", "probabilities", "logits")),
        *((n, c_void_p) for n in ("color", "overlay")),
    ]


@pytest.fixture(scope="module")
def lib() -> ctypes.CDLL:
    lib = ctypes.CDLL(str(build() / "libfastscnn.so"))
    lib.fastscnn_class_name.restype = c_char_p
    lib.fastscnn_class_name.argtypes = [c_void_p, c_int32]
    lib.fastscnn_class_count.argtypes = [c_void_p]
    lib.fastscnn_destroy.argtypes = [c_void_p]
    lib.fastscnn_workspace_bytes.restype = c_int64
    lib.fastscnn_workspace_bytes.argtypes = [c_void_p]
    lib.fastscnn_segment.argtypes = [*[c_void_p] * 5, c_size_t]
    return lib


@pytest.fixture(scope="module")
def file() -> bytes:
    return encode(network())


def create(lib: ctypes.CDLL, data: bytes) -> tuple[int, c_void_p, str]:
    net, error = c_void_p(), ctypes.create_string_buffer(300)
    code = lib.fastscnn_create_from_memory(
        data, c_size_t(len(data)), byref(net), error, c_size_t(300)
    )
    return code, net, error.value.decode()


def frame(photo: np.ndarray, channels: int = 0) -> Frame:
    h, w, _ = photo.shape
    size = ctypes.sizeof(Frame)
    return Frame(size, photo.ctypes.data, h, w, photo.strides[0], channels)


def segment(
    lib: ctypes.CDLL, net: c_void_p, source: Frame | None, outputs: Outputs | None, **options: float
) -> tuple[int, str]:
    how = Options(ctypes.sizeof(Options), threads=1, opacity=0.5)
    for name, value in options.items():
        setattr(how, name, value)
    error = ctypes.create_string_buffer(300)
    pointers = [None if s is None else ctypes.addressof(s) for s in (source, how, outputs)]
    code = lib.fastscnn_segment(net, *pointers, ctypes.addressof(error), 300)
    return code, error.value.decode()


def test_all_outputs_of_strided_bgr_frames(lib: ctypes.CDLL, file: bytes) -> None:
    code, net, error = create(lib, file)
    assert (code, error) == (OK, "")
    model = network()
    wide = street_scene(120, 200, 1)[:, :, ::-1].copy()
    photo = wide[:, 10:170]
    found = {
        "labels": np.zeros((120, 160), np.uint8),
        "confidence": np.zeros((120, 160), np.float32),
        "color": np.zeros((120, 160, 3), np.uint8),
        "overlay": np.zeros((120, 160, 3), np.uint8),
    }
    out = Outputs(ctypes.sizeof(Outputs), **{k: v.ctypes.data for k, v in found.items()})
    assert segment(lib, net, frame(photo, channels=1), out) == (OK, "")
    labels = model.segment(photo, channels="bgr", threads=1)
    assert np.array_equal(found["labels"], labels)
    classes = Classes.for_count(11, model.card.classes, model.card.colors)
    colors = np.asarray(classes.colors, np.uint8)
    assert np.array_equal(found["color"], colors[labels])
    assert np.array_equal(
        found["overlay"], fastscnn.overlay(photo[:, :, ::-1], labels, classes)[:, :, ::-1]
    )
    assert found["confidence"].min() > 1 / 12
    names = [lib.fastscnn_class_name(net, i).decode() for i in range(11)]
    assert names == list(classes.names)
    assert lib.fastscnn_class_name(net, 11) is None
    assert 0 < lib.fastscnn_workspace_bytes(net) < 36e6
    lib.fastscnn_destroy(net)


def test_bad_arguments_are_named(lib: ctypes.CDLL, file: bytes) -> None:
    _, net, _ = create(lib, file)
    photo = street_scene(64, 96, 0)
    labels = np.zeros((64, 96), np.uint8)
    out = Outputs(ctypes.sizeof(Outputs), labels=labels.ctypes.data)

    def said(source: Frame | None, outputs: Outputs | None = out, **options: float) -> str:
        code, error = segment(lib, net, source, outputs, **options)
        assert code == BAD_ARGUMENT
        return error

    def changed(**values: object) -> Frame:
        source = frame(photo)
        for name, value in values.items():
            setattr(source, name, value)
        return source

    assert "frame is null" in said(None)
    assert "outputs is null" in said(frame(photo), None)
    assert "frame.pixels is null" in said(changed(pixels=None))
    assert "stride of 287 bytes: expected at least 288" in said(changed(stride=287))
    assert "frame 0x96: expected height and width" in said(changed(height=0))
    assert "frame 64x32769" in said(changed(width=32769, stride=3 * 32769))
    assert "frame.channels" in said(changed(channels=2))
    assert "frame.struct_size 8" in said(changed(struct_size=8))
    assert "size 31x64: expected height and width from 32" in said(
        frame(photo), height=31, width=64
    )
    assert "threads 0: expected 1 to 1024" in said(frame(photo), threads=0)
    assert "threads 1025" in said(frame(photo), threads=1025)
    assert "opacity 2" in said(frame(photo), opacity=2.0)
    assert segment(lib, c_void_p(), frame(photo), out)[0] == BAD_ARGUMENT
    assert segment(lib, net, frame(photo), out) == (OK, "")
    assert np.array_equal(labels, network().segment(photo, threads=1))
    lib.fastscnn_destroy(net)
    lib.fastscnn_destroy(None)


def test_memory_that_is_not_there(lib: ctypes.CDLL, file: bytes) -> None:
    """Afterwards the network is as usable as before."""
    _, net, _ = create(lib, file)
    photo, labels = street_scene(64, 96, 0), np.zeros((64, 96), np.uint8)
    out = Outputs(ctypes.sizeof(Outputs), labels=labels.ctypes.data)
    before = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + (1 << 28), before[1]))
    try:
        code, error = segment(lib, net, frame(photo), out, height=8192, width=8192)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert (code, error) == (NO_MEMORY, "out of memory: give a smaller frame or size")
    assert segment(lib, net, frame(photo), out) == (OK, "")
    assert np.array_equal(labels, network().segment(photo, threads=1))
    lib.fastscnn_destroy(net)


def test_bad_files_are_named(lib: ctypes.CDLL, file: bytes, tmp_path: Path) -> None:
    def said(data: bytes) -> str:
        code, net, error = create(lib, data)
        assert code == BAD_FILE
        assert not net.value
        return error

    assert "not a .fscnn file" in said(b"PK" + file[2:])
    assert "format version 9" in said(file[:8] + b"\x09" + file[9:])
    assert "wrong checksum" in said(file[:-1] + bytes([file[-1] ^ 1]))
    assert "truncated" in said(file[:-1])
    assert "truncated" in said(b"FASTSCNN")
    net, error = c_void_p(), ctypes.create_string_buffer(300)
    missing = str(tmp_path / "none.fscnn").encode()
    code = lib.fastscnn_create_from_file(missing, byref(net), error, c_size_t(300))
    assert code == BAD_FILE
    assert b"none.fscnn: No such file" in error.value
    assert lib.fastscnn_create_from_file(missing, None, error, c_size_t(300)) == BAD_ARGUMENT
    short = ctypes.create_string_buffer(8)
    assert lib.fastscnn_create_from_file(None, byref(net), short, c_size_t(8)) == BAD_ARGUMENT
    assert short.value == b"path is"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset(lib: ctypes.CDLL, preset: str) -> None:
    torch.manual_seed(0)
    model = FusedFastSCNN(7, config=PRESETS[preset]).eval()
    model.card = Card(config=PRESETS[preset], num_classes=7, size=(64, 64))
    code, net, error = create(lib, encode(model))
    assert (code, error) == (OK, "")
    photo = street_scene(75, 110, 0)
    labels = np.zeros((75, 110), np.uint8)
    out = Outputs(ctypes.sizeof(Outputs), labels=labels.ctypes.data)
    assert segment(lib, net, frame(photo), out) == (OK, "")
    assert np.array_equal(labels, model.segment(photo, threads=1))
    lib.fastscnn_destroy(net)
