"""Frames from the CPU through an engine and back, upload, compute and download overlapped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Size = tuple[int, int]
Results = dict[str, Tensor]


class Runs(Protocol):
    """What streaming needs of an engine."""

    @property
    def device(self) -> torch.device: ...

    def __call__(self, frames: Tensor, size: Size | None = None) -> Results: ...


def overlapped(
    engine: Runs, frames: Iterable[Tensor | np.ndarray], size: Size | None
) -> Iterator[Results]:
    """Results on the CPU in order; see `Engine.stream`."""
    lanes: list[_Lane] = []
    following = 0
    for frame in map(_batched, frames):
        if lanes and lanes[0].shape != frame.shape:
            yield from _drain(lanes, following)
            lanes = []
        lanes = lanes or [_Lane(engine, frame.shape, size) for _ in range(2)]
        lane = lanes[following % 2]
        if lane.busy:
            yield lane.collect()
        lane.submit(frame)
        following += 1
    yield from _drain(lanes, following)


class _Lane:
    """One of the two frames in flight in a stream, with its own buffers."""

    def __init__(self, engine: Runs, shape: torch.Size, size: Size | None) -> None:
        self.shape = shape
        self.busy = False
        self._engine, self._size = engine, size
        self._on_gpu = engine.device.type == "cuda"
        if self._on_gpu:
            self._upload, self._download = (torch.cuda.Stream(engine.device) for _ in range(2))
            self._uploaded, self._computed, self._done = (torch.cuda.Event() for _ in range(3))
            self._host = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
            self._frame = torch.empty(shape, dtype=torch.uint8, device=engine.device)
            self._device_results: Results = {}
            self._host_results: Results = {}
            with torch.cuda.device(engine.device):
                self._computed.record()  # the first upload waits for earlier users of this memory

    def submit(self, frame: Tensor) -> None:
        self.busy = True
        if not self._on_gpu:
            results = self._engine(frame, self._size)
            self._host_results = {k: t.clone() for k, t in results.items()}
            return
        self._host.copy_(frame)
        with torch.cuda.device(self._engine.device):
            compute = torch.cuda.current_stream()
            with torch.cuda.stream(self._upload):
                self._upload.wait_event(self._computed)
                self._frame.copy_(self._host, non_blocking=True)
                self._uploaded.record()
            compute.wait_event(self._uploaded)
            results = self._engine(self._frame, self._size)
            if not self._device_results:
                self._device_results = {k: torch.empty_like(t) for k, t in results.items()}
                self._host_results = {
                    k: torch.empty(t.shape, dtype=t.dtype, pin_memory=True)
                    for k, t in results.items()
                }
            for name, t in results.items():  # the next replay overwrites the engine's buffers
                self._device_results[name].copy_(t)
            self._computed.record()
            with torch.cuda.stream(self._download):
                self._download.wait_event(self._computed)
                for name, t in self._device_results.items():
                    self._host_results[name].copy_(t, non_blocking=True)
                self._done.record()

    def collect(self) -> Results:
        self.busy = False
        if not self._on_gpu:
            return self._host_results
        self._done.synchronize()
        return {k: t.clone() for k, t in self._host_results.items()}


def _drain(lanes: list[_Lane], following: int) -> Iterator[Results]:
    """What is still in flight, oldest first; `following` is the index of the next frame."""
    for i in (following, following + 1):
        if lanes and lanes[i % 2].busy:
            yield lanes[i % 2].collect()


def _batched(frame: Tensor | np.ndarray) -> Tensor:
    t = frame if isinstance(frame, Tensor) else torch.from_numpy(np.ascontiguousarray(frame))
    if t.dtype != torch.uint8 or t.device.type != "cpu":
        raise TypeError(f"stream takes uint8 CPU frames, got {t.dtype} on {t.device}")
    return t[None] if t.dim() == 3 else t
