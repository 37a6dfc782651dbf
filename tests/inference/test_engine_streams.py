"""Captures and replays on several devices and streams, on a stand-in for `torch.cuda`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from fastscnn.inference import engine as engine_module


class Stream:
    """Work in order: what was given to it, and what of other streams it waits for."""

    def __init__(self, device: int) -> None:
        self.device = device
        self.work: list[str] = []
        self.graph: Graph | None = None  # while it captures

    def wait_stream(self, other: Stream) -> None:
        self.work += [w for w in other.work if w not in self.work]


class Graph:
    """A `torch.cuda.CUDAGraph` of which only the kernels' names are kept."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda, self.kernels = cuda, []

    def replay(self) -> None:
        stream = self.cuda.current_stream()
        stream.work.append(f"replay {sum('replay' in w for w in stream.work)}")


class Cuda:
    """Two devices; `graph` keeps a stream for captures as torch's does, unless it gets one."""

    def __init__(self) -> None:
        self.now = 0
        self.streams = [Stream(0), Stream(1)]
        self.for_captures: Stream | None = None
        self.graphs: list[Graph] = []
        self.memory_reserved = lambda: 0
        self.synchronize = self.empty_cache = lambda: None

    def current_stream(self, device: Any = None) -> Stream:
        return self.streams[self.now if device is None else device.index]

    def Stream(self, device: Any = None) -> Stream:
        return Stream(self.now if device is None else device.index)

    def CUDAGraph(self) -> Graph:
        self.graphs.append(Graph(self))
        return self.graphs[-1]

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.now = self.now, device.index
        yield
        self.now = before

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before = self.now, self.streams[stream.device]
        self.now, self.streams[stream.device] = stream.device, stream
        yield
        self.now, self.streams[stream.device] = before

    @contextmanager
    def graph(self, graph: Graph, stream: Stream | None = None, **_: Any) -> Iterator[None]:
        self.for_captures = self.for_captures or self.Stream()
        stream = stream or self.for_captures
        with self.stream(stream):
            stream.graph = graph
            yield
            stream.graph = None
        if not graph.kernels:
            warnings.warn("The CUDA Graph is empty. This usually means", stacklevel=1)

    def launch(self, x: Any) -> dict[str, Any]:
        """A kernel on the current stream of the device of `x`."""
        stream = self.current_stream(x.device)
        if stream.graph is not None:
            stream.graph.kernels.append("kernel")
        return {}


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    fake = Cuda()
    monkeypatch.setattr(torch, "cuda", fake)
    monkeypatch.setattr(torch, "empty_like", lambda x, **_: frames(x.device.index, fake))
    return fake


def frames(device: int, cuda: Cuda) -> Any:
    x = MagicMock(nbytes=0, device=torch.device("cuda", device))
    x.copy_ = lambda _: cuda.current_stream(x.device).work.append("fill the input")
    return x


def captured(compute: Callable[[Any], Any], cuda: Cuda, device: int) -> Any:
    return engine_module._Graph(compute, frames(device, cuda))


def test_every_device_captures_on_a_stream_of_its_own(cuda: Cuda) -> None:
    for device in (0, 1, 0):
        captured(cuda.launch, cuda, device)
    assert [g.kernels for g in cuda.graphs] == [["kernel"]] * 3
    assert cuda.now == 0


def test_an_empty_graph_is_refused(cuda: Cuda) -> None:
    with pytest.raises(RuntimeError, match="the capture recorded nothing"):
        captured(lambda _: {}, cuda, 0)

    def warns(x: Any) -> dict[str, Any]:
        warnings.warn("something else", DeprecationWarning, stacklevel=1)
        return cuda.launch(x)

    with pytest.warns(DeprecationWarning, match="something else"):
        captured(warns, cuda, 0)


def test_a_call_from_another_stream_waits_for_the_one_before(cuda: Cuda) -> None:
    """For its replay, which reads the input, and for what the caller did with its results."""
    graph = captured(cuda.launch, cuda, 1)
    first, second = Stream(1), Stream(1)
    with cuda.stream(first):
        graph.run(frames(1, cuda))
        first.work.append("read the results")
    with cuda.stream(second):
        graph.run(frames(1, cuda))
    before = ["fill the input", "replay 0", "read the results"]
    assert second.work == [*before, "fill the input", "replay 1"]


def test_calls_from_one_stream_wait_for_nothing(cuda: Cuda) -> None:
    graph = captured(cuda.launch, cuda, 0)
    cuda.streams[0].wait_stream = None  # type: ignore[assignment, method-assign]
    for _ in range(2):
        graph.run(frames(0, cuda))
