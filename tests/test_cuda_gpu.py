"""On an NVIDIA GPU: the CUDA kernels against their twins, captured, on streams and in threads."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from test_cuda_host import CASES, HALF, check_op, dtypes
from test_cuda_network import trained_for_a_moment
from test_triton_gpu import on_gpu, tensors
from tolerance import assert_close

from fastscnn.fold import fold
from fastscnn.gpu_runtime import GpuRuntime
from fastscnn_kernels import cuda
from fastscnn_kernels.with_cuda import WithCuda

CORE = [c for c in CASES if c.core]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    if not cuda.built():
        pytest.skip("the extension was built without CUDA")
    torch.manual_seed(0)


pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("case", "dtype"), dtypes(CASES))
def test_equals_twin(case: Any, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("bfloat16 needs compute capability 8.0")
    args, kwargs = case.make(dtype)
    ours = getattr(cuda, case.op)(*map(on_gpu, args), **on_gpu(kwargs))
    ours = tuple(t.cpu() for t in ours) if isinstance(ours, tuple) else ours.cpu()
    if case.op == "argmax_head":
        labels, _ = cuda.argmax_head(*map(on_gpu, args), **on_gpu(kwargs), confidence=False)
        assert torch.equal(labels.cpu(), ours[0])
    check_op(case, ours, args, kwargs)


@pytest.mark.parametrize("case", CORE, ids=lambda c: c.id)
def test_graph_capture_equals_eager(case: Any) -> None:
    args, kwargs = case.make(HALF)
    args, kwargs = tuple(on_gpu(a) for a in args), on_gpu(kwargs)
    op = getattr(cuda, case.op)
    expected = tensors(op(*args, **kwargs))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = tensors(op(*args, **kwargs))
    for t in got:
        t.zero_()
    for _ in range(2):  # the second replay finds the counters as the first left them
        graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_streams_in_threads_agree() -> None:
    """Overlapping launches share no counters and no sums."""
    case = next(c for c in CASES if c.id == "inverted_residual-2.1")
    args, kwargs = case.make(HALF)
    args = tuple(on_gpu(a) for a in args)
    expected = cuda.inverted_residual(*args, **kwargs)
    torch.cuda.synchronize()
    wrong: list[int] = []

    def work() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for i in range(50):
                if not torch.equal(cuda.inverted_residual(*args, **kwargs), expected):
                    wrong.append(i)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_network_agrees_with_triton_alone() -> None:
    model = trained_for_a_moment("paper", 19).cuda()
    folded = fold(model)
    frame = torch.randint(0, 256, (2, 259, 390, 3), dtype=torch.uint8)
    x = model.preprocess(frame.cuda())
    with torch.no_grad():
        exact = model.double().scores(x.double())
        peer = model.half().scores(x.half())
    for ops in ({}, {"ops": WithCuda()}):
        runtime = GpuRuntime(folded, model.config, 19, HALF, **ops)
        assert_close(runtime.scores(frame.cuda()), exact, peer)


def test_misaligned_scores_are_refused() -> None:
    scores = torch.zeros(2 * 19 * 8 + 1, dtype=HALF, device="cuda")[1:].view(1, 38, 2, 4)
    with pytest.raises(ValueError, match="off a 16-byte boundary"):
        cuda.argmax_head(scores, (16, 32))
