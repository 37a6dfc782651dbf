"""How GPU benchmarks measure: events, contestants in turns, bytes on the device.

The clock is GPU time: events in one stream that the calls are queued in. Medians are of blocks of
CALLS calls between two events, free of what events cost; the 99th percentile is of single calls
between neighbouring events, SINGLES in each pass. On the CPU (to try all this) it is wall time.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

PASSES = 4
BLOCKS = 2
CALLS = 20
SINGLES = 64
ROTATED = 4
PASS_SECONDS = 0.25

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


def rates(bytes_moved: int, flops: int, floor_us: float) -> dict[str, Any]:
    return {"bytes": bytes_moved, "flops": flops, "floor_us": floor_us}
