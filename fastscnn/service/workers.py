"""Threads that turn the bytes of a picture into an answer: decode, network, encode."""

from __future__ import annotations

import copy
import io
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

import fastscnn
from fastscnn.arguments import is_out_of_memory
from fastscnn.classes import Classes
from fastscnn.media.frames import ImageError, TooManyPixels, UnknownFormat, decode_image
from fastscnn.media.outputs import render
from fastscnn.network.segment import Size
from fastscnn.service.limits import Refusal

#: What Pillow may open here: fewer formats, fewer decoders to trust.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
#: A progressive JPEG of a few bytes can ask for any number of passes over all of its pixels.
MAX_SCANS = 100
#: zlib levels: a label map shrinks well in a moment; an overlay hardly shrinks, however long.
COMPRESS = {"labels": 3, "color": 3, "overlay": 1}


@dataclass(frozen=True)
class Answer:
    """Of one picture: its size, pixels by label, the PNG asked for, seconds by stage."""

    size: Size
    counts: np.ndarray
    png: bytes | None
    seconds: dict[str, float]


class Workers:
    """A pool of threads, each with a model of its own on a CPU; on a GPU they share one.

    On a CPU `count` workers of one thread each serve more pictures than one with all cores: decode
    and encode keep one core only. A picture that is alone is given the threads of the others.
    Frames of equal size are not batched: on a CPU a batch takes as long as its frames one by one.
    """

    def __init__(
        self,
        weights: str,
        *,
        device: str | None = None,
        threads: int | None = None,
        size: Size | None = None,
        count: int | None = None,
        max_pixels: int,
    ) -> None:
        self.threads = threads or 1
        self.count = count or max(1, cores() // self.threads)
        self._size, self._max_pixels = size, max_pixels
        model: Any = fastscnn.load(weights, device=device)
        if size is not None:
            model.input_size(size, size)  # raises where it cannot be
        self.classes = Classes.for_count(model.num_classes, model.card.classes, model.card.colors)
        self.device = next(model.parameters()).device
        #: A worker takes one and puts it back.
        self._models: SimpleQueue[Any] = SimpleQueue()
        for _ in range(self.count):
            own = copy.deepcopy(model) if self.device.type == "cpu" else model
            own.segment(np.zeros((64, 64, 3), np.uint8), size=(64, 64), threads=self.threads)
            self._models.put(own)
        self._pool = ThreadPoolExecutor(
            self.count, "segment", torch.set_num_threads, (self.threads,)
        )

    def submit(self, data: bytes, output: str, opacity: float) -> Future[Answer]:
        """An answer, or Refusal, in a while; `output` is a kind of picture, or "shares"."""
        return self._pool.submit(self._answer, data, output, opacity, time.perf_counter())

    def close(self) -> None:
        """Waits for what is under way."""
        self._pool.shutdown()

    def _answer(self, data: bytes, output: str, opacity: float, submitted: float) -> Answer:
        times = [submitted, time.perf_counter()]
        model = self._models.get()
        try:
            frame = self._decode(data)
            times.append(time.perf_counter())
            labels = self._labels(model, frame)
            times.append(time.perf_counter())
            png = None
            if output != "shares":
                picture = render(output, frame, labels, self.classes, opacity)
                file = io.BytesIO()
                picture.save(file, "PNG", compress_level=COMPRESS[output])
                png = file.getvalue()
            counts = np.bincount(labels.ravel(), minlength=256)
            times.append(time.perf_counter())
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            raise Refusal(
                503, "out of memory for this picture: send a smaller one", retry_after=1
            ) from None
        finally:
            self._models.put(model)
        stages = ("wait", "decode", "network", "encode")
        seconds = {s: b - a for s, a, b in zip(stages, times[:-1], times[1:], strict=True)}
        return Answer((frame.shape[0], frame.shape[1]), counts, png, seconds)

    def _decode(self, data: bytes) -> np.ndarray:
        if not data:
            raise Refusal(422, "the picture is empty: expected the bytes of an image file")
        if data[:2] == b"\xff\xd8" and data.count(b"\xff\xda") > MAX_SCANS:
            raise Refusal(422, f"a JPEG of more than {MAX_SCANS} scans: save it as a baseline JPEG")
        try:
            return decode_image(
                io.BytesIO(data), "the picture", formats=FORMATS, max_pixels=self._max_pixels
            )[0]
        except UnknownFormat:
            known = ", ".join(FORMATS[:-1]) + f" or {FORMATS[-1]}"
            raise Refusal(415, f"not a picture of a format known here: expected {known}") from None
        except TooManyPixels as error:
            raise Refusal(413, str(error)) from None
        except ImageError as error:
            raise Refusal(422, str(error)) from None

    def _labels(self, model: Any, frame: np.ndarray) -> np.ndarray:
        shape = (frame.shape[0], frame.shape[1])
        try:
            size = model.input_size(shape, self._size)
        except ValueError as error:
            raise Refusal(422, str(error)) from None
        if size[0] * size[1] > self._max_pixels:
            raise Refusal(
                422,
                f"a picture of {shape[0]}x{shape[1]} would be scaled to {size[0]}x{size[1]}: send "
                "one that is less narrow",
            )
        busy = max(1, self.count - self._models.qsize())
        threads = self.threads * max(1, self.count // busy)  # who is alone may have all of them
        labels: np.ndarray = model.segment(frame, size=size, threads=threads)
        return labels


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
