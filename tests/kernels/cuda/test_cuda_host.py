"""The CUDA kernels, executed on the CPU thread by thread, against the float64 twins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent / "cuda_host"))

import compiled
from host import running_on
from op_cases import (
    Case,
    bottleneck,
    case,
    check,
    downsample,
    fusion,
    head,
    pyramid,
    separable,
    with_head,
)

from fastscnn_kernels import reference
from fastscnn_kernels.cuda import operations as cuda

SEEDS = (0, 1, 2, 3)
HALF, BFLOAT = torch.float16, torch.bfloat16


def smooth(
    shape: tuple[int, int, int, int], size: tuple[int, int], align: bool, dtype: torch.dtype
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Large regions of one class, so that most runs are fills."""
    (scores, _), options = head(shape, size, align, dtype)
    scores[:, 2, :, : shape[3] // 2] += 40
    scores[:, 5, shape[2] // 3 :, shape[3] // 2 :] += 40
    return (scores, size), options


def float_downsample(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A normalised float32 frame, every second column of a larger one."""
    (_, *weights), options = downsample(shape, 1, dtype)
    n, h, w = shape
    return (torch.randn(n, 3, h, 2 * w)[..., ::2], *weights), options


def unaligned_downsample(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The second frame of a batch, which begins at no multiple of 16 bytes."""
    (frames, *weights), options = downsample((shape[0] + 1, *shape[1:]), 1, dtype)
    assert frames[1:].data_ptr() % 16
    return (frames[1:], *weights), options


CASES = (
    case("dsconv", "ltd-1", separable, (1, 32, 33, 65), 48, stride=2, mid_activation="relu"),
    case("dsconv", "ltd-2", separable, (1, 48, 15, 9), 64, stride=2),
    case("dsconv", "classifier", separable, (1, 128, 11, 17), 128, core=True),
    case("dsconv", "one-pixel", separable, (2, 96, 1, 1), 96, activation="relu6"),
    case("dsconv", "one-pixel-s2", separable, (1, 128, 1, 1), 128, stride=2),
    case("dsconv", "batch-3-dilated", separable, (3, 48, 7, 13), 96, dilation=4),
    case("dsconv", "8-channels", separable, (1, 8, 9, 8), 8, activation="none"),
    case("dsconv", "two-output-blocks", separable, (1, 40, 7, 13), 200),
    case("dsconv", "head-19", with_head, (1, 128, 9, 13), 128, 19, core=True),
    case("dsconv", "head-1", with_head, (2, 128, 1, 1), 64, 1, mid_activation="relu"),
    case("dsconv", "head-70", with_head, (1, 48, 7, 13), 96, 70),
    case("dsconv", "head-s2", with_head, (1, 32, 9, 7), 48, 30, stride=2),
    case("inverted_residual", "1.0", bottleneck, (1, 64, 9, 21), 64, stride=2, core=True),
    case("inverted_residual", "1.1", bottleneck, (1, 64, 9, 13), 64, residual=True),
    case("inverted_residual", "2.0", bottleneck, (1, 64, 7, 13), 96, stride=2),
    case("inverted_residual", "2.1", bottleneck, (1, 96, 7, 9), 96, residual=True, core=True),
    case("inverted_residual", "3.0", bottleneck, (1, 96, 5, 9), 128, activation="relu6"),
    case("inverted_residual", "3.1", bottleneck, (1, 128, 8, 8), 128, residual=True),
    case("inverted_residual", "one-pixel", bottleneck, (2, 8, 1, 1), 8, residual=True),
    case("inverted_residual", "one-pixel-s2", bottleneck, (1, 48, 1, 1), 48, stride=2),
    case("inverted_residual", "odd-batch-3", bottleneck, (3, 24, 7, 13), 40, activation="none"),
    case("learning_to_downsample", "frame", downsample, (1, 33, 65), 1, core=True),
    case("learning_to_downsample", "no-padding", downsample, (2, 64, 41), 0),
    case("learning_to_downsample", "same-even", downsample, (1, 66, 34), "same"),
    case("learning_to_downsample", "same-odd", downsample, (3, 7, 13), "same"),
    case("learning_to_downsample", "one-window", downsample, (1, 3, 3), 0),
    case("learning_to_downsample", "unaligned", unaligned_downsample, (1, 39, 43)),
    case("learning_to_downsample", "float-nchw", float_downsample, (2, 35, 43)),
    case("pyramid_pool", "paper", pyramid, (1, 128, 8, 16), 32, 1, core=True),
    case("pyramid_pool", "join-3x3", pyramid, (2, 48, 7, 13), 16, 3),
    case("pyramid_pool", "paddle-order-aligned", pyramid, (1, 24, 5, 70), 7, 3,
         order=(0, 6, 3, 2, 1), align_corners=True),
    case("pyramid_pool", "x-last-one-pixel", pyramid, (1, 8, 1, 1), 5, 1, order=(1, 2, 3, 6, 0)),
    case("pyramid_pool", "wide-aligned", pyramid, (1, 136, 9, 5), 32, 1, align_corners=True),
    case("feature_fusion", "paper", fusion, (64, 24, 44), (128, 6, 11), False, core=True),
    case("feature_fusion", "paper-odd", fusion, (64, 31, 43), (96, 8, 11), False),
    case("feature_fusion", "tramac", fusion, (64, 15, 29), (128, 4, 7), False, dilation=1,
         align_corners=True),
    case("feature_fusion", "mmseg", fusion, (64, 9, 18), (40, 3, 5), False, dilation=1),
    case("feature_fusion", "dense", fusion, (72, 12, 20), (24, 3, 5), True, n=2,
         align_corners=True),
    case("feature_fusion", "dilation-3-shrink", fusion, (8, 9, 7), (8, 11, 20), False, dilation=3),
    case("feature_fusion", "dilation-2", fusion, (136, 8, 16), (136, 2, 4), False, dilation=2),
    case("feature_fusion", "one-pixel", fusion, (8, 1, 1), (8, 1, 1), False, n=2),
    case("argmax_head", "x8", head, (1, 19, 5, 18), (40, 144), False, core=True),
    case("argmax_head", "x8-smooth", smooth, (2, 19, 9, 19), (72, 152), False, core=True),
    case("argmax_head", "x8-aligned-smooth", smooth, (1, 11, 6, 7), (41, 49), True),
    case("argmax_head", "x12", smooth, (1, 19, 4, 12), (50, 139), False),
    case("argmax_head", "x4", head, (1, 30, 5, 8), (20, 32), False),
    case("argmax_head", "x4-aligned-odd", head, (3, 7, 7, 13), (19, 31), True),
    case("argmax_head", "shrink", head, (1, 19, 33, 65), (4, 10), False),
    case("argmax_head", "one-class-one-pixel", head, (1, 1, 1, 1), (1, 9), True),
    case("argmax_head", "one-source-pixel", head, (1, 19, 1, 1), (33, 65), False),
    case("argmax_head", "255-classes", head, (1, 255, 1, 2), (8, 16), False),
)  # fmt: skip


@pytest.fixture(scope="session")
def on_host() -> ModuleType:
    return compiled.load()


def ids(c: Case) -> str:
    return c.id


def dtypes(cases: tuple[Case, ...]) -> list[Any]:
    """Every case in fp16, the core ones in bf16 too."""
    return [
        pytest.param(c, t, id=f"{c.id}-{str(t)[6:]}")
        for c in cases
        for t in ((HALF, BFLOAT) if c.core else (HALF,))
    ]


@pytest.mark.parametrize(("case", "dtype"), dtypes(CASES))
def test_matches_twin(on_host: ModuleType, case: Case, dtype: torch.dtype) -> None:
    """On a pretended Hopper, in four orders of its threads."""
    torch.manual_seed(0)
    args, kwargs = case.make(dtype)
    results = []
    for seed in SEEDS:
        with running_on(on_host, seed=seed):
            results.append(getattr(cuda, case.op)(*args, **kwargs))
            if case.op == "argmax_head":  # without confidence: fills and gathered runs
                labels, none = cuda.argmax_head(*args, **kwargs, confidence=False)
                assert none.numel() == 0
                assert torch.equal(labels, results[-1][0])
    for ours in results:
        assert torch.equal(first(ours), first(results[0])), "depends on the order of threads"
    check(case, results[0], args, kwargs)


def first(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("align_corners", [False, True])
def test_fast_labels_are_exact(on_host: ModuleType, align_corners: bool) -> None:
    """Labels without confidence (fills and gathered runs) equal those of the full computation."""
    torch.manual_seed(1)
    (scores, size), _ = smooth((1, 19, 9, 19), (72, 152), align_corners, HALF)
    with running_on(on_host):
        fast, _ = cuda.argmax_head(scores, size, align_corners=align_corners, confidence=False)
        full, _ = cuda.argmax_head(scores, size, align_corners=align_corners, confidence=True)
    assert torch.equal(fast, full)
    logits = reference.resize(scores.double(), size, align_corners)
    chosen = logits.gather(1, fast.long().unsqueeze(1)).squeeze(1)
    assert ((logits.amax(1) - chosen) / logits.abs().max()).max() < 1e-5


DEVICES = (
    # capability, multiprocessors: Turing's 64 KiB, Ada's 99 KiB, one multiprocessor: no shares
    pytest.param(75, None, id="turing"),
    pytest.param(89, 1, id="ada-one-multiprocessor"),
)


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.id in {"inverted_residual-3.1", "inverted_residual-1.0",
     "learning_to_downsample-frame", "dsconv-head-19", "dsconv-one-pixel-s2"}],
    ids=ids,
)  # fmt: skip
@pytest.mark.parametrize(("capability", "multiprocessors"), DEVICES)
def test_other_devices(
    on_host: ModuleType, case: Case, capability: int, multiprocessors: int | None
) -> None:
    """Tiles and shares that smaller GPUs get."""
    torch.manual_seed(0)
    args, kwargs = case.make(HALF)
    with running_on(on_host, capability=capability, multiprocessors=multiprocessors, seed=3):
        ours = getattr(cuda, case.op)(*args, **kwargs)
    check(case, ours, args, kwargs)


def test_turing_refuses_bfloat(on_host: ModuleType) -> None:
    args, kwargs = separable((1, 8, 2, 2), 8, BFLOAT)
    with (
        running_on(on_host, capability=75),
        pytest.raises(cuda.Refused, match=r"bfloat16 needs compute capability 8\.0"),
    ):
        cuda.dsconv(*args, **kwargs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cuda.dsconv(*separable((1, 30, 3, 3), 8, HALF)[0]),
         "dsconv: depthwise_weight has 30 channels, expected a multiple of 8; fastscnn_k"),
        (lambda: cuda.dsconv(*separable((1, 8, 3, 3), 8, torch.float32)[0]),
         "dsconv: x is torch.float32, expected float16 or bfloat16.*Triton"),
        (lambda: cuda.dsconv(*separable((1, 8, 3, 3), 8, HALF)[0], dilation=40),
         "stride=1, dilation=40 needs .* bytes of shared memory"),
        (lambda: cuda.inverted_residual(*bottleneck((1, 16, 3, 3), 136, HALF)[0]),
         "project_weight has 136 outputs, expected at most 128.*Triton"),
        (lambda: cuda.argmax_head(torch.zeros(1, 256, 2, 2, dtype=HALF), (4, 4)),
         "256 channels, expected at most 255"),
        (lambda: cuda._address(torch.zeros(9, dtype=HALF)[1:]), "off a 16-byte boundary"),
    ],
    ids=["channels", "float32", "dilation", "outputs", "classes", "alignment"],
)  # fmt: skip
def test_bad_input_is_named(on_host: ModuleType, call: Any, message: str) -> None:
    with running_on(on_host), pytest.raises(ValueError, match=message):
        call()


def test_launches_in_a_row_share_counters(on_host: ModuleType) -> None:
    """Blocks of one pass leave zeros behind; of fresh counters the results are the same."""
    torch.manual_seed(0)
    counters = cuda.counters(torch.device("cpu"))
    for seed in (0, 1, 2, 3):
        for c in (c for c in CASES if c.id in {"inverted_residual-2.1", "inverted_residual-3.0"}):
            (x, *weights), options = c.make(HALF)
            with running_on(on_host, seed=seed):
                block = cuda.bind(c.op, *weights, **options)
                expected = block(x)
                for _ in range(2):
                    assert torch.equal(block(x, counters=counters), expected)
                    assert not counters.any()
    with running_on(on_host), pytest.raises(ValueError, match="0 counters, expected at least"):
        block(x, counters=counters[:0])


ILLEGAL_ADDRESS, NO_IMAGE = 700, 209


@pytest.mark.parametrize(
    ("earlier", "code", "message"),
    [
        (ILLEGAL_ADDRESS, 0,
         r"dsconv <<<\(1, 1, 1\), 128, \d+>>>: not launched, an earlier CUDA call failed: an "
         r"illegal memory access was encountered \(in this or an earlier kernel; only a new"),
        (0, ILLEGAL_ADDRESS, r"dsconv <<<\(1, 1, 1\), 128, \d+>>>: an illegal memory access"),
        (0, NO_IMAGE,
         r"dsconv <<<\(1, 1, 1\), 128, \d+>>>: this build has no code for the host \(sm_90\); "
         "rebuild with FASTSCNN_CUDA=1 and FASTSCNN_CUDA_ARCHS unset or containing 90"),
        (0, 1, r"dsconv <<<\(1, 1, 1\), 128, \d+>>>: invalid argument"),
    ],
    ids=["earlier-error", "sticky-error", "no-code", "launch-failure"],
)  # fmt: skip
def test_a_failure_names_kernel_and_launch(
    on_host: ModuleType, earlier: int, code: int, message: str
) -> None:
    args, kwargs = separable((1, 8, 3, 3), 8, HALF)
    with running_on(on_host):
        on_host.fail(earlier, code)
        with pytest.raises(RuntimeError, match=message):
            cuda.dsconv(*args, **kwargs)
        if not code:  # the error was reported; what it leaves usable works
            assert cuda.dsconv(*args, **kwargs).shape == (1, 8, 3, 3)


def test_missing_code_is_known_before_a_launch(on_host: ModuleType) -> None:
    with running_on(on_host, capability=89):
        assert on_host.cuda_missing_code() == ""
        on_host.fail(0, NO_IMAGE)
        assert "no code for the host (sm_89); rebuild" in on_host.cuda_missing_code()


def test_a_cpu_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match="cuda_argmax_head: x is on cpu, expected an NVIDIA GPU"):
        cuda.argmax_head(torch.zeros(1, 2, 2, 2, dtype=HALF), (4, 4))


@pytest.mark.slow
def test_under_address_and_undefined_behaviour_sanitizers(tmp_path: Path) -> None:
    flags = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
    kernels = [s for s in compiled.SOURCES if s.suffix == ".cu"]
    sources = [*kernels, *(compiled.HERE / n for n in ("cuda_on_host.cpp", "sanitized.cpp"))]
    objects = [str(compiled.compile_object(s, flags=flags)) for s in sources]
    program = tmp_path / "sanitized"
    subprocess.run(["g++", *flags, "-o", program, *objects, "-pthread"], check=True)
    environment = {"ASAN_OPTIONS": "detect_stack_use_after_return=0"}
    done = subprocess.run([program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
