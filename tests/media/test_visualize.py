"""Pictures of labels: the C++ pixels against NumPy's, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastscnn
import fastscnn.media.visualize
from fastscnn.classes import CAMVID, CITYSCAPES, Classes
from fastscnn_kernels import reference
from fastscnn_kernels.cpu import operations as cpu
from fastscnn_kernels.extension import device_info

ISAS = device_info()["cpu_instruction_sets"]


def numpy_overlay(
    frame: np.ndarray, labels: np.ndarray, classes: Classes, opacity: float
) -> np.ndarray:
    alpha = round(opacity * 256)
    colors = np.zeros((256, 3), np.int64)
    colors[: len(classes)] = classes.colors
    mixed = (frame.astype(np.int64) * (256 - alpha) + colors[labels] * alpha) >> 8
    return np.where((labels < len(classes))[..., None], mixed, frame).astype(np.uint8)


@pytest.mark.parametrize("opacity", [0, 0.25, 0.3, 0.5, 1])
@pytest.mark.parametrize("size", [(1, 1), (7, 13), (3, 64), (97, 511), (129, 257)], ids=str)
def test_overlay_has_numpys_pixels(size: tuple[int, int], opacity: float) -> None:
    """Also of labels without a class, such as ignored pixels (255)."""
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (*size, 3), np.uint8)
    labels = rng.choice(np.array([*range(21), 254, 255], np.uint8), size)
    for classes in (CAMVID, CITYSCAPES, Classes.numbered(255)):
        got = fastscnn.overlay(frame, labels, classes, opacity)
        np.testing.assert_array_equal(got, numpy_overlay(frame, labels, classes, opacity))
        colors = fastscnn.colorize(labels, classes)
        black = np.zeros_like(frame)
        np.testing.assert_array_equal(colors, numpy_overlay(black, labels, classes, 1))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 3])
def test_every_instruction_set_equals_the_twin(isa: str, threads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    frame, labels, colors = (
        torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        for shape in ((2, 101, 150, 3), (2, 101, 150), (200, 3))
    )
    got = cpu.overlay(frame, labels, colors, opacity=0.7, threads=threads, isa=isa)
    assert torch.equal(got, reference.overlay(frame, labels, colors, opacity=0.7))
    got = cpu.colorize(labels, colors, threads=threads, isa=isa)
    assert torch.equal(got, reference.colorize(labels, colors))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bgr", [False, True], ids=["rgb", "bgr"])
@pytest.mark.parametrize(
    "sizes",
    [
        *(
            ((64, 128), (36, 72)),
            ((7, 1), (32, 64)),
            ((97, 131), (64, 200)),
            ((50, 333), (50, 777)),
        ),
        *(((41, 67), (41, 67)), ((3, 1), (3, 1))),  # none: a copy
    ],
    ids=str,
)
def test_frames_are_resized_as_the_twin_says(
    sizes: tuple[tuple[int, int], tuple[int, int]], bgr: bool, isa: str
) -> None:
    frame = torch.randint(0, 256, (2, *sizes[0], 3), dtype=torch.uint8)
    twin = reference.resize_frame(frame, sizes[1], bgr=bgr)
    assert torch.equal(cpu.resize_frame(frame, sizes[1], bgr=bgr, threads=3, isa=isa), twin)
    if sizes[0] == sizes[1]:
        assert torch.equal(twin, frame.flip(-1) if bgr else frame)


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="needs AVX2"
)
def test_the_twin_resizes_as_torch_does() -> None:
    for size, out in [((64, 128), (36, 72)), ((97, 131), (201, 77)), ((5, 9), (32, 64))]:
        frame = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)
        torchs = torch.nn.functional.interpolate(frame.permute(0, 3, 1, 2), out, mode="bilinear")
        assert torch.equal(reference.resize_frame(frame, out), torchs.permute(0, 2, 3, 1))


def test_views_and_other_integers_are_taken() -> None:
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (40, 60, 3), np.uint8)
    labels = rng.integers(0, 11, (40, 60), np.uint8)
    frame.setflags(write=False)
    view, mirrored = frame[::-1, ::2], labels[::-1, ::2].astype(np.int64)
    got = fastscnn.overlay(view, mirrored, CAMVID)
    np.testing.assert_array_equal(got, numpy_overlay(view, mirrored, CAMVID, 0.5))


def test_a_legend_lists_the_classes_by_their_share() -> None:
    """Of all pixels, also those without a class; none for classes that do not occur."""
    counts = np.zeros(256, np.int64)
    counts[[0, 3, 8, 255]] = 20, 50, 10, 20
    assert fastscnn.media.visualize.legend(counts, CAMVID).splitlines() == [
        "  Road  50.0 %  #804080",
        "  Sky   20.0 %  #808080",
        "  Car   10.0 %  #400080",
    ]
    colored = fastscnn.media.visualize.legend(counts, CAMVID, color=True).splitlines()
    assert colored[0] == "  \x1b[48;2;128;64;128m  \x1b[0m Road  50.0 %  #804080"
    assert fastscnn.media.visualize.legend(np.zeros(256, np.int64), CAMVID) == ""


def test_bad_input_is_named() -> None:
    frame, labels = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8)
    with pytest.raises(ValueError, match=r"opacity=1\.5, expected 0\.\.1"):
        fastscnn.overlay(frame, labels, CAMVID, 1.5)
    with pytest.raises(ValueError, match=r"frame has shape \(4, 6, 3\), expected \(4, 5, 3\)"):
        fastscnn.overlay(frame, labels[:, 1:], CAMVID)
    with pytest.raises(ValueError, match=r"labels is int64: expected uint8 values 0\.\.255"):
        fastscnn.colorize(np.full((4, 6), -1), CAMVID)
    with pytest.raises(ValueError, match="labels is float64"):
        fastscnn.colorize(labels / 2, CAMVID)
