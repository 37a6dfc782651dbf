"""Times a training step on a CPU, and its head alone, against torch's.

    pytest bench --benchmark-only -k training --benchmark-json=bench/results/training-MACHINE.json
    python bench/report.py bench/results/training-MACHINE.json

All providers of a case are validated, then measured in alternation. Peak memory is that of a
process of its own, above what it held with its input, before it built the model.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from test_cpu import THREADS, alternate, playback, report
from torch import Tensor, nn

from fastscnn.inference.fused import FusedFastSCNN
from fastscnn.network.model import FastSCNN
from fastscnn.training.losses import Losses
from fastscnn_kernels import cross_entropy_head

pytestmark = pytest.mark.benchmark(timer=playback, disable_gc=True)


class Case(NamedTuple):
    """A batch of images; `rounds` of each provider."""

    batch: int
    classes: int
    size: tuple[int, int]
    rounds: int

    def __str__(self) -> str:
        return f"{self.batch} x {self.size[0]}x{self.size[1]}, {self.classes} classes"


SMOKE = Case(2, 5, (64, 96), 1)
CASES = [Case(8, 11, (448, 608), 7), Case(2, 19, (1024, 2048), 3), SMOKE]
CPU = torch.device("cpu")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class TorchLosses(nn.Module):
    """The losses of `fastscnn train` as torch users write them: full-size logits."""

    def __init__(self, model: FastSCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        main, *aux = self.model.scores_aux(x)
        logits = F.interpolate(main.float(), target.shape[1:], mode="bilinear")
        loss = F.cross_entropy(logits, target.long(), ignore_index=255)
        for scores in aux:
            small = F.interpolate(target[:, None], scores.shape[2:], mode="nearest-exact")[:, 0]
            loss = loss + 0.4 * F.cross_entropy(scores.float(), small.long(), ignore_index=255)
        return loss


def eager(classes: int) -> nn.Module:
    """PyTorch as a user first runs it: NCHW."""
    return TorchLosses(FastSCNN(classes, aux=True))


def channels_last(classes: int) -> nn.Module:
    return eager(classes).to(memory_format=torch.channels_last)


def compiled(classes: int) -> nn.Module:
    """torch.compile of the whole, channels_last."""
    torch._dynamo.reset()
    return torch.compile(channels_last(classes), dynamic=False)  # type: ignore[return-value]


def unchanged_loop(classes: int) -> nn.Module:
    """Torch's losses on `fastscnn.load`'s network: a loop that was not touched."""
    return TorchLosses(FusedFastSCNN(classes, aux=True, fused_training=True))


def ours(classes: int) -> nn.Module:
    """The losses of `fastscnn train` on its network."""
    return Losses(FusedFastSCNN(classes, aux=True, fused_training=True))


PROVIDERS = {f.__name__: f for f in (eager, channels_last, compiled, unchanged_loop, ours)}


class Step:
    """One step of SGD after another on the same batch; `step()` returns the loss before it."""

    def __init__(
        self,
        provider: str,
        case: Case,
        dtype: torch.dtype,
        threads: int,
        device: torch.device = CPU,
    ) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.losses = PROVIDERS[provider](case.classes).to(device).train()
        self._optimizer = torch.optim.SGD(self.losses.parameters(), lr=0.01, momentum=0.9)
        self._x, self._target = (t.to(device) for t in batch(case))
        if provider not in ("eager", "unchanged_loop"):
            self._x = self._x.contiguous(memory_format=torch.channels_last)
        self._dtype = dtype

    def loss(self) -> Tensor:
        enabled = self._dtype != torch.float32
        with torch.autocast(self._x.device.type, torch.bfloat16, enabled=enabled):
            loss: Tensor = self.losses(self._x, self._target)
        return loss

    def __call__(self) -> Tensor:
        loss = self.loss()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        return loss.detach()


@cache
def batch(case: Case) -> tuple[Tensor, Tensor]:
    """Noisy smooth pictures and blocks of labels, some of them ignored."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(case.batch, 3, 9, 17, generator=generator)
    x = F.interpolate(coarse, case.size, mode="bicubic")
    x += 0.1 * torch.randn(x.shape, generator=generator)
    labels = torch.randint(0, case.classes + 1, (case.batch, 1, 9, 17), generator=generator)
    labels[labels == case.classes] = 255
    target = F.interpolate(labels.float(), case.size, mode="nearest-exact")[:, 0]
    return x, target.to(torch.uint8)


def gradients(step: Step) -> tuple[float, Tensor]:
    """The loss and all gradients, without dropout."""
    drops = [m for m in step.losses.modules() if isinstance(m, nn.Dropout)]
    before = [m.p for m in drops]
    for m in drops:
        m.p = 0.0
    loss = step.loss()
    loss.backward()
    for m, p in zip(drops, before, strict=True):
        m.p = p
    found = [p.grad.flatten() for p in step.losses.parameters() if p.grad is not None]
    return float(loss.detach()), torch.cat(found)


@cache
def step_rounds(case: Case, dtype: str, threads: int, compiling: bool) -> dict[str, list[float]]:
    """Seconds by provider. The first, torch's own, says how near float32 a dtype comes."""
    loss, exact = gradients(Step("eager", case, torch.float32, threads))
    steps: dict[str, Step] = {}
    distance = 0.0
    for name in PROVIDERS:
        if name == "compiled" and not compiling:
            continue
        steps[name] = Step(name, case, DTYPES[dtype], threads)
        got, whole = gradients(steps[name])
        apart = 1 - float(F.cosine_similarity(whole, exact, dim=0))
        distance = distance if len(steps) > 1 else apart
        assert abs(got / loss - 1) < 0.01, f"{name}: another loss, {got} for {loss}"
        assert apart < 2 * distance + 0.02, f"{name}: other gradients, {apart:.3f} apart"
    return alternate(steps, case.rounds, threads, untimed=1 if case.rounds > 3 else 0)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_training_step(benchmark: Any, case: Case, dtype: str, provider: str, request: Any) -> None:
    if request.config.getoption("--smoke") != (case == SMOKE):
        pytest.skip("size is for --smoke only" if case == SMOKE else "size is not for --smoke")
    compiling = request.config.getoption("--compile")
    if provider == "compiled" and not compiling:
        pytest.skip("compiling takes minutes; ask for it with --compile")
    threads = THREADS[-1]
    rounds = step_rounds(case, dtype, threads, compiling)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peak = pool.apply(peak_of_step, (provider, case, dtype, threads))
    report(
        benchmark, rounds[provider], f"training step of {case}, {dtype}, {threads} threads",
        kind="training", provider=provider, case=str(case), dtype=dtype, threads=threads,
        peak_bytes=peak,
    )  # fmt: skip


HEADS = {
    "torch": lambda scores, target: F.cross_entropy(
        F.interpolate(scores, target.shape[1:], mode="bilinear"), target.long(), ignore_index=255
    ),
    "ours": cross_entropy_head,
}


class Head:
    """The main loss of scores at 1/8, forward and backward; returns loss and gradient."""

    def __init__(self, provider: str, case: Case, threads: int) -> None:
        torch.set_num_threads(threads)
        generator = torch.Generator().manual_seed(0)
        h, w = (s // 8 for s in case.size)
        self._scores = torch.randn(case.batch, case.classes, h, w, generator=generator)
        self._target = batch(case)[1]
        self._loss: Callable[[Tensor, Tensor], Tensor] = HEADS[provider]

    def __call__(self) -> tuple[Tensor, Tensor]:
        scores = self._scores.detach().requires_grad_()
        loss = self._loss(scores, self._target)
        loss.backward()
        assert scores.grad is not None
        return loss.detach(), scores.grad


@cache
def head_rounds(case: Case, threads: int) -> dict[str, list[float]]:
    calls = {name: Head(name, case, threads) for name in HEADS}
    (a, da), (b, db) = (call() for call in calls.values())
    assert torch.allclose(a, b, rtol=1e-5)
    assert torch.allclose(da, db, atol=1e-4 * float(da.abs().max()))
    return alternate(calls, 3 * case.rounds, threads, untimed=1)


@pytest.mark.parametrize("provider", HEADS)
def test_training_head(benchmark: Any, provider: str, request: Any) -> None:
    case, threads = SMOKE if request.config.getoption("--smoke") else CASES[0], THREADS[-1]
    rounds = head_rounds(case, threads)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peak = pool.apply(peak_of_head, (provider, case, threads))
    report(
        benchmark, rounds[provider], f"training head of {case}, {threads} threads",
        kind="training head", provider=provider, case=str(case), threads=threads, peak_bytes=peak,
    )  # fmt: skip


def peak_of_step(provider: str, case: Case, dtype: str, threads: int) -> int:
    """Bytes that two steps, the model and the optimizer need, in a fresh process."""
    batch(case)

    def run() -> None:
        step = Step(provider, case, DTYPES[dtype], threads)
        for _ in range(2):
            step()

    return peak_of(run)


def peak_of_head(provider: str, case: Case, threads: int) -> int:
    small = Head(provider, SMOKE, threads)
    head = Head(provider, case, threads)
    small()  # what libraries set up at first use
    return peak_of(head)


def peak_of(run: Callable[[], Any]) -> int:
    """Bytes by which the process grows beyond its size now, at the most (Linux; else 0)."""
    if not Path("/proc/self/clear_refs").exists():
        return 0
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak until now
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])
