"""On an NVIDIA GPU: every Triton kernel in every dtype, what is registered under graph capture, and
whole networks."""

from __future__ import annotations

import pytest
import torch
from op_cases import CASES, DTYPES, Case, check, on_gpu, tensors
from tolerance import assert_close
from training_cases import CASES as TRAINING_CASES
from training_cases import TrainingCase, check_training

import fastscnn_kernels as k
from fastscnn.inference.fold import fold
from fastscnn.inference.gpu_runtime import GpuRuntime
from fastscnn.network.config import PRESETS
from fastscnn.network.model import FastSCNN
from fastscnn_kernels import composition

pytestmark = pytest.mark.gpu
CORE = [c for c in CASES if c.core]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_equals_twin(case: Case, dtype: torch.dtype) -> None:
    args, kwargs = case.make(dtype)
    triton = composition.on(torch.device("cuda", 0), "triton")  # else CUDA C++ takes what it can
    ours = getattr(triton, case.op)(*(on_gpu(a) for a in args), **on_gpu(kwargs))
    check(case, tuple(t.cpu() for t in ours) if isinstance(ours, tuple) else ours.cpu(),
          args, kwargs)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", TRAINING_CASES, ids=lambda c: c.id)
def test_training_equals_twin(case: TrainingCase, dtype: torch.dtype) -> None:
    """The Triton kernels themselves, which no composition takes yet; twice the same bits."""
    kernels = composition.triton_operations(torch.device("cuda", 0))
    args, options = case.make(dtype)
    runs = [
        tensors(getattr(kernels, case.op)(*(on_gpu(a) for a in args), **options)) for _ in range(2)
    ]
    assert all(map(torch.equal, *runs))
    ours = tuple(t.cpu() for t in runs[0] if t is not None)
    check_training(case, ours if len(ours) > 1 else ours[0], args, options)


@pytest.mark.parametrize("case", CORE, ids=lambda c: c.id)
def test_graph_capture_equals_eager(case: Case) -> None:
    args, kwargs = case.make(torch.float16)
    args, kwargs = tuple(on_gpu(a) for a in args), on_gpu(kwargs)
    op = getattr(k, case.op)
    expected = tensors(op(*args, **kwargs))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = tensors(op(*args, **kwargs))
    for t in got:
        t.zero_()
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("preset", "dtype"),
    [(p, torch.float16) for p in PRESETS] + [("paper", d) for d in (torch.float32, torch.bfloat16)],
    ids=str,
)
def test_network_equals_reference(preset: str, dtype: torch.dtype) -> None:
    config = PRESETS[preset]
    model = FastSCNN(19, config=config)
    with torch.no_grad():
        for _ in range(10):
            model(torch.randn(2, 3, 64, 64))
    model = model.eval().cuda()
    x = torch.randn(2, 3, 131, 197, device="cuda").to(dtype)
    with torch.no_grad():
        exact = model.double().scores(x.double())
        peer = model.to(dtype).scores(x)
    runtime = GpuRuntime(fold(model.float()), config, 19, dtype)
    assert_close(runtime.scores(x), exact, peer)


def test_second_device_is_used() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    args, kwargs = CORE[0].make(torch.float16)
    moved = [a.to("cuda:1") if isinstance(a, torch.Tensor) else a for a in args]
    assert getattr(k, CORE[0].op)(*moved, **kwargs).device.index == 1
