"""The C++ heads against the float64 twins: labels, confidence, probabilities, logits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_close, assert_labels
from torch import Tensor

from fastscnn_kernels import reference
from fastscnn_kernels.cpu import operations as cpu
from fastscnn_kernels.extension import device_info

ISAS = device_info()["cpu_instruction_sets"]

#: Source and output size: x8 as in the network, odd and inexact ratios, one pixel, shrinking.
RESIZES = [
    ((4, 9), (32, 72)),
    ((7, 13), (50, 101)),
    ((1, 1), (5, 9)),
    ((5, 1), (1, 7)),
    ((9, 40), (4, 13)),
]


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """torch.empty is filled (NaN, 255), so that an element that is never written is found."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for the twins: waking threads costs more than these sizes
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def scores_of(kind: str, classes: int, size: tuple[int, int]) -> Tensor:
    """`random` has every class in nearly every cell; `smooth` has cells with one winner."""
    if kind == "random":
        x = torch.randn(2, classes, *size)
    else:
        coarse = 8 * torch.randn(2, classes, 3, 4)
        x = F.interpolate(coarse, size, mode="bicubic", align_corners=True)
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size", "out"), RESIZES, ids=str)
@pytest.mark.parametrize("classes", [1, 7, 19, 255])
@pytest.mark.parametrize("kind", ["random", "smooth"])
def test_argmax_head(
    kind: str, classes: int, size: tuple[int, int], out: tuple[int, int], align_corners: bool
) -> None:
    scores = scores_of(kind, classes, size)
    exact = reference.resize(scores.double(), out, align_corners)
    _, peer = reference.argmax_head(scores, out, align_corners=align_corners)
    for isa in ISAS:
        labels, top = cpu.argmax_head(scores, out, align_corners=align_corners, isa=isa)
        assert_labels(labels, exact)
        assert top is not None
        assert_close(top, torch.softmax(exact, 1).amax(1), peer)
        alone, none = cpu.argmax_head(
            scores, out, align_corners=align_corners, confidence=False, isa=isa
        )
        assert none is None
        assert torch.equal(alone, labels)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size", "out"), RESIZES, ids=str)
@pytest.mark.parametrize("classes", [1, 19, 255])
def test_dense_heads(
    classes: int, size: tuple[int, int], out: tuple[int, int], align_corners: bool
) -> None:
    scores = 5 * scores_of("random", classes, size)
    exact = reference.resize(scores.double(), out, align_corners)
    logits = reference.resize(scores, out, align_corners)
    for isa in ISAS:
        assert_close(cpu.resize(scores, out, align_corners, isa=isa), exact, logits)
        ours = cpu.softmax_head(scores, out, align_corners=align_corners, isa=isa)
        assert_close(ours, torch.softmax(exact, 1), torch.softmax(logits, 1))


@pytest.mark.parametrize("isa", ISAS)
def test_the_lowest_of_equal_classes_wins(isa: str) -> None:
    scores = scores_of("random", 19, (6, 7))
    scores[:, 11] = scores[:, 4]
    scores[:, (4, 11)] += 10
    assert (cpu.argmax_head(scores, (48, 56), isa=isa)[0] == 4).all()
    flat = torch.zeros(1, 19, 6, 7)
    assert (cpu.argmax_head(flat, (48, 56), isa=isa)[0] == 0).all()


@pytest.mark.parametrize("isa", ISAS)
def test_nan_never_wins(isa: str) -> None:
    scores = scores_of("random", 19, (6, 7))
    clean = cpu.argmax_head(scores[:, 1:], (48, 56), isa=isa)[0]
    scores[:, 0] = float("nan")
    assert torch.equal(cpu.argmax_head(scores, (48, 56), isa=isa)[0], clean + 1)
    assert (cpu.argmax_head(scores * float("nan"), (48, 56), isa=isa)[0] == 0).all()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_change_a_bit(threads: int) -> None:
    scores = scores_of("random", 19, (9, 16))
    expected, expected_top = cpu.argmax_head(scores, (72, 128), threads=1)
    labels, top = cpu.argmax_head(scores, (72, 128), threads=threads)
    assert torch.equal(labels, expected)
    assert top is not None
    assert expected_top is not None
    assert torch.equal(top, expected_top)
    dense = cpu.softmax_head(scores, (72, 128), threads=threads)
    assert torch.equal(dense, cpu.softmax_head(scores, (72, 128), threads=1))


def test_bad_input_is_named() -> None:
    scores = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match="at most 255"):
        cpu.argmax_head(torch.zeros(1, 256, 2, 2), (4, 4))
    with pytest.raises(ValueError, match=r"size=\(0, 4\)"):
        cpu.argmax_head(scores, (0, 4))
    with pytest.raises(TypeError, match=r"scores is torch\.float16"):
        cpu.argmax_head(scores.half(), (4, 4))
    with pytest.raises(TypeError, match="scores is a list"):
        cpu.argmax_head([1.0], (4, 4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="instruction set 'sse9'"):
        cpu.softmax_head(scores, (4, 4), isa="sse9")
