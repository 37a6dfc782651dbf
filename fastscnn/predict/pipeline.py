"""Stages that work on different frames at the same time: in threads, in order, bounded."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

_END = object()


class Stage(NamedTuple):
    """What every frame goes through, one after the other."""

    name: str
    function: Callable[[Any], Any]


def overlapped(
    items: Iterable[Any],
    stages: Iterable[Stage],
    *,
    in_flight: int | None = None,
    busy: dict[str, float] | None = None,
    stop: Callable[[], None] = lambda: None,
) -> Iterator[Any]:
    """What the last stage gives for each item, in order, while the stages work on the next ones.

    `items` is iterated in a thread of its own ("read"), and so does each stage its work. At most
    `in_flight` items (default: two a thread) are between `items` and the caller. An error of
    `items` or of a stage is raised here after the results before it. When the caller stops, by
    closing the iterator or by an exception (Ctrl-C), what is under way is finished, and all threads
    have ended when control comes back; `stop` is called first, for `items` that wait. `busy`
    collects the seconds that each stage worked.
    """
    source = iter(items)
    lanes = [
        (stage, ThreadPoolExecutor(1, thread_name_prefix=f"fastscnn-{stage.name}"))
        for stage in (Stage("read", lambda _: next(source, _END)), *stages)
    ]
    limit = in_flight or 2 * len(lanes)
    busy = {} if busy is None else busy
    waiting: deque[Future[Any]] = deque()
    try:
        while True:
            while len(waiting) < limit:
                waiting.append(_submit(lanes, busy))
            result = waiting.popleft().result()
            if result is _END:
                return
            yield result
    finally:
        stop()
        for _, pool in lanes:
            pool.shutdown(wait=False, cancel_futures=True)
        for _, pool in lanes:
            pool.shutdown(wait=True)


def _submit(lanes: list[tuple[Stage, ThreadPoolExecutor]], busy: dict[str, float]) -> Future[Any]:
    """One more item on its way: each stage's thread takes its items in order and waits for the
    stage before it, which has taken them in the same order."""
    done: Future[Any] = Future()
    done.set_result(None)
    for stage, pool in lanes:
        done = pool.submit(_after, done, stage, busy)
    return done


def _after(before: Future[Any], stage: Stage, busy: dict[str, float]) -> Any:
    item = before.result()
    if item is _END:
        return item
    start = time.perf_counter()
    try:
        return stage.function(item)
    finally:
        busy[stage.name] = busy.get(stage.name, 0.0) + time.perf_counter() - start
