"""The fused cross-entropy: losses and gradients against the float64 twin, errors, autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tolerance import assert_close
from torch import Tensor

import fastscnn_kernels as k
from fastscnn_kernels import reference
from fastscnn_kernels.cpu import operations as cpu
from fastscnn_kernels.extension import device_info

ISAS = device_info()["cpu_instruction_sets"]

#: Scores' and target's sizes: x8 as in the network, odd and inexact ratios, one pixel, the same
#: size (auxiliary heads), shrinking, a long row.
SIZES = [
    ((4, 9), (32, 72)),
    ((7, 13), (50, 101)),
    ((1, 1), (5, 9)),
    ((5, 1), (1, 7)),
    ((6, 7), (6, 7)),
    ((9, 40), (4, 13)),
    ((2, 160), (9, 1280)),
]
CLASSES = [1, 11, 16, 33, 255]


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """torch.empty is filled with NaN, so that an element that is never written is found."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def problem(
    classes: int, size: tuple[int, int], out: tuple[int, int], dtype: torch.dtype = torch.uint8
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, labels of which some are ignored, class weights of which one is zero."""
    scores = 4 * torch.randn(2, *size, classes).permute(0, 3, 1, 2)
    target = torch.randint(0, classes, (2, *out)).to(dtype)
    target[torch.rand(target.shape) < 0.2] = 255 if classes < 255 else 7
    weight = torch.rand(classes) + 0.5
    weight[-1] = 0.0 if classes > 1 else 1.0
    return scores, target, weight


def differentiate(
    loss: Callable[..., Tensor], scores: Tensor, target: Tensor, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """The loss and the scores' gradient for an uneven gradient of the loss."""
    leaf = scores.detach().requires_grad_()
    value = loss(leaf, target, **options)
    factor = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).reshape(value.shape)
    (grad,) = torch.autograd.grad((value * factor).sum(), leaf)
    return value, grad


def compare(scores: Tensor, target: Tensor, **options: Any) -> None:
    twin = reference.cross_entropy_head
    weight = options.get("weight")
    double = {**options, "weight": None if weight is None else weight.double()}
    exact = differentiate(twin, scores.double(), target, double)
    peer = differentiate(twin, scores, target, options)
    ours = differentiate(k.cross_entropy_head, scores, target, options)
    for mine, truth, other in zip(ours, exact, peer, strict=True):
        assert_close(mine, truth, other)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size", "out"), SIZES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_sizes(
    reduction: str, size: tuple[int, int], out: tuple[int, int], align_corners: bool
) -> None:
    scores, target, weight = problem(11, size, out)
    compare(scores, target, reduction=reduction, align_corners=align_corners)
    options = {"label_smoothing": 0.1, "weight": weight, "align_corners": align_corners}
    compare(scores, target, reduction=reduction, **options)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_options(classes: int, dtype: torch.dtype, weighted: bool, smoothing: float) -> None:
    scores, target, weight = problem(classes, (3, 5), (20, 43), dtype)
    options = {"weight": weight if weighted else None, "label_smoothing": smoothing}
    ignore = 255 if classes < 255 else 7
    compare(scores, target, ignore_index=ignore, **options)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("classes", [3, 19, 40])
def test_instruction_sets(isa: str, classes: int) -> None:
    scores, target, weight = problem(classes, (5, 6), (40, 47))
    for options in ({}, {"label_smoothing": 0.2, "align_corners": True}):
        got = cpu.cross_entropy_head_sums(scores, target, weight, gradient=True, isa=isa, **options)
        twin = reference.cross_entropy_head_sums
        exact = twin(scores.double(), target, weight.double(), gradient=True, **options)
        peer = twin(scores, target, weight, gradient=True, **options)
        for mine, truth, other in zip(got, exact, peer, strict=True):
            assert_close(mine, truth, other)
        losses = cpu.cross_entropy_head_map(scores, target, weight, isa=isa, **options)
        assert_close(
            losses,
            reference.cross_entropy_head_map(scores.double(), target, weight.double(), **options),
            reference.cross_entropy_head_map(scores, target, weight, **options),
        )


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_do_not_change_a_bit(threads: int) -> None:
    scores, target, weight = problem(19, (9, 16), (72, 128))
    one = cpu.cross_entropy_head_sums(scores, target, weight, gradient=True, threads=1)
    many = cpu.cross_entropy_head_sums(scores, target, weight, gradient=True, threads=threads)
    assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True))  # type: ignore[arg-type]


def test_large_scores_lose_nothing() -> None:
    """Exponentials of differences only: scores of 1e4 neither overflow nor underflow the sum."""
    scores, target, _ = problem(11, (4, 5), (32, 40))
    compare(1e3 * scores, target)


def test_ignored_negative_label() -> None:
    scores, target, _ = problem(5, (3, 4), (24, 32), torch.int64)
    target[target == 255] = -1
    compare(scores, target, ignore_index=-1)


def test_all_ignored_gives_torchs_value() -> None:
    scores, target, _ = problem(5, (3, 4), (24, 32))
    target.fill_(255)
    for reduction, expected in (("mean", float("nan")), ("sum", 0.0)):
        leaf = scores.detach().requires_grad_()
        loss = k.cross_entropy_head(leaf, target, reduction=reduction)
        twin = reference.cross_entropy_head(scores, target, reduction=reduction)
        assert loss.item() == pytest.approx(expected, nan_ok=True)
        assert twin.item() == pytest.approx(expected, nan_ok=True)
    loss.backward()
    assert leaf.grad is not None
    assert not leaf.grad.any()


def test_nan_scores_give_a_nan_loss() -> None:
    scores, target, _ = problem(5, (3, 4), (24, 32))
    target[target == 255] = 0
    scores[1, 2, 1, 1] = float("nan")
    losses = k.cross_entropy_head(scores, target, reduction="none")
    twin = reference.cross_entropy_head(scores, target, reduction="none")
    assert torch.equal(losses.isnan(), twin.isnan())
    assert losses.isnan().any()
    assert k.cross_entropy_head(scores, target).isnan()


def test_other_layouts_and_dtypes() -> None:
    scores, target, _ = problem(11, (6, 7), (48, 56))
    wide = torch.randn(2, 22, 6, 14)
    compare(wide[:, ::2, :, ::2], target)
    compare(scores.contiguous(), target.transpose(1, 2).contiguous().transpose(1, 2))
    half = scores.bfloat16()
    loss, grad = differentiate(k.cross_entropy_head, half, target, {})
    assert loss.dtype == torch.float32
    exact = differentiate(reference.cross_entropy_head, half.double(), target, {})
    assert_close(loss, exact[0], exact[0].float())
    assert_close(grad, exact[1], exact[1].bfloat16())


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradients_of_the_twins(reduction: str) -> None:
    """In float64 the operation runs the twins, whose gradient is written out by hand."""
    scores, target, weight = problem(4, (2, 3), (5, 7))
    options = {"weight": weight, "label_smoothing": 0.1, "reduction": reduction}

    def loss(x: Tensor) -> Tensor:
        return k.cross_entropy_head(x, target, **options)

    assert torch.autograd.gradcheck(loss, scores.double().requires_grad_())


def test_used_twice_and_scaled() -> None:
    scores, target, _ = problem(6, (3, 4), (24, 32))

    def loss(head: Callable[..., Tensor], x: Tensor) -> Tensor:
        return 0.4 * head(x, target) + head(2 * x, target, reduction="sum")

    grads = []
    for head, x in (
        (k.cross_entropy_head, scores),
        (reference.cross_entropy_head, scores.double()),
    ):
        leaf = x.detach().requires_grad_()
        loss(head, leaf).backward()
        grads.append(leaf.grad)
    assert grads[0] is not None
    assert grads[1] is not None
    assert_close(grads[0], grads[1], grads[1].float())


def test_a_second_derivative_is_refused() -> None:
    scores, target, _ = problem(4, (2, 3), (5, 7))
    leaf = scores.detach().requires_grad_()
    scale = torch.ones((), requires_grad=True)
    (grad,) = torch.autograd.grad(
        scale * k.cross_entropy_head(leaf, target), leaf, create_graph=True
    )
    with pytest.raises(RuntimeError, match="twice"):
        grad.sum().backward()


@pytest.mark.parametrize("op", ["sums", "map", "backward"])
def test_opcheck(op: str) -> None:
    scores, target, weight = problem(5, (3, 4), (9, 11))
    options = {"ignore_index": 255, "label_smoothing": 0.1, "align_corners": False}
    args: tuple[Tensor, ...] = (scores.requires_grad_(op != "backward"), target, weight)
    if op == "backward":
        args = (torch.randn(target.shape), *args)
    if op == "sums":
        options["gradient"] = True
    registered = getattr(torch.ops.fastscnn, f"cross_entropy_head_{op}").default
    torch.library.opcheck(registered, args, options)


def test_compiles_whole() -> None:
    scores, target, _ = problem(5, (3, 4), (24, 32))

    def loss(x: Tensor) -> Tensor:
        return k.cross_entropy_head(2 * x, target)

    eager = differentiate(lambda x, _: loss(x), scores, target, {})
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(
        eager, differentiate(lambda x, _: compiled(x), scores, target, {}), strict=True
    ):
        assert torch.equal(a, b)


S, T = torch.zeros(2, 3, 4, 4), torch.zeros(2, 8, 8, dtype=torch.uint8)
BAD: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "classes": (ValueError, "at most 255", lambda: k.cross_entropy_head(
        torch.zeros(2, 256, 4, 4), T)),
    "target's kind": (TypeError, r"target is torch\.float32, expected torch\.uint8",
                      lambda: k.cross_entropy_head(S, T.float())),
    "target's shape": (ValueError, r"target has shape \(3, 8, 8\), expected N x H x W with N = 2",
                       lambda: k.cross_entropy_head(S, torch.zeros(3, 8, 8).long())),
    "target's dimensions": (ValueError, "expected N x H x W", lambda: k.cross_entropy_head(
        S, T[:, None])),
    "target's device": (ValueError, "target is on meta, expected cpu", lambda: k.cross_entropy_head(
        S, T.to("meta"))),
    "label": (ValueError, r"target has label 3 at \(1, 2, 5\), expected 0\.\.2 or "
              "ignore_index=255", lambda: k.cross_entropy_head(S, one_label(3))),
    "negative label": (ValueError, r"target has label -1 at \(1, 2, 5\)",
                       lambda: k.cross_entropy_head(S, one_label(-1), reduction="none")),
    "weights": (ValueError, r"weight has shape \(4,\), expected \(3,\)",
                lambda: k.cross_entropy_head(S, T, weight=torch.ones(4))),
    "smoothing": (ValueError, "label_smoothing=1.0, expected 0 or more and below 1",
                  lambda: k.cross_entropy_head(S, T, label_smoothing=1.0)),
    "reduction": (ValueError, "reduction='max', expected 'mean', 'sum' or 'none'",
                  lambda: k.cross_entropy_head(S, T, reduction="max")),
    "empty batch": (ValueError, "expected non-empty N x C x H x W",
                    lambda: k.cross_entropy_head(S[:0], T[:0])),
}  # fmt: skip


def one_label(label: int) -> Tensor:
    target = T.long()
    target[1, 2, 5] = label
    return target


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name: str) -> None:
    error, message, call = BAD[name]
    with pytest.raises(error, match=message):
        call()
