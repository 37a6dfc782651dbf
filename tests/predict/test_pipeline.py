"""Stages in threads: order, bounds, overlap, errors, and the end of all threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from fastscnn.predict.pipeline import Stage, overlapped


def threads() -> set[str]:
    return {t.name for t in threading.enumerate() if t.name.startswith("fastscnn-")}


def test_results_come_in_order_and_threads_end() -> None:
    stages = [Stage("double", lambda x: 2 * x), Stage("text", str)]
    busy: dict[str, float] = {}
    assert list(overlapped(range(50), stages, busy=busy)) == [str(2 * x) for x in range(50)]
    assert set(busy) == {"read", "double", "text"}
    assert not threads()


def test_no_items_give_no_results() -> None:
    assert list(overlapped([], [Stage("double", lambda x: 2 * x)])) == []


def test_stages_work_at_the_same_time() -> None:
    """Three stages of 10 ms each: 20 items take little more than 20 times 10 ms, not 30."""

    def wait(x: int) -> int:
        time.sleep(0.01)
        return x

    busy: dict[str, float] = {}
    start = time.perf_counter()
    list(overlapped(range(20), [Stage(name, wait) for name in "abc"], busy=busy))
    elapsed = time.perf_counter() - start
    assert all(busy[name] >= 0.2 for name in "abc")
    assert elapsed < 0.7 * sum(busy.values())


def test_few_items_are_under_way() -> None:
    """A slow caller holds up the source; without bounds it would be read to its end."""
    read = 0

    def source() -> Iterator[int]:
        nonlocal read
        for x in range(1, 101):
            read = x
            yield x

    with closing(overlapped(source(), [Stage("same", lambda x: x)], in_flight=3)) as results:
        for taken in range(1, 6):
            assert next(results) == taken
            time.sleep(0.01)
            assert taken <= read <= taken + 3
    assert read < 10


@pytest.mark.parametrize("where", ["source", "first", "last"])
def test_errors_come_after_the_results_before_them(where: str) -> None:
    def fail(x: int, here: str) -> int:
        if x == 7 and here == where:
            raise ValueError("seven")
        return x

    source = (fail(x, "source") for x in range(20))
    stages = [Stage(name, lambda x, name=name: fail(x, name)) for name in ("first", "last")]
    results = overlapped(source, stages)
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(ValueError, match="seven"):
        next(results)
    assert not threads()


def test_stopping_wakes_a_source_that_waits() -> None:
    """As a camera that sends nothing."""
    stopped = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        stopped.wait(60)

    start = time.perf_counter()
    with closing(overlapped(source(), [Stage("same", lambda x: x)], stop=stopped.set)) as results:
        assert next(results) == 1
    assert time.perf_counter() - start < 50
    assert not threads()
