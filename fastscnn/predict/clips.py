"""Clips and cameras through the network: reading, segmenting, drawing and writing overlap."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastscnn.media.live import LiveReader, open_video
from fastscnn.media.outputs import FrameFolder
from fastscnn.media.video import VideoReader
from fastscnn.media.video_writer import VideoWriter
from fastscnn.predict.pipeline import Stage, overlapped

Reader = VideoReader | LiveReader
Segment = Callable[[np.ndarray], np.ndarray]
#: Draws one kind of output: kind, frame, labels -> what its sink writes.
Draw = Callable[[str, np.ndarray, np.ndarray], Any]

#: Frames under way of a live source: more would only wait, and be shown later.
LIVE_IN_FLIGHT = 3


def video(
    source: str | int | Path,
    model: Any,
    *,
    size: tuple[int, int] | None = None,
    threads: int | None = None,
    seconds: float | None = None,
    timeout: float = 10.0,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Frames of a clip, camera or URL, uint8 RGB H x W x 3 and upright, and their labels, uint8
    H x W. The next ones are read and segmented while the caller works on one.

    `size` and `threads` are those of `model.segment`. `source` 0 is the first camera; of what is
    live, frames that come too late are dropped. `seconds` ends it early; `timeout`, in seconds, is
    how long a silent source is waited for. Needs the extra `[video]`.

    Raises ValueError, OSError or ConnectionError naming what cannot be read; after the last frame
    also where the clip is truncated or the camera is gone.
    """
    reader = open_video(
        str(source) if isinstance(source, int) else source, seconds=seconds, timeout=timeout
    )
    return _labelled(reader, partial(model.segment, size=size, threads=threads))


def _labelled(reader: Reader, segment: Segment) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    network = Stage("network", lambda frame: (frame.pixels, segment(frame.pixels)))
    with reader:
        yield from overlapped(reader, [network], in_flight=_in_flight(reader), stop=reader.stop)
    if reader.cut:
        raise (ConnectionError if reader.live else ValueError)(f"{reader.name}: {reader.cut}")


def segment_clip(
    reader: Reader,
    targets: Mapping[str, Path],
    segment: Segment,
    draw: Draw,
    *,
    busy: dict[str, float] | None = None,
    note: Callable[[str], None] = print,
) -> Iterator[float]:
    """Writes the outputs `targets`, by kind, for each frame, and yields how many seconds after its
    arrival a live frame was written (0 of a file).

    Whatever happens, what was finished can be played: errors of the outputs are OSError. What is
    left out of an output is told to `note`. `busy` collects the seconds of each stage.
    """
    with reader, ExitStack() as finish:
        sinks: dict[str, VideoWriter | FrameFolder] = {}
        for kind, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            sinks[kind] = finish.enter_context(closing(_sink(kind, target, reader)))

        def drawn(item: Any) -> Any:
            frame, sound, labels = item
            return frame, sound, {k: draw(k, frame.pixels, labels) for k in sinks}

        def write(kind: str, item: Any) -> Any:
            frame, sound, pictures = item
            sinks[kind].write(pictures[kind], frame.pts, frame.duration)
            sinks[kind].write_sound(sound)
            return item

        stages = [
            Stage("network", lambda item: (*item, segment(item[0].pixels))),
            Stage("draw", drawn),
            *(Stage(f"write {kind}", partial(write, kind)) for kind in sinks),
        ]
        items = ((frame, reader.take_sound()) for frame in reader)
        for frame, _, _ in overlapped(
            items, stages, in_flight=_in_flight(reader), busy=busy, stop=reader.stop
        ):
            yield time.monotonic() - frame.arrived if reader.live else 0.0
        rest = reader.take_sound()
        for sink in sinks.values():
            sink.write_sound(rest)
            if sink.left_out:
                note(f"{sink.path}: sound in {', '.join(sink.left_out)} does not fit into an .mp4")


def _in_flight(reader: Reader) -> int | None:
    return LIVE_IN_FLIGHT if reader.live else None


def _sink(kind: str, target: Path, reader: Reader) -> VideoWriter | FrameFolder:
    if kind == "labels":
        return FrameFolder(target)
    return VideoWriter(
        target,
        reader.rate,
        time_base=reader.time_base,
        pixel_aspect=reader.pixel_aspect,
        sound=reader.sound,
    )
