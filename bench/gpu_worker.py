"""Builds, validates and times groups of contestants in a process of its own; prints JSON lines.

A kernel that breaks the GPU's context, hangs, or compiles for too long costs this process only:
`test_gpu.py` starts another without the culprit. Every contestant is validated before it is timed
and takes turns with the others of its group, PASSES times, over ROTATED different inputs.

The clock is GPU time: events in one stream that the calls are queued in. Medians are of blocks of
CALLS calls between two events, free of what events cost; the 99th percentile is of single calls
between neighbouring events, SINGLES in each pass. On the CPU (to try all this) it is wall time.

Lines: {"start": contestant, "group", "seconds"} before each step, then {"row": ...},
{"skipped": reason, "group", "contestant"} or {"failed": reason, ...}, and {"done": group}.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_groups import BATCHES, ONE_IMAGE, Layer, Network, Shape, contestants, groups, op_cases
from gpu_providers import BFLOAT, HALF, OURS, SINGLE, Built, Provider, need_cuda_kernels
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import fastscnn
import fastscnn_kernels
from fastscnn.benchmark.provider import Unavailable
from fastscnn.inference.plan import BYTES_PER_SECOND, FLOPS_PER_SECOND, plan
from fastscnn.network.model import FastSCNN
from fastscnn.network.segment import resize_frames
from fastscnn_kernels import composition, reference
from fastscnn_kernels.cuda import operations as cuda

PASSES = 4
BLOCKS = 2
CALLS = 20
SINGLES = 64
ROTATED = 4
PASS_SECONDS = 0.25
#: Share of the labels that must be float32's or lie this close to its best, by dtype, relative to
#: the range of the logits.
NEAR = {SINGLE: 1e-4, HALF: 5e-3, BFLOAT: 5e-2}
VALID = 0.9999
#: Seconds in which measuring one contestant once, or building a layer, must come back.
STEP_SECONDS = 60.0

Call = Callable[[int], Any]


class Clock:
    """Marks moments of the current stream, or of the CPU."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"

    def mark(self) -> Any:
        if not self._gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, marks: list[Any]) -> list[float]:
        """Seconds between neighbouring marks, once the last has passed."""
        if not self._gpu:
            return [b - a for a, b in itertools.pairwise(marks)]
        marks[-1].synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(marks)]


def measure(
    calls: dict[str, Call],
    clock: Clock,
    before: Callable[[str], None],
    passes: int = PASSES,
    seconds: float = PASS_SECONDS,
    least: int = 12,
) -> dict[str, tuple[list[float], list[float]]]:
    """(seconds per call of each block, seconds of each single call) by name; they take turns.

    A slow contestant makes fewer calls: about as many as take `seconds` in each pass, at `least`.
    """
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in calls}
    for _ in range(passes):
        for name, call in calls.items():
            before(name)
            marks = [clock.mark()]
            for i in range(ROTATED):
                call(i)
            marks.append(clock.mark())
            once = clock.between(marks)[0] / ROTATED
            fit = int(seconds / max(once, 1e-9))
            many = max(least, min(CALLS, fit // 4))
            for _ in range(BLOCKS):
                call(0)  # keeps the queue filled while the first mark is set
                start = clock.mark()
                for i in range(many):
                    call(i)
                found[name][0].append(clock.between([start, clock.mark()])[0] / many)
            call(0)
            marks = [clock.mark()]
            for i in range(max(least, min(SINGLES, fit))):
                call(i)
                marks.append(clock.mark())
            found[name][1].extend(clock.between(marks))
    return found


def limits(options: argparse.Namespace) -> dict[str, Any]:
    return {"passes": 1, "seconds": 0.0, "least": 1} if options.smoke else {}


def facts(blocks: list[float], singles: list[float], calls: int = 1) -> dict[str, Any]:
    """Microseconds of one call, `calls` of which are in each that was timed."""
    us = [1e6 * s / calls for s in blocks]
    single = sorted(1e6 * s / calls for s in singles)
    return {
        "us": statistics.median(us),
        "us_single": statistics.median(single),
        "us_p99": single[math.ceil(0.99 * len(single)) - 1],
        "singles": len(single),
        "rounds": us,
    }


# --- networks -----------------------------------------------------------------------------------


def shipped() -> FastSCNN:
    return fastscnn.load("camvid", fused=False, device="cpu")


def seeded() -> FastSCNN:
    """19 classes; batch norms and classes that have seen data, so that labels vary."""
    torch.manual_seed(0)
    model = FastSCNN(19)
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(4, 3, 64, 128))
        scores = model.eval().scores(torch.randn(4, 3, 64, 128))
        model.classifier.conv.bias -= scores.mean(dim=(0, 2, 3))
    return model


def frames_of(shape: Shape, data: Path | None, device: torch.device) -> tuple[list[Tensor], str]:
    """ROTATED different inputs N x H x W x 3 on the device, and what they show."""
    n, h, w = shape
    for folder, title in (("street/images", "street frames"), ("camvid/val", "CamVid val frames")):
        paths = sorted(data.joinpath(folder).glob("*.[jp][pn]g")) if data else []
        if paths:
            every = [paths[i * len(paths) // ROTATED] for i in range(ROTATED)]
            images = [torch.from_numpy(np.array(Image.open(p).convert("RGB"))) for p in every]
            single = [resize_frames(image[None], (h, w)).to(device) for image in images]
            return [
                torch.cat([single[(i + j) % ROTATED] for j in range(n)]) for i in range(ROTATED)
            ], title
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(ROTATED):
        x = torch.zeros(n, 3, h, w, device=device)
        for side in (4, 16, 64):
            noise = torch.rand(n, 3, side, 2 * side, generator=generator).to(device)
            x += reference.resize(noise, (h, w), False)
        batches.append((x * 85).to(torch.uint8).permute(0, 2, 3, 1).contiguous())
    return batches, "drawn noise at three scales"


class Truth:
    """What the float32 reference says on the device, image by image to spare memory."""

    def __init__(self, model: FastSCNN, frames: list[Tensor]) -> None:
        self._model, self._frames = model, frames

    def judge(self, run: Callable[[Tensor], Tensor], dtype: torch.dtype) -> dict[str, float]:
        """Label agreement of all images together and of the worst; raises ValueError if the labels
        are not those of this network."""
        shares, valid = [], []
        for frames in self._frames:
            labels = run(frames).clone()
            if labels.shape != frames.shape[:3] or labels.dtype != torch.uint8:
                raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}")
            for frame, got in zip(frames, labels, strict=True):
                logits = self._logits(frame[None])[0]
                best, truth = logits.max(0)
                chosen = logits.gather(0, got.long().clamp(max=len(logits) - 1)[None])[0]
                near = best - chosen <= NEAR[dtype] * (logits.max() - logits.min())
                shares.append((got == truth).double().mean().item())
                valid.append((near & (got < len(logits))).double().mean().item())
        if min(valid) < VALID:
            raise ValueError(
                f"wrong labels: {min(valid):.3%} are float32's or within {NEAR[dtype]:g} of its "
                f"best (agreement {statistics.mean(shares):.3%})"
            )
        return {
            "label_agreement": statistics.mean(shares),
            "label_agreement_worst": min(shares),
        }

    def _logits(self, frame: Tensor) -> Tensor:
        config = self._model.config
        logits: Tensor = self._model(reference.normalize(frame, config.mean, config.std))
        return logits


class Memory:
    """Bytes that are taken on the device from here on: torch's peak, and what all of it takes."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        if self._gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            self._outside = self._taken_outside()

    @staticmethod
    def _taken_outside() -> int:
        free, total = torch.cuda.mem_get_info()
        return total - free - torch.cuda.memory_reserved()

    def peak(self) -> int:
        if not self._gpu:
            return 0
        outside = self._taken_outside() - self._outside
        return torch.cuda.max_memory_allocated() - self._before + max(outside, 0)


def network_rows(
    group: Network, skip: set[str], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    device = torch.device(options.device)
    model = (shipped() if group.weights == "camvid" else seeded()).to(device)
    real = options.data if group.weights == "camvid" else None
    frames, shows = frames_of(group.shape, real, device)
    truth = Truth(model, frames)
    torch._dynamo.reset()
    built: dict[str, tuple[Provider, Built, dict[str, Any]]] = {}
    for provider in (p for p in group.providers if p.name not in skip):
        with step(group, provider.name, provider.seconds) as allowed:
            if not allowed:
                continue
            began, memory = time.perf_counter(), Memory(device)
            made = provider.build(model, frames[0])
            for f in frames:
                made.run(f)
            known = truth.judge(made.run, provider.dtype)
            known["build_seconds"] = time.perf_counter() - began
            known["peak_memory_mb"] = memory.peak() / 1e6
            if made.memory is not None:
                known["engine_memory_mb"] = made.memory() / 1e6
            built[provider.name] = provider, made, known
    calls: dict[str, Call] = {
        name: (lambda i, run=made.run: run(frames[i % ROTATED]))
        for name, (_, made, _) in built.items()
    }
    before = lambda name: say(start=name, group=group.name, seconds=STEP_SECONDS)  # noqa: E731
    times = measure(calls, Clock(device), before, **limits(options))
    n, h, w = group.shape
    for name, (provider, _, known) in built.items():
        ops = composition.assumed(provider.kernels or "triton")
        size = (h, w)
        cost = plan(model.config, model.num_classes, size, batch=n, dtype=provider.dtype, ops=ops)
        row = {
            **facts(*times[name]),
            **known,
            **rates(sum(r.bytes for r in cost), sum(r.flops for r in cost),
                    sum(r.floor_us for r in cost)),
            "kind": "network", "ours": provider.ours, "dtype": str(provider.dtype)[6:],
            "images": n, "frame": [h, w], "weights": group.weights,
            "classes": model.num_classes, "shows": shows,
        }  # fmt: skip
        yield {"contestant": name, **row}


def compile_kernels(dtype: torch.dtype) -> None:
    """Runs our kernels once at every shape, which fills Triton's cache on disk."""
    for make in (shipped, seeded):
        model = make().cuda()
        for provider in (p for p in OURS if p.dtype == dtype and p.name.endswith("eager")):
            for shape in (*ONE_IMAGE, *BATCHES):
                frames = torch.zeros(*shape, 3, dtype=torch.uint8, device="cuda")
                with contextlib.suppress(Unavailable):
                    provider.build(model, frames).run(frames)
    torch.cuda.synchronize()


def rates(bytes_moved: int, flops: int, floor_us: float) -> dict[str, Any]:
    return {"bytes": bytes_moved, "flops": flops, "floor_us": floor_us}


# --- layers -------------------------------------------------------------------------------------


def layer_rows(
    group: Layer, skip: set[str], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    device = torch.device(options.device)
    inputs = []
    for seed in range(ROTATED):
        torch.manual_seed(seed)
        inputs.append(group.make(HALF))
    on_device = [moved(arguments, device) for arguments in inputs]
    calls: dict[str, Call] = {}
    for name in (n for n in group.implementations if n not in skip):
        with step(group, name, STEP_SECONDS) as allowed:
            if not allowed:
                continue
            ready = [implementation(name, group.op, *one, device) for one in on_device]
            got = moved(ready[0](), torch.device("cpu"))
            if name != "torch":  # whose twin is the truth
                if group.op == "argmax_head":  # confidence, which nobody asked for, may be None
                    got = got[0], torch.empty(0)
                case = op_cases.Case(group.op, group.name, group.make)
                op_cases.check(case, got, *inputs[0])
            calls[name] = queued(ready, device)
    before = lambda name: say(start=name, group=group.name, seconds=STEP_SECONDS)  # noqa: E731
    times = measure(calls, Clock(device), before, **limits(options))
    args, kwargs = inputs[0]
    known = rates(*layer_cost(group.op, args, kwargs))
    for name in calls:
        found = facts(*times[name], calls=CALLS)
        yield {"contestant": name, **found, **known, "kind": "layer", "op": group.op,
               "ours": name != "torch", "dtype": "float16", "images": 1}  # fmt: skip


def implementation(
    name: str, op: str, args: Any, kwargs: Any, device: torch.device
) -> Callable[[], Any]:
    """The operation on these arguments, weights packed in advance where the engine does so."""
    if name == "torch":
        reference.normalize = normalize
        return lambda: getattr(reference, op)(*args, **kwargs)
    if name == "Triton":
        ops = composition.on(device, "triton") if device.type == "cuda" else fastscnn_kernels
        return lambda: getattr(ops, op)(*args, **kwargs)
    need_cuda_kernels(device)
    if op == "argmax_head":
        return lambda: cuda.argmax_head(*args, **kwargs)
    shared = {"counters": cuda.counters(device)} if op == "inverted_residual" else {}
    bound = cuda.bind(op, *args[1:], **kwargs, **shared)
    return lambda: bound(args[0])


@functools.cache
def _on(device: torch.device, values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, device=device)


def normalize(frame: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """`reference.normalize` with its constants made in advance, as a careful user does: its eight
    small kernels would count against PyTorch."""
    m, s = _on(frame.device, tuple(mean)), _on(frame.device, tuple(std))
    return ((frame.float() / 255 - m) / s).permute(0, 3, 1, 2)


def queued(ready: list[Callable[[], Any]], device: torch.device) -> Call:
    """CALLS calls over all inputs, on a GPU in one graph."""

    def run(_: int) -> None:
        for i in range(CALLS):
            ready[i % ROTATED]()

    if device.type != "cuda":
        return run
    for call in ready:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(0)
    return lambda _: graph.replay()


def layer_cost(op: str, args: Any, kwargs: Any) -> tuple[int, int, float]:
    """(bytes of inputs, weights and output, flops of the convolutions, us that they need)."""
    args, kwargs = moved((args, kwargs), torch.device("meta"))
    with FlopCounterMode(display=False) as counter:
        y = getattr(reference, op)(*args, **kwargs)
    size = sum(t.numel() * t.element_size() for t in tensors((args, kwargs, y)))
    flops = counter.get_total_flops()
    return size, flops, 1e6 * max(size / BYTES_PER_SECOND, flops / FLOPS_PER_SECOND[HALF])


def moved(value: Any, device: torch.device) -> Any:
    """The same with every tensor in it on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {k: moved(v, device) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(moved(v, device) for v in value)
    return value


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in tensors(v)] if isinstance(value, list | tuple) else []


# --- the process --------------------------------------------------------------------------------


def say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


DEADLINE = math.inf


@contextlib.contextmanager
def step(group: Network | Layer, contestant: str, seconds: float) -> Iterator[bool]:
    """Announces a contestant and reports why it cannot take part; ends the process if the GPU's
    context is lost. Yields whether there is time for it."""
    about: dict[str, Any] = {"group": group.name, "contestant": contestant}
    if time.time() + seconds / 2 > DEADLINE:
        say(skipped=f"may take {seconds:.0f} s: over the time budget", **about)
        yield False
        return
    say(start=contestant, group=group.name, seconds=seconds)
    try:
        yield True
    except Unavailable as reason:
        say(skipped=str(reason), **about)
    except Exception as error:  # whatever a peer or a kernel of ours does wrong
        say(failed=_reason(error), **about)
        print(f"{group.name}, {contestant}:", repr(error), file=sys.stderr)
        if context_lost():
            raise SystemExit(3) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:300]}"


def context_lost() -> bool:
    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--compile-only", metavar="DTYPE", help="our Triton kernels, once")
    parser.add_argument("--until", type=float, default=math.inf, help="seconds since the epoch")
    parser.add_argument("--skip", type=json.loads, default={}, help="group: contestants, as JSON")
    parser.add_argument("--done", type=json.loads, default=[], help="groups, as JSON")
    options = parser.parse_args()
    global DEADLINE
    DEADLINE = options.until
    torch.backends.cuda.matmul.allow_tf32 = False  # fp32 means IEEE for everybody
    torch.backends.cudnn.allow_tf32 = False
    torch.set_grad_enabled(False)
    if options.device == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream())  # ONNX Runtime takes any but the default
    if options.compile_only:
        compile_kernels(getattr(torch, options.compile_only))
        return
    for group in groups(options.smoke, options.compile):
        if group.name in options.done:
            continue
        if time.time() > DEADLINE:
            for name in contestants(group):
                say(skipped="the time budget was spent", group=group.name, contestant=name)
            continue
        skip = set(options.skip.get(group.name, []))
        rows = network_rows if isinstance(group, Network) else layer_rows
        try:
            for row in rows(group, skip, options):  # type: ignore[operator]
                say(row=row, group=group.name)
        except Exception as error:  # in what the contestants share, or while one is timed
            print(f"{group.name}:", repr(error), file=sys.stderr)
            if context_lost():
                raise SystemExit(3) from error
            for name in (n for n in contestants(group) if n not in skip):
                say(failed=_reason(error), group=group.name, contestant=name)
        say(done=group.name)


if __name__ == "__main__":
    main()
