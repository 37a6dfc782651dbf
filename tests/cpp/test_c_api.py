"""The C ABI, called as C calls it: every output, every kind of bad input, threads."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ctypes import byref, c_char_p, c_double, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path

import numpy as np
import pytest
import torch
from libraries import build, network

import fastscnn
from fastscnn.checkpoints.card import Card
from fastscnn.classes import Classes
from fastscnn.export.fscnn import encode
from fastscnn.inference.fused import FusedFastSCNN
from fastscnn.media.demo import street_scene
from fastscnn.network.config import PRESETS
from fastscnn_kernels.cpu import int8
from fastscnn_kernels.extension import device_info

pytestmark = pytest.mark.slow

OK, BAD_ARGUMENT, BAD_FILE, NO_MEMORY, FAILED = range(5)


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
    lib.fastscnn_precision.restype = c_char_p
    lib.fastscnn_precision.argtypes = [c_void_p]
    lib.fastscnn_destroy.argtypes = [c_void_p]
    lib.fastscnn_workspace_bytes.restype = c_int64
    lib.fastscnn_workspace_bytes.argtypes = [c_void_p]
    sizes = [c_void_p, c_int32, c_int32, c_void_p, c_void_p]
    lib.fastscnn_working_size.argtypes = [*sizes, c_void_p, c_size_t]
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
    assert segment(lib, net, frame(photo, channels=1), out, height=120, width=160) == (OK, "")
    labels = model.segment(photo, size=(120, 160), channels="bgr", threads=1)
    assert np.array_equal(found["labels"], labels)
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


def test_the_working_size_is_pythons(lib: ctypes.CDLL, file: bytes) -> None:
    _, net, _ = create(lib, file)
    model, error = network(), ctypes.create_string_buffer(300)

    def asked(h: int, w: int) -> tuple[int, tuple[int, int]]:
        found = c_int32(-1), c_int32(-1)
        code = lib.fastscnn_working_size(net, h, w, *map(byref, found), error, c_size_t(300))
        return code, (found[0].value, found[1].value)

    for size in ((720, 960), (1024, 2048), (33, 70), (1, 1), (721, 1281), (32768, 32768)):
        assert asked(*size) == (OK, model.input_size(size))
    assert asked(0, 5) == (BAD_ARGUMENT, (-1, -1))
    assert error.value.startswith(b"frame 0x5: expected height and width")
    assert asked(10, 32768) == (BAD_ARGUMENT, (-1, -1))
    assert error.value.startswith(b"size 720x2359296: expected height and width from 32 to 32768")
    code = lib.fastscnn_working_size(net, 720, 960, None, None, error, c_size_t(300))
    assert (code, error.value[:23]) == (BAD_ARGUMENT, b"height or width is null")
    lib.fastscnn_destroy(net)


def test_threads_that_the_system_does_not_start(lib: ctypes.CDLL, file: bytes) -> None:
    """For want of room for their stacks; fewer do, and later as many."""
    _, net, _ = create(lib, file)
    photo, labels = street_scene(120, 160, 0), np.zeros((120, 160), np.uint8)
    out = Outputs(ctypes.sizeof(Outputs), labels=labels.ctypes.data)
    with stacks_of(1 << 47):
        assert segment(lib, net, frame(photo), out, threads=3) == (
            FAILED,
            "threads 3: the system starts 1; ask for no more",
        )
        assert segment(lib, net, frame(photo), out) == (OK, "")
    expected = labels.copy()
    labels[:] = 255
    assert segment(lib, net, frame(photo), out, threads=3) == (OK, "")
    assert np.array_equal(labels, expected)
    lib.fastscnn_destroy(net)


@contextmanager
def stacks_of(size: int) -> Iterator[None]:
    """New threads ask for so many bytes each."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "pthread_setattr_default_np"):
        pytest.skip("needs glibc")
    before, attributes = (ctypes.create_string_buffer(256) for _ in range(2))
    for a in (before, attributes):
        assert libc.pthread_getattr_default_np(a) == 0
    assert libc.pthread_attr_setstacksize(attributes, c_size_t(size)) == 0
    assert libc.pthread_setattr_default_np(attributes) == 0
    try:
        yield
    finally:
        assert libc.pthread_setattr_default_np(before) == 0


def test_two_threads_of_one_network_and_of_two(lib: ctypes.CDLL, file: bytes) -> None:
    """At sizes of their own, which the shared network's arenas take turns with."""
    nets = [create(lib, file)[1] for _ in range(2)]
    photos = [street_scene(120 + 40 * i, 160, i) for i in range(3)]
    expected = [network().segment(photo, threads=1) for photo in photos]

    def work(job: int) -> bool:
        net, i = nets[job % 2], job % 3
        labels = np.zeros(photos[i].shape[:2], np.uint8)
        out = Outputs(ctypes.sizeof(Outputs), labels=labels.ctypes.data)
        said = segment(lib, net, frame(photos[i]), out, threads=1 + job % 2)
        return said == (OK, "") and np.array_equal(labels, expected[i])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(24)))
    for net in nets:
        lib.fastscnn_destroy(net)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_it_says_what_it_computes_in(lib: ctypes.CDLL, precision: str) -> None:
    _, net, _ = create(lib, encode(network(precision)))
    fast = {
        "float32": True,
        "bfloat16": bool(device_info()["cpu_bf16_instruction_sets"]),
        "int8": int8.pays(),
    }
    expected = precision if fast[precision] else "float32"
    assert lib.fastscnn_precision(net).decode() == expected
    assert lib.fastscnn_precision(None) is None
    lib.fastscnn_destroy(net)


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
