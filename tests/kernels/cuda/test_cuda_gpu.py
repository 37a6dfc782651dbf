"""On an NVIDIA GPU: the CUDA kernels against their twins, captured, on streams and in threads."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from networks import trained_for_a_moment
from op_cases import check, on_gpu, tensors
from test_cuda_host import CASES, HALF, dtypes
from tolerance import assert_close

import fastscnn_kernels as k
from fastscnn.inference.engine import Engine
from fastscnn.inference.fold import fold
from fastscnn.inference.gpu_runtime import GpuRuntime
from fastscnn_kernels import composition, reference
from fastscnn_kernels.composition import Composition
from fastscnn_kernels.cuda import operations as cuda

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
    check(case, ours, args, kwargs)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.core or c.id == "argmax_head-shrink"], ids=lambda c: c.id
)
def test_every_kernel_once(case: Any) -> None:
    """The selection that `sanitize_gpu.sh` runs; counters serve two launches."""
    (x, *weights), kwargs = case.make(HALF)
    x, weights, kwargs = x.cuda(), [on_gpu(w) for w in weights], on_gpu(kwargs)
    if case.op == "argmax_head":
        labels = [cuda.argmax_head(x, *weights, **kwargs, confidence=c)[0] for c in (True, False)]
        assert torch.equal(*labels)
        return
    expected = getattr(cuda, case.op)(x, *weights, **kwargs)
    block = cuda.bind(case.op, *weights, **kwargs)
    shared = {"counters": cuda.counters(x.device)} if case.op == "inverted_residual" else {}
    for _ in range(2):
        assert torch.equal(block(x, **shared), expected)


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


def test_network_in_every_composition() -> None:
    """As on any GPU, Triton alone, CUDA C++ beside Triton and beside PyTorch: one tolerance."""
    model = trained_for_a_moment("paper", 19).cuda()
    folded = fold(model)
    frame = torch.randint(0, 256, (2, 259, 390, 3), dtype=torch.uint8)
    x = model.preprocess(frame.cuda())
    with torch.no_grad():
        exact = model.double().scores(x.double())
        peer = model.half().scores(x.half())
    device = x.device
    without_triton = Composition(reference, "torch", (HALF,))
    kinds = [composition.on(device, kernels) for kernels in composition.KERNELS]
    for ops in (*kinds, without_triton):
        runtime = GpuRuntime(folded, model.config, 19, HALF, ops=ops)
        assert_close(runtime.scores(frame.cuda()), exact, peer)
    assert str(kinds[0]) == str(kinds[1]) != str(kinds[2])


def test_engine_in_every_composition() -> None:
    """Captured: replays equal each other, logits the reference."""
    model = trained_for_a_moment("paper", 19).cuda()
    frames = torch.randint(0, 256, (1, 256, 512, 3), dtype=torch.uint8, device="cuda")
    x = model.preprocess(frames)
    with torch.no_grad():
        exact = model.double()(x.double())
        peer = model.half()(x.half())
    for kernels in ("cuda", "triton"):
        engine = Engine(model, kernels=kernels, outputs=("labels", "logits"))
        first = {name: t.clone() for name, t in engine(frames).items()}
        assert_close(first["logits"], exact, peer)
        for _ in range(3):
            assert all(torch.equal(t, first[name]) for name, t in engine(frames).items())


def test_registered_operations_take_the_cuda_kernels() -> None:
    """One name: `fastscnn_kernels.dsconv` on a GPU is the CUDA kernel where it takes the case."""
    args, kwargs = next(c for c in CASES if c.id == "dsconv-classifier").make(HALF)
    args = tuple(map(on_gpu, args))
    assert torch.equal(k.dsconv(*args, **kwargs), cuda.dsconv(*args, **kwargs))
    x = torch.zeros(2 * 19 * 8 + 1, dtype=HALF, device="cuda")[1:].view(1, 38, 2, 4)
    assert k.argmax_head(x, (16, 32), confidence=False)[0].shape == (1, 16, 32)  # off 16 bytes


def test_misaligned_scores_are_refused() -> None:
    scores = torch.zeros(2 * 19 * 8 + 1, dtype=HALF, device="cuda")[1:].view(1, 38, 2, 4)
    with pytest.raises(ValueError, match="off a 16-byte boundary"):
        cuda.argmax_head(scores, (16, 32))
