"""Video files as upright RGB frames with their time stamps, and their sound (extra `[video]`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts"}

#: A clip that ends this much before the end that its header states is called truncated, in seconds.
SHORT_BY = 0.5
_TRUNCATED = (
    "is truncated: the index at the end of an .mp4 is missing, as in an unfinished recording or "
    "copy; copy it again, or try to repair it"
)


def pyav() -> Any:
    """The `av` module; ImportError says how to get it."""
    try:
        import av
    except ImportError:
        raise ImportError(
            "video needs PyAV 18 or newer, for Python 3.11 or later: pip install 'fastscnn[video]'"
        ) from None
    return av


class Frame(NamedTuple):
    """An upright picture of a clip and when it is shown."""

    pixels: np.ndarray  # uint8 RGB H x W x 3
    pts: int  # in the reader's time_base, from the clip's start
    duration: int = 0  # likewise; 0 where unknown
    arrived: float = 0.0  # of a live source: time.monotonic() when it was received


class VideoReader:
    """A video file's frames, in order, once; the first `seconds` of it if given.

    `rate` is in frames/s (average), `count` 0 where unknown. `time_base` is the unit of the frames'
    `pts` in seconds, `pixel_aspect` a pixel's width by its height. `sound` holds the clip's sound
    streams; their packets, as far as they were read, are taken with `take_sound`. After the last
    frame, `damaged` is the number of packets and frames with errors and `cut` says how far a
    truncated file went, or is empty. Raises ValueError where nothing can be shown.
    """

    live = False
    dropped = reconnects = 0

    def __init__(self, path: Path, *, seconds: float | None = None) -> None:
        av = pyav()
        self.name = str(path)
        try:
            self._container = av.open(str(path), metadata_errors="replace")
        except (av.FFmpegError, OSError, ValueError) as e:
            raise ValueError(f"{path}: {_why_unreadable(path, e)}") from None
        self._stream = self._container.streams.best("video")
        if self._stream is None or self._stream.codec_context is None:
            self._container.close()
            reason = _TRUNCATED if _lacks_index(path) else "has no video that can be decoded here"
            raise ValueError(f"{path}: {reason}")
        self._stream.thread_type = "AUTO"
        self.sound: list[Any] = [s for s in self._container.streams.audio if s.codec_context]
        self.rate = Fraction(self._stream.average_rate or self._stream.guessed_rate or 25)
        self.count = int(self._stream.frames or 0)
        self.time_base = Fraction(self._stream.time_base)
        self.pixel_aspect = Fraction(self._stream.sample_aspect_ratio or 1)
        self.damaged = 0
        self.cut = ""
        self._packets: deque[Any] = deque()
        self._seconds = seconds
        self._start = Fraction(self._container.start_time or 0, 1_000_000)  # on the clip's clock
        self._frames = self._decoded()
        self._first = next(self._frames, None)
        if self._first is None:
            self._container.close()
            raise ValueError(f"{path}: no frame of it can be decoded; {self.cut or 'is it whole?'}")

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        if self._first is not None:
            first, self._first = self._first, None
            yield first
        yield from self._frames

    def take_sound(self) -> list[Any]:
        """The sound packets read since the last call."""
        return [self._packets.popleft() for _ in range(len(self._packets))]

    def stop(self) -> None:
        """Nothing to do: reading a file never waits for long."""

    def _decoded(self) -> Iterator[Frame]:
        clock = Timestamps(self.time_base, self.rate, self._start)
        for picture in self._pictures():
            pts = clock(picture.pts)
            if self._over(pts * self.time_base):
                return
            if pts == clock.first and picture.rotation % 180:
                self.pixel_aspect = 1 / self.pixel_aspect
            yield Frame(upright(picture), pts, picture.duration or 0)

    def _pictures(self) -> Iterator[Any]:
        """Decoded pictures; counts damage, and notes where the file ends too early."""
        av = pyav()
        end = self._start
        try:
            for packet in self._container.demux(self._stream, *self.sound):
                if packet.pts is not None:
                    end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
                if packet.stream is not self._stream:
                    self._keep_sound(packet)
                    continue
                try:
                    pictures = packet.decode()
                except av.FFmpegError:
                    self.damaged += 1
                    continue
                self.damaged += bool(packet.is_corrupt) or any(p.is_corrupt for p in pictures)
                yield from pictures
        except av.FFmpegError as e:  # the container itself: nothing more can be read
            self.cut = f"cannot be read beyond {float(end - self._start):.2f} s ({e.strerror})"
            return
        went, stated = end - self._start, Fraction(self._container.duration or 0, 1_000_000)
        if went < stated - Fraction(SHORT_BY):
            self.cut = (
                f"is truncated: it ends after {float(went):.2f} s of the {float(stated):.2f} s "
                "that its header states; copy it again"
            )

    def _keep_sound(self, packet: Any) -> None:
        if packet.pts is None:
            return
        start = round(self._start / packet.time_base)
        packet.pts -= start
        packet.dts = None if packet.dts is None else packet.dts - start
        if not self._over(packet.pts * packet.time_base):
            self._packets.append(packet)

    def _over(self, at: Fraction) -> bool:
        return self._seconds is not None and at >= self._seconds


class Timestamps:
    """A stream's time stamps counted from `start`, strictly rising; missing ones are made up."""

    def __init__(self, time_base: Fraction, rate: Fraction, start: Fraction) -> None:
        self.first: int | None = None
        self._start = round(start / time_base)
        self._step = max(1, round(1 / rate / time_base))
        self._last = 0

    def __call__(self, pts: int | None) -> int:
        if self.first is None:
            self.first = self._last = 0 if pts is None else pts - self._start
        elif pts is None:
            self._last += self._step
        else:
            self._last = max(self._last + 1, pts - self._start)
        return self._last


def upright(picture: Any) -> np.ndarray:
    """A decoded picture as uint8 RGB H x W x 3, turned as its display rotation says."""
    pixels: np.ndarray = picture.to_ndarray(format="rgb24")
    turns = round(picture.rotation / 90) % 4  # counterclockwise
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _why_unreadable(path: Path, error: Exception) -> str:
    if path.is_file() and path.stat().st_size == 0:
        return "is empty"
    if _lacks_index(path):
        return _TRUNCATED
    return f"cannot be read as a video ({getattr(error, 'strerror', None) or error})"


def _lacks_index(path: Path) -> bool:
    """Whether an ISO media file's boxes are sound as far as they go, but a whole `moov` is not
    among them."""
    if not path.is_file() or path.suffix.lower() not in {".mp4", ".mov", ".m4v"}:
        return False
    size, kinds = path.stat().st_size, []
    with path.open("rb") as file:
        at = 0
        while at + 8 <= size:
            file.seek(at)
            head = file.read(16)
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if length == 1:
                length = int.from_bytes(head[8:16], "big")
            at += length
            if length < 8 or (kind == b"moov" and at > size):
                break
            kinds.append(kind)
    return kinds[:1] == [b"ftyp"] and b"moov" not in kinds
