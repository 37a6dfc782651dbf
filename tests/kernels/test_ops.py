"""The operations' public face: twins on the CPU, registration, errors, optional parts."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from op_cases import CASES, DTYPES, Case, check

import fastscnn_kernels as k
from fastscnn_kernels import composition, reference

CORE = [c for c in CASES if c.core]
ids = [c.id for c in CASES]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_float32_on_the_cpu_equals_twin(case: Case) -> None:
    args, kwargs = case.make(torch.float32)
    check(case, getattr(k, case.op)(*args, **kwargs), args, kwargs)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", CORE, ids=lambda c: c.id)
def test_half_on_the_cpu_equals_twin(case: Case, dtype: torch.dtype) -> None:
    args, kwargs = case.make(dtype)
    check(case, getattr(k, case.op)(*args, **kwargs), args, kwargs)


@pytest.mark.parametrize("case", CORE, ids=lambda c: c.id)
def test_opcheck(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schema, fake tensors, autograd registration and tracing with dynamic shapes."""
    args, kwargs = case.make(torch.float32)
    module = sys.modules[f"fastscnn_kernels.{case.op}"]
    op, calls = module._op, []  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "_op", lambda *a, **b: calls.append((a, b)) or op(*a, **b))
    getattr(k, case.op)(*args, **kwargs)
    torch.library.opcheck(getattr(torch.ops.fastscnn, case.op).default, *calls[0])


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_fake_has_the_real_layout(case: Case) -> None:
    """Shape, dtype and strides that compilers see are those that come out."""
    args, kwargs = case.make(torch.float32)
    real = getattr(k, case.op)(*args, **kwargs)
    meta = torch.device("meta")
    faked = getattr(k, case.op)(*_moved(args, meta), **_moved(kwargs, meta))
    for a, b in zip(_tuple(real), _tuple(faked), strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def _tuple(value: Any) -> tuple[torch.Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {n: _moved(v, device) for n, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_moved(v, device) for v in value)
    return value


def test_planar_scores_and_labels_alone() -> None:
    x, head = torch.randn(1, 8, 5, 6), (torch.randn(3, 6, 1, 1), torch.randn(3))
    weights = torch.randn(8, 1, 3, 3), torch.randn(8), torch.randn(6, 8, 1, 1), torch.randn(6)
    planar = k.dsconv(x, *weights, head=head)
    assert planar.is_contiguous()
    torch.testing.assert_close(planar, reference.dsconv(x, *weights, head=head))
    labels, empty = k.argmax_head(planar, (40, 48), confidence=False)
    assert empty.numel() == 0
    assert torch.equal(labels, k.argmax_head(planar, (40, 48))[0])


def test_same_padding_puts_the_odd_zero_last() -> None:
    """By hand, as TensorFlow does: taps of a 4 x 4 frame begin at its corner, and its ninth tap is
    the last that a 5 x 5 frame's sees."""
    weight = torch.arange(1.0, 10).reshape(1, 1, 3, 3).repeat(1, 3, 1, 1) / 3
    frame = torch.zeros(1, 3, 4, 4)
    frame[..., 0, 0], frame[..., 3, 3] = 1, 10
    expected = torch.tensor([[1.0, 0], [0, 50]]).reshape(1, 1, 2, 2)
    for stem_conv in (reference.stem_conv, k.stem_conv):
        how: Any = {"mean": (0, 0, 0), "std": (1, 1, 1), "padding": "same", "activation": "none"}
        got = stem_conv(frame, weight, torch.zeros(1), **how)
        torch.testing.assert_close(got, expected)
    assert reference.stem_padding(4, 5, "same") == (1, 1, 0, 1)
    assert (reference.same_padding(7, 2), reference.same_padding(8, 2)) == ((1, 1), (0, 1))


def test_compile_sees_through_a_block() -> None:
    (x, *w), options = next(c for c in CASES if c.id == "inverted_residual-residual").make(
        torch.float32
    )

    def block(x: torch.Tensor) -> torch.Tensor:
        return k.inverted_residual(x, *w, **options) * 2

    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), block(x))


X = torch.zeros(1, 8, 4, 4)
W, B = torch.zeros(8, 1, 3, 3), torch.zeros(8)
P, PB = torch.zeros(6, 8, 1, 1), torch.zeros(6)
BAD = {
    "not a tensor": (TypeError, "x is a list", lambda: k.depthwise_conv([1], W, B)),
    "int map": (TypeError, "x is torch.int64", lambda: k.depthwise_conv(X.long(), W, B)),
    "3-D": (ValueError, "N x C x H x W", lambda: k.pointwise_conv(X[0], P, PB)),
    "empty": (ValueError, "non-empty", lambda: k.pointwise_conv(X[:0], P, PB)),
    "weight": (ValueError, r"weight has shape \(6, 8, 1, 1\)",
               lambda: k.depthwise_conv(X, P, PB)),
    "bias": (ValueError, r"bias has shape \(8,\), expected \(6,\)",
             lambda: k.pointwise_conv(X, P, B)),
    "dtype": (TypeError, "float16, expected torch.float32",
              lambda: k.depthwise_conv(X, W.half(), B)),
    "device": (ValueError, "is on meta", lambda: k.depthwise_conv(X, W.to("meta"), B)),
    "stride": (ValueError, "stride=3, expected 1 or 2",
               lambda: k.depthwise_conv(X, W, B, stride=3)),
    "dilation": (ValueError, "dilation=0", lambda: k.depthwise_conv(X, W, B, dilation=0)),
    "activation": (ValueError, "activation='gelu'",
                   lambda: k.pointwise_conv(X, P, PB, activation="gelu")),
    "residual": (ValueError, "residual has shape",
                 lambda: k.pointwise_conv(X, P, PB, residual=X)),
    "residual's height": (ValueError, r"residual has shape \(1, 6, 3, 4\)",  # before any kernel
                          lambda: k.pointwise_conv(X.to("meta"), P.to("meta"), PB.to("meta"),
                                                   residual=X[:, :6, :3].to("meta"))),
    "low's batch": (ValueError, r"low has shape \(2, 8, 4, 4\), expected \(1,",
                    lambda: k.feature_fusion(X, torch.cat([X, X]), W, B, P, PB, P, PB)),
    "block residual": (ValueError, "expected stride 1", lambda: k.inverted_residual(
        X, torch.zeros(9, 8, 1, 1), torch.zeros(9), torch.zeros(9, 1, 3, 3), torch.zeros(9),
        torch.zeros(6, 9, 1, 1), PB, residual=True)),
    "frame": (ValueError, "N x H x W x 3", lambda: k.stem_conv(
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, 3, 3, 3), torch.zeros(4),
        mean=(0, 0, 0), std=(1, 1, 1))),
    "padding": (ValueError, "padding=2", lambda: k.stem_conv(
        torch.zeros(1, 3, 8, 8), torch.zeros(4, 3, 3, 3), torch.zeros(4),
        mean=(0, 0, 0), std=(1, 1, 1), padding=2)),
    "tiny frame": (ValueError, "frame is 2x8, expected at least 3x3", lambda: k.stem_conv(
        torch.zeros(1, 3, 2, 8), torch.zeros(4, 3, 3, 3), torch.zeros(4),
        mean=(0, 0, 0), std=(1, 1, 1), padding=0)),
    "order": (ValueError, "order=", lambda: k.pyramid_pool(
        X, [P], [PB], torch.zeros(8, 14, 1, 1), B, order=(1, 2))),
    "branches": (ValueError, "expected one for each", lambda: k.pyramid_pool(
        X, [P], [PB], torch.zeros(8, 14, 1, 1), B)),
    "size": (ValueError, "size=", lambda: k.softmax_head(X, (0, 4))),
    "classes": (ValueError, "at most 255", lambda: k.argmax_head(
        torch.zeros(1, 256, 2, 2, device="meta"), (4, 4))),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name: str) -> None:
    error, message, call = BAD[name]
    with pytest.raises(error, match=message):
        call()


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_works_without_triton() -> None:
    """Triton made unimportable: the CPU works and CUDA's error names the fix."""
    run(
        "import sys; sys.modules['triton'] = None\n"
        "import torch, fastscnn_kernels as k\n"
        "y = k.depthwise_conv(torch.ones(1, 4, 5, 5), torch.ones(4, 1, 3, 3), torch.zeros(4))\n"
        "assert y[0, 0, 2, 2] == 9\n"
        "from fastscnn_kernels.composition import check_triton\n"
        "try: check_triton()\n"
        "except RuntimeError as e: assert 'pip install \"triton>=3.6\"' in str(e), e\n"
        "else: raise SystemExit('no error')\n"
    )


def test_importing_does_not_import_triton() -> None:
    run("import sys, fastscnn_kernels; assert 'triton' not in sys.modules")


@pytest.mark.parametrize(("version", "ok"), [("3.5.1", False), ("3.6.0", True), ("3.10.0", True)])
def test_triton_versions(version: str, ok: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared as versions, not as strings: 3.10 is newer than 3.6."""
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=version))
    if ok:
        composition.check_triton()
    else:
        with pytest.raises(RuntimeError, match=r"Triton 3\.5\.1 is too old.*pip install"):
            composition.check_triton()


def test_turing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composition, "check_triton", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "T4")
    with pytest.raises(RuntimeError, match=r"T4 has compute capability 7\.5.*FASTSCNN_CUDA=1"):
        composition.triton_operations(torch.device("cuda", 7))
