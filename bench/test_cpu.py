"""Times the network, its operations and its head on a CPU against other ways of running them.

    pytest bench/test_cpu.py --benchmark-only --benchmark-json=bench/results/cpu-MACHINE.json \\
        --note "what decides the numbers" [--data DIR]
    python bench/report.py bench/results/cpu-MACHINE.json

All providers of a size and thread count are validated, then measured in alternation
(`fastscnn/benchmark/`, which says by which clock); pytest-benchmark is handed the measured rounds
through its timer. `camvid` are the shipped weights, 11 classes, on a real frame with `--data`, else
on a drawn one; `seeded` is a network of 19 classes that has seen noise. int8 is calibrated on three
other frames of the same kind.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastscnn
from fastscnn.benchmark.compare import Row, compare
from fastscnn.benchmark.cpu import PROVIDERS
from fastscnn.benchmark.provider import Case
from fastscnn.benchmark.timing import alternate
from fastscnn.inference.cpu_runtime import CpuRuntime
from fastscnn.inference.fold import fold
from fastscnn.media.demo import street_scene
from fastscnn.media.frames import read_image
from fastscnn.network.model import FastSCNN
from fastscnn.network.segment import resize_frames
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
def model(weights: str = "seeded") -> FastSCNN:
    """Shipped weights; or the paper's network whose batch norms and classes have seen data, so that
    labels vary."""
    if weights == "camvid":
        return fastscnn.load("camvid", fused=False, device="cpu").requires_grad_(False)
    torch.manual_seed(0)
    net = FastSCNN(19)
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(4, 3, 64, 128))
        scores = net.eval().scores(torch.randn(4, 3, 64, 128))
        net.classifier.conv.bias -= scores.mean(dim=(0, 2, 3))
    return net.requires_grad_(False)


@cache
def frame(
    size: tuple[int, int], weights: str = "seeded", data: Path | None = None, seed: int = 0
) -> Tensor:
    """Smooth shapes with noise on top; for shipped weights a street. Of other seeds are frames to
    calibrate on."""
    if weights == "camvid":
        if data is None:
            return torch.from_numpy(street_scene(*size, seed=seed).copy())[None]
        photo = read_image(sorted((data / "street" / "images").iterdir())[seed])
        return resize_frames(torch.from_numpy(photo.copy())[None], size).contiguous()
    generator = torch.Generator().manual_seed(1 + seed)
    coarse = torch.rand(1, 3, 9, 17, generator=generator)
    noise = torch.randn(1, 3, *size, generator=generator)
    smooth = F.interpolate(coarse, size, mode="bicubic") + 0.1 * noise
    return (smooth.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@cache
def network_rows(
    size: tuple[int, int],
    threads: int,
    weights: str,
    smoke: bool,
    names: frozenset[str],
    data: Path | None,
) -> dict[str, Row]:
    chosen = [p for p in PROVIDERS.values() if p.name in names]
    rounds = (SMOKE_SIZES if smoke else SIZES)[size]
    others = torch.cat([frame(size, weights, data, seed) for seed in (1, 2, 3)])
    case = Case(frame(size, weights, data), threads, others)
    rows = compare(model(weights), case, chosen, rounds)
    return {row.provider: row for row in rows}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("weights", ["seeded", "camvid"])
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("size", [*SIZES, *SMOKE_SIZES], ids=lambda s: f"{s[0]}x{s[1]}")
def test_cpu_network(
    benchmark: Any, size: tuple[int, int], threads: int, weights: str, provider: str, request: Any
) -> None:
    option = request.config.getoption
    if option("--smoke") != (size in SMOKE_SIZES):
        pytest.skip(
            "size is for --smoke only" if size in SMOKE_SIZES else "size is not for --smoke"
        )
    if PROVIDERS[provider].slow and not option("--compile"):
        pytest.skip("compiling takes minutes; ask for it with --compile")
    names = frozenset(  # those that -k left
        item.callspec.params["provider"]
        for item in request.session.items
        if item.function is request.function
        and (option("--compile") or not PROVIDERS[item.callspec.params["provider"]].slow)
    )
    rows = network_rows(size, threads, weights, option("--smoke"), names, option("--data"))
    row = rows[provider]
    assert not row.skipped.startswith("wrong labels"), row.skipped
    if row.skipped:
        pytest.skip(row.skipped)
    report(
        benchmark,
        row.seconds,
        f"cpu network {size[0]}x{size[1]}, {weights}, {threads} threads",
        **{"kind": "network", "size": size, "threads": threads, "weights": weights},
        **{"real": option("--data") is not None, **row.to_dict()},
    )


#: Frames of burn-in, and as many that count.
PAPER_FRAMES = 100


@pytest.mark.parametrize("output", ["labels", "probabilities"])
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_cpu_paper(benchmark: Any, size: tuple[int, int], output: str, request: Any) -> None:
    """The protocol of the paper's Table 6: batch one, 100 frames of burn-in, then the mean of 100,
    with all threads; the network's time has the head of that output in it."""
    smoke = request.config.getoption("--smoke")
    frames = 1 if smoke else PAPER_FRAMES
    net, threads = model(), THREADS[-1]
    image = frame((64, 128) if smoke else size)
    runtime = CpuRuntime(fold(net), net.config, net.num_classes)
    call = {output: lambda: runtime.outputs(image, (output,), None, threads)}
    alternate(call, frames, 2)
    seconds = alternate(call, frames, 2)[output]  # by the wall clock
    group = f"cpu paper {size[0]}x{size[1]}, {threads} threads"
    fps, median = len(seconds) / sum(seconds), 1e3 * sorted(seconds)[len(seconds) // 2]
    facts = {"kind": "paper", "size": size, "threads": threads, "output": output}
    report(benchmark, seconds, group, **facts, mean_fps=fps, median_ms=median)


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
