"""Times the network, its operations and its head on a CPU against other ways of running them.

    pytest bench/test_cpu.py --benchmark-only --benchmark-json=bench/results/cpu-MACHINE.json
    python bench/report.py bench/results/cpu-MACHINE.json

All providers of a size and thread count are validated, then measured in alternation, so that a busy
machine disturbs all alike; pytest-benchmark is handed the measured rounds through its timer. With
one thread the clock is the CPU time of the process, which equals wall time on an idle machine and
does not count what other processes take; with more it is wall time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cpu_providers import NEAR, PROVIDERS, Unavailable
from torch import Tensor

from fastscnn.inference.cpu_runtime import CpuRuntime
from fastscnn.inference.fold import fold
from fastscnn.network.model import FastSCNN
from fastscnn_kernels import reference
from fastscnn_kernels.cpu import operations as cpu

#: Size: rounds.
SIZES = {(1024, 2048): 5, (512, 1024): 9, (256, 512): 15}
SMOKE_SIZES = {(64, 128): 1}
THREADS = [t for t in (1, 2) if t <= (os.cpu_count() or 1)]


class Playback:
    """A timer that replays rounds measured before: every second call is one round later."""

    def __init__(self) -> None:
        self.rounds: list[float] = []
        self._calls = 0
        self._now = 0.0

    def load(self, rounds: list[float]) -> None:
        self.rounds, self._calls = list(rounds), 0

    def __call__(self) -> float:
        if self._calls % 2:
            self._now += self.rounds[self._calls // 2]
        self._calls += 1
        return self._now


playback = Playback()
pytestmark = pytest.mark.benchmark(timer=playback, disable_gc=True)


def alternate(
    calls: dict[str, Callable[[], Any]], rounds: int, threads: int, *, untimed: int = 0
) -> dict[str, list[float]]:
    """Seconds of every round of every call; the calls take turns.

    Each turn may begin with `untimed` calls, while the idle threads of the provider before stop
    spinning and the caches fill, as where one network runs alone.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            for _ in range(untimed):
                call()
            start = clock()
            call()
            seconds[name].append(clock() - start)
    return seconds


def report(benchmark: Any, rounds: list[float], group: str, **info: Any) -> None:
    """Hands measured rounds to pytest-benchmark."""
    playback.load(rounds)
    benchmark.group = group
    benchmark.extra_info.update(info)
    ordered = sorted(rounds)
    benchmark.extra_info["q20_ms"] = 1e3 * ordered[len(ordered) // 5]
    benchmark.extra_info["q80_ms"] = 1e3 * ordered[-1 - len(ordered) // 5]
    benchmark.pedantic(lambda: None, rounds=len(rounds))


@cache
def model() -> FastSCNN:
    """The paper's network whose batch norms and classes have seen data, so that labels vary."""
    torch.manual_seed(0)
    net = FastSCNN(19)
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(4, 3, 64, 128))
        scores = net.eval().scores(torch.randn(4, 3, 64, 128))
        net.classifier.conv.bias -= scores.mean(dim=(0, 2, 3))
    return net.requires_grad_(False)


@cache
def frame(size: tuple[int, int]) -> Tensor:
    """Smooth shapes with noise on top."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, 9, 17, generator=generator)
    noise = torch.randn(1, 3, *size, generator=generator)
    smooth = F.interpolate(coarse, size, mode="bicubic") + 0.1 * noise
    return (smooth.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@cache
def exact(size: tuple[int, int]) -> Tensor:
    x = reference.normalize(frame(size), model().config.mean, model().config.std)
    return model()(x)


def agreement(labels: Tensor, size: tuple[int, int], near: float) -> float:
    """Share of labels that agree with the float32 reference or lie within `near` of its best."""
    logits = exact(size)
    chosen = logits.gather(1, labels.long().unsqueeze(1)).squeeze(1)
    margin = near * float(logits.max() - logits.min())
    return (chosen >= logits.amax(1) - margin).double().mean().item()


@cache
def network_rounds(
    size: tuple[int, int], threads: int, smoke: bool, compiling: bool
) -> tuple[dict[str, list[float]], dict[str, float], dict[str, str]]:
    """(seconds, label agreement, reasons for skipping) by provider."""
    calls: dict[str, Callable[[], Any]] = {}
    agreements: dict[str, float] = {}
    skipped: dict[str, str] = {}
    with torch.inference_mode():
        exact(size)
        for name, provider in PROVIDERS.items():
            if name == "compiled" and not compiling:
                skipped[name] = "compiling takes minutes; ask for it with --compile"
                continue
            try:
                calls[name] = provider(model(), frame(size), threads)
            except Unavailable as reason:
                skipped[name] = str(reason)
                continue
            agreements[name] = agreement(calls[name](), size, NEAR[name])
            assert agreements[name] > 0.9999, f"{name}: wrong labels ({agreements[name]:.3%})"
        torch.set_num_threads(threads)
        rounds = (SMOKE_SIZES if smoke else SIZES)[size]
        return alternate(calls, rounds, threads, untimed=1), agreements, skipped


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("size", [*SIZES, *SMOKE_SIZES], ids=str)
def test_cpu_network(
    benchmark: Any, size: tuple[int, int], threads: int, provider: str, request: Any
) -> None:
    smoke = request.config.getoption("--smoke")
    if smoke != (size in SMOKE_SIZES):
        pytest.skip("size is for --smoke only" if not smoke else "size is not for --smoke")
    compiling = request.config.getoption("--compile")
    rounds, agreements, skipped = network_rounds(size, threads, smoke, compiling)
    if provider in skipped:
        pytest.skip(skipped[provider])
    report(
        benchmark,
        rounds[provider],
        f"cpu network {size[0]}x{size[1]}, {threads} threads",
        kind="network",
        provider=provider,
        size=size,
        threads=threads,
        agreement=agreements[provider],
    )


@pytest.mark.parametrize("threads", THREADS)
def test_cpu_operations(benchmark: Any, threads: int, request: Any) -> None:
    """Every step of a frame, in alternation; the table is in extra_info."""
    size = (64, 128) if request.config.getoption("--smoke") else (1024, 2048)
    net = model()
    runtime = CpuRuntime(fold(net), net.config, net.num_classes)
    image = frame(size)
    steps = runtime.steps(image)
    calls = {name: (lambda step=step: step(threads)) for name, step in steps}
    alternate(calls, 1, threads)
    seconds = alternate(calls, 5, threads)
    frames = [sum(s[i] for s in seconds.values()) for i in range(5)]
    rows = {name: sorted(s)[len(s) // 2] * 1e3 for name, s in seconds.items()}
    group = f"cpu operations {size[0]}x{size[1]}, {threads} threads"
    report(benchmark, frames, group, kind="operations", size=size, threads=threads, ms=rows)


@pytest.mark.parametrize("kind", ["smooth", "random"])
@pytest.mark.parametrize("provider", ["torch NCHW", "torch channels_last", "ours"])
def test_cpu_argmax_head(benchmark: Any, provider: str, kind: str, request: Any) -> None:
    """19 classes, x8. `smooth`: one class wins most cells, as in images; `random`: the worst."""
    smoke = request.config.getoption("--smoke")
    group = f"cpu argmax_head x8, {kind} scores, 1 thread"
    rounds = head_rounds(kind, (16, 32) if smoke else (128, 256))[provider]
    report(benchmark, rounds, group, kind="head", provider=provider, scores=kind)


@cache
def head_rounds(kind: str, size: tuple[int, int]) -> dict[str, list[float]]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    scores = torch.randn(1, 19, *((12, 24) if kind == "smooth" else size))
    scores = F.interpolate(scores, size, mode="bicubic")
    last = scores.contiguous(memory_format=torch.channels_last)
    out = (8 * size[0], 8 * size[1])

    def torch_head(x: Tensor) -> Tensor:
        return F.interpolate(x, out, mode="bilinear").argmax(1).to(torch.uint8)

    calls: dict[str, Callable[[], Tensor]] = {
        "torch NCHW": lambda: torch_head(scores),
        "torch channels_last": lambda: torch_head(last),
        "ours": lambda: cpu.argmax_head(last, out, confidence=False, threads=1)[0],
    }
    assert (calls["ours"]() == calls["torch NCHW"]()).double().mean() > 0.99999
    return alternate(calls, 5, 1)
