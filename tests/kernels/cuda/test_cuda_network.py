"""The whole network with the CUDA kernels run on the CPU, PyTorch for what they do not take."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "cuda_host"))

import compiled
from host import running_on
from networks import trained_for_a_moment
from op_cases import bottleneck, case, check, downsample, separable
from tolerance import assert_close

import fastscnn_kernels
from fastscnn.inference.fold import Conv, fold
from fastscnn.inference.gpu_runtime import GpuRuntime
from fastscnn.network.config import PRESETS
from fastscnn.network.model import FastSCNN
from fastscnn_kernels import reference
from fastscnn_kernels.composition import Composition
from fastscnn_kernels.cuda import operations as cuda

TYPES = tuple(cuda.TYPES)


class _Nothing:
    """Where CUDA C++ is to do all, no other operation is asked for."""

    def __getattr__(self, op: str) -> Any:
        raise AssertionError(f"{op} is left to Triton or PyTorch")


ALONE = Composition(_Nothing(), "triton", TYPES)


@pytest.mark.parametrize("preset", ["paper", pytest.param("tramac", marks=pytest.mark.slow)])
def test_scores_equal_the_reference(preset: str) -> None:
    model = trained_for_a_moment(preset, 19)
    frame = torch.randint(0, 256, (1, 67, 90, 3), dtype=torch.uint8)
    x = model.preprocess(frame)
    runtime = GpuRuntime(fold(model), model.config, 19, torch.float16, ops=ALONE)
    with running_on(compiled.load(), seed=2), torch.no_grad():
        scores = runtime.scores(frame)
        labels = runtime.labels(frame)
    with torch.no_grad():
        exact = model.double().scores(x.double())
        peer = model.half().scores(x.half())
    assert_close(scores, exact, peer)
    assert labels.shape == (1, 67, 90)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("preset", PRESETS)
def test_no_preset_needs_triton_from_frame_to_labels(preset: str, dtype: torch.dtype) -> None:
    model = FastSCNN(19, config=PRESETS[preset]).eval()
    runtime = GpuRuntime(fold(model), model.config, 19, dtype, ops=ALONE)
    frame = torch.randint(0, 256, (1, 32, 40, 3), dtype=torch.uint8)
    with running_on(compiled.load()):
        found = runtime.outputs(frame, ("labels", "confidence"))
    assert found["labels"].shape == (1, 32, 40)
    assert found["confidence"].isfinite().all()


def test_passes_with_counters_of_their_own_make_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a captured graph has them: zeroed once, and zero after every pass."""
    model = FastSCNN(19).eval()
    runtime = GpuRuntime(fold(model), model.config, 19, torch.float16, ops=ALONE)
    frame = torch.randint(0, 256, (1, 32, 40, 3), dtype=torch.uint8)
    counters = runtime.counters()
    assert counters is not None
    with running_on(compiled.load()):
        expected = runtime.labels(frame)
        monkeypatch.setattr(cuda, "counters", None)
        for _ in range(2):
            got = runtime.outputs(frame, ("labels",), counters=counters)["labels"]
            assert torch.equal(got, expected)
            assert not counters.any()


def test_turing_runs_the_network_in_half() -> None:
    """Every layout within its 64 KiB."""
    for preset in ("paper", "mmseg"):
        model = FastSCNN(19, config=PRESETS[preset]).eval()
        runtime = GpuRuntime(fold(model), model.config, 19, torch.float16, ops=ALONE)
        with running_on(compiled.load(), capability=75):
            assert runtime.labels(torch.zeros(1, 32, 32, 3, dtype=torch.uint8)).shape == (1, 32, 32)


def test_what_cuda_refuses_runs_in_the_rest() -> None:
    """No CUDA kernel is reached: outside `running_on` each would refuse a CPU tensor."""
    ops = Composition(fastscnn_kernels, "triton", TYPES)
    for c in (
        case("dsconv", "float32", separable, (1, 16, 5, 7), 24),
        case("inverted_residual", "float32", bottleneck, (1, 8, 5, 7), 8, residual=True),
        case("learning_to_downsample", "float32", downsample, (1, 33, 35), 1),
    ):
        args, kwargs = c.make(torch.float32)
        check(c, getattr(ops, c.op)(*args, **kwargs), args, kwargs)
        bound = ops.bind(c.op, *args[1:], **kwargs)
        assert bound.implementation == "triton"
        check(c, bound.run(args[0]), args, kwargs)
    (x, *weights), _ = separable((1, 30, 5, 7), 24, torch.float16)
    assert ops.dsconv(x, *weights).shape == (1, 24, 5, 7)
    assert ops.bind("dsconv", *weights).run(x).shape == (1, 24, 5, 7)
    wide = bottleneck((1, 16, 5, 7), 136, torch.float16)[0]
    assert ops.bind("inverted_residual", *wide[1:]).implementation == "triton"


def test_what_a_launcher_refuses_runs_in_the_rest() -> None:
    """Found out in C++ only: shared memory that the GPU lacks, bfloat16 on Turing."""
    c = case("dsconv", "far", separable, (1, 8, 5, 7), 8, dilation=40)
    args, kwargs = c.make(torch.float16)
    ops = Composition(reference, "torch", TYPES)
    with running_on(compiled.load()):
        check(c, ops.dsconv(*args, **kwargs), args, kwargs)
        with pytest.raises(cuda.Refused, match="bytes of shared memory"):
            cuda.dsconv(*args, **kwargs)
    args, kwargs = separable((1, 8, 2, 2), 8, torch.bfloat16)
    with running_on(compiled.load(), capability=75):
        assert ops.dsconv(*args, **kwargs).shape == (1, 8, 2, 2)


def test_layouts_that_cuda_copies_and_addresses_that_it_refuses() -> None:
    """Strided maps are copied; a map off a 16-byte boundary runs in the rest."""
    torch.manual_seed(0)
    c = case("dsconv", "layout", separable, (2, 16, 10, 14), 24)
    (x, *weights), kwargs = c.make(torch.float16)
    ops = Composition(reference, "torch", TYPES)
    shifted = torch.zeros(x.numel() + 1, dtype=x.dtype)[1:].view(2, 10, 14, 16).permute(0, 3, 1, 2)
    shifted.copy_(x)
    with running_on(compiled.load()):
        for view in (x[:, :, ::2, 1::3], x.contiguous(), x.flip(3)):
            check(c, cuda.dsconv(view, *weights, **kwargs), (view, *weights), kwargs)
        check(c, ops.dsconv(shifted, *weights, **kwargs), (shifted, *weights), kwargs)
        with pytest.raises(cuda.Refused, match="off a 16-byte boundary"):
            cuda.dsconv(shifted, *weights, **kwargs)


def test_one_block_that_does_not_fit_leaves_the_others_in_cuda() -> None:
    """A float16 network whose downsampling has other channels."""
    model = trained_for_a_moment("paper", 19)
    folded = {name: Conv(*conv) for name, conv in fold(model).items()}
    name = "learning_to_downsample."
    folded[f"{name}conv"] = Conv(*(torch.cat([t, t[:8]]) for t in folded[f"{name}conv"]))
    folded[f"{name}dsconv1.depthwise"] = Conv(
        *(torch.cat([t, t[:8]]) for t in folded[f"{name}dsconv1.depthwise"])
    )
    weight, bias = folded[f"{name}dsconv1.pointwise"]
    folded[f"{name}dsconv1.pointwise"] = Conv(torch.cat([weight, weight[:, :8]], 1), bias)
    ops = Composition(reference, "torch", TYPES)
    runtime = GpuRuntime(folded, model.config, 19, torch.float16, ops=ops)
    assert runtime._downsample.implementation == "torch"
    others = (*runtime._bottlenecks, runtime._pyramid, runtime._fusion, runtime._classifier1,
              runtime._classifier2)  # fmt: skip
    assert {block.implementation for block in others} == {"cuda"}
