"""The one function that measures, and what is made of its rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any


def alternate(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    threads: int,
    *,
    untimed: int = 0,
    tick: Callable[[], Any] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of every round of every call; the calls take turns, so that a busy machine disturbs
    all alike.

    With one thread the clock is the CPU time of the process, which equals wall time on an idle
    machine and does not count what other processes take; with more it is wall time. Each turn may
    begin with `untimed` calls, while the idle threads of the one before stop spinning and the
    caches fill, as where one network runs alone. `tick` is called after every turn.
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
            tick()
    return seconds


def quantiles(seconds: list[float]) -> tuple[float, float, float]:
    """The 20 % quantile, the median and the 80 % quantile, in milliseconds."""
    s = sorted(seconds)
    fifth = len(s) // 5
    return 1e3 * s[fifth], 1e3 * s[len(s) // 2], 1e3 * s[-1 - fifth]
