"""Batch norm and depthwise convolutions in training: values and gradients by the float64 twins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_close
from torch import Tensor

import fastscnn_kernels as k
from fastscnn_kernels import reference
from fastscnn_kernels.cpu import operations as cpu
from fastscnn_kernels.extension import device_info

ISAS = device_info()["cpu_instruction_sets"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

#: N, C, H, W: one block of channels; two and a rest; channels off the vectors; two bands of rows;
#: one column; thin.
SHAPES = [(2, 32, 9, 14), (3, 70, 7, 13), (1, 19, 40, 5), (2, 5, 33, 1), (1, 130, 1, 9)]
ACTIVATIONS = ["none", "relu", "relu6"]


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


def feature_map(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    n, c, h, w = shape
    return (2 * torch.randn(n, h, w, c) + 1).to(dtype).permute(0, 3, 1, 2)


def vectors(channels: int) -> tuple[Tensor, ...]:
    """Weight, bias, mean and variance."""
    return *(torch.randn(channels) for _ in range(3)), torch.rand(channels) + 0.1


def compare(op: str, *args: Tensor, isa: str = "", **options: Any) -> None:
    """C++ against the twin, all results."""
    ours = getattr(cpu, op)(*args, isa=isa, **options)
    twin = getattr(reference, op)
    exact, peer = twin(*(a.double() for a in args), **options), twin(*args, **options)
    if isinstance(ours, Tensor):
        ours, exact, peer = (ours,), (exact,), (peer,)
    for mine, truth, other in zip(ours, exact, peer, strict=True):
        assert_close(mine, truth, other)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_moments(isa: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    compare("moments", feature_map(shape, dtype) + 30, isa=isa)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_batch_norm(activation: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, dy, v = feature_map(shape, dtype), feature_map(shape, dtype), vectors(shape[1])
    for isa in ISAS:
        for batch in (False, True):
            options = {"eps": 1e-3, "batch_moments": batch, "activation": activation, "isa": isa}
            for drop in ({}, {"dropout": 0.3, "seed": 3 << 40}):
                compare("batch_norm", x, *v, **options, **drop)
                compare("batch_norm_backward", dy, x, *v, **options, **drop)


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 4), (2, 3)])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_depthwise(shape: tuple[int, ...], dtype: torch.dtype, stride: int, dilation: int) -> None:
    x, v, taps = feature_map(shape, dtype), vectors(shape[1]), torch.randn(shape[1], 1, 3, 3)
    n, c, h, w = shape
    dy = feature_map((n, c, (h - 1) // stride + 1, (w - 1) // stride + 1), dtype)
    step = {"stride": stride, "dilation": dilation}
    for isa in ISAS:
        compare("depthwise_conv_backward", dy, x, taps, isa=isa, **step)
        for activation in ACTIVATIONS:
            norm = {"eps": 1e-3, "batch_moments": True, "activation": activation}
            compare("norm_depthwise", x, taps, *v, isa=isa, **norm, **step)
            compare("norm_depthwise_backward", dy, x, taps, *v, isa=isa, **norm, **step)


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_do_not_change_a_bit(threads: int) -> None:
    x, v, taps = feature_map((3, 70, 40, 13), torch.bfloat16), vectors(70), torch.randn(70, 1, 3, 3)
    norm = {"eps": 1e-5, "batch_moments": True, "activation": "relu"}
    for op, args, options in (
        ("moments", (x,), {}),
        ("batch_norm_backward", (x, x, *v), norm),
        ("norm_depthwise", (x, taps, *v), norm),
        ("norm_depthwise_backward", (x, x, taps, *v), norm),
    ):
        one, many = (getattr(cpu, op)(*args, **options, threads=t) for t in (1, threads))
        assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True)), op


def test_dropout_is_even_and_follows_its_seed() -> None:
    """Shares over channels, rows and neighbours within five standard deviations; other seeds drop
    other elements; what is kept grows."""
    x, given = torch.ones(4, 64, 32, 32), k.Moments(torch.zeros(64), torch.ones(64) - 1e-5, False)
    masks = []
    for seed in (0, 1, 1 << 32, (1 << 62) - 1):
        y = k.batch_norm(x, torch.ones(64), torch.zeros(64), given, dropout=0.25, seed=seed)
        kept = (y != 0).double()
        torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 4 / 3))
        pairs = kept[:, 1:] * kept[:, :-1], kept[..., 1:] * kept[..., :-1]
        for part, expected in ((kept, 0.75), *((p, 0.5625) for p in pairs)):
            for axis in (1, 2, 3):
                shares = part.mean([a for a in range(4) if a != axis])
                per = part.numel() / part.shape[axis]
                assert ((shares - expected).abs() < 8 * (0.25 / per) ** 0.5).all()
        assert all((kept == m).double().mean() < 0.65 for m in masks)  # 0.625 where independent
        masks.append(kept)


def torch_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu(F.batch_norm(x, None, None, weight, bias, training=True))


def test_as_torchs_own_batch_norm() -> None:
    """Statistics and gradients of `moments` and `batch_norm` together, by torch in float64."""
    x, (weight, bias, _, _) = feature_map((3, 19, 7, 13), torch.float32), vectors(19)
    dy = feature_map((3, 19, 7, 13), torch.float32)

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return k.batch_norm(x, weight, bias, k.moments(x), activation="relu")

    results = []
    for f, dtype in (
        (ours, torch.float32),
        (torch_norm, torch.float64),
        (torch_norm, torch.float32),
    ):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, weight, bias)]
        y = f(*leaves)
        results.append((y, *torch.autograd.grad(y, leaves, dy.to(dtype))))
    for mine, exact, peer in zip(*results, strict=True):
        assert_close(mine, exact, peer)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dilation", [1, 4])
def test_depthwise_conv_has_gradients(dtype: torch.dtype, dilation: int) -> None:
    """In every dtype, with an activation; judged by torch in float32, whose bfloat16 weight
    gradient of a dilated depthwise convolution is wrong."""
    x = feature_map((2, 24, 9, 11), dtype)
    weight, bias = (torch.randn(24, 1, 3, 3) / 3).to(dtype), torch.randn(24).to(dtype)
    options = {"stride": 2, "dilation": dilation, "activation": "relu"}

    def gradients(f: Callable[..., Tensor], as_dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.detach().to(as_dtype).requires_grad_() for t in (x, weight, bias)]
        y = f(*leaves, **options)
        return [y, *torch.autograd.grad(y.sum(), leaves)]

    ours = gradients(k.depthwise_conv, dtype)
    exact = gradients(reference.depthwise_conv, torch.float64)
    peer = gradients(reference.depthwise_conv, torch.float32)
    for mine, truth, other in zip(ours, exact, peer, strict=True):
        assert_close(mine, truth, other.to(dtype))


def test_depthwise_conv_under_autocast() -> None:
    x, weight, bias = torch.randn(1, 8, 5, 6), torch.randn(8, 1, 3, 3), torch.zeros(8)
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = k.depthwise_conv(x, weight, bias)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_of_the_twins(activation: str) -> None:
    """In float64 the operations run the twins, whose gradients are written out by hand."""
    x, taps, weight, bias = double(2, 3, 5, 4), double(3, 1, 3, 3), double(3), double(3)
    check = torch.autograd.gradcheck
    options = {"activation": activation}
    for drop in ({}, {"dropout": 0.3, "seed": 5}):
        norm = {**options, **drop}
        assert check(lambda x, *v: k.batch_norm(x, *v, k.moments(x), **norm), (x, weight, bias))  # noqa: B023
    step = {"stride": 2, "dilation": 2, **options}
    inputs = (x, taps, weight, bias)
    assert check(lambda x, *v: k.norm_depthwise(x, *v, k.moments(x), **step)[0], inputs)
    assert check(lambda *t: k.depthwise_conv(*t, **step), (x, taps, bias))


def test_opcheck() -> None:
    x, taps = feature_map((2, 3, 5, 4), torch.float32), torch.randn(3, 1, 3, 3)
    v, dy = vectors(3), feature_map((2, 3, 3, 2), torch.float32)
    norm = {"eps": 1e-5, "batch_moments": True, "activation": "relu"}
    step = {"stride": 2, "dilation": 1}
    leaf = x.clone().requires_grad_()
    for op, args, options in (
        ("moments", (x,), {}),
        ("batch_norm", (leaf, *v), {**norm, "dropout": 0.1, "seed": 1}),
        ("batch_norm_backward", (x, x, *v), {**norm, "dropout": 0.1, "seed": 1}),
        ("norm_depthwise", (leaf, taps, *v), {**norm, **step}),
        ("norm_depthwise_backward", (dy, x, taps, *v), {**norm, **step}),
        ("depthwise_conv_backward", (dy, x, taps), step),
    ):
        torch.library.opcheck(getattr(torch.ops.fastscnn, op).default, args, options)


X, V = torch.zeros(2, 3, 4, 4), (torch.ones(3), torch.ones(3))
BAD: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "activation": (ValueError, "activation='elu'", lambda: k.batch_norm(
        X, *V, k.moments(X), activation="elu")),
    "dropout": (ValueError, r"dropout=1\.0, expected 0 or more and below 1", lambda: k.batch_norm(
        X, *V, k.moments(X), dropout=1.0)),
    "seed": (ValueError, r"seed=-1, expected 0 to 2\^63 - 1", lambda: k.batch_norm(
        X, *V, k.moments(X), dropout=0.5, seed=-1)),
    "weight": (ValueError, r"weight has shape \(4,\), expected \(3,\)", lambda: k.batch_norm(
        X, torch.ones(4), torch.ones(3), k.moments(X))),
    "kind of weight": (TypeError, r"bias is torch\.float16 on cpu, expected torch\.float32",
                       lambda: k.batch_norm(X, V[0], V[1].half(), k.moments(X))),
    "taps": (ValueError, r"taps has shape \(3, 3\), expected \(3, 1, 3, 3\)",
             lambda: k.norm_depthwise(X, torch.ones(3, 3), *V, k.moments(X))),
    "stride": (ValueError, "stride=3", lambda: k.norm_depthwise(
        X, torch.ones(3, 1, 3, 3), *V, k.moments(X), stride=3)),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name: str) -> None:
    error, message, call = BAD[name]
    with pytest.raises(error, match=message):
        call()
