"""Video files in and out through PyAV (extra `[video]`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg"}


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise ImportError("video files need PyAV: pip install 'fastscnn[video]'") from None
    return av


class VideoReader:
    """Frames of a video as uint8 RGB H x W x 3; `rate` in frames/s, `count` 0 where unknown."""

    def __init__(self, path: Path) -> None:
        av = _av()
        try:
            self._container = av.open(str(path))
            self._stream = self._container.streams.video[0]
        except (av.FFmpegError, IndexError, OSError) as e:
            raise ValueError(f"{path}: cannot be read as a video ({e})") from None
        self.path = path
        self.rate = Fraction(self._stream.average_rate or 25)
        self.count = int(self._stream.frames or 0)

    def __iter__(self) -> Iterator[np.ndarray]:
        av = _av()
        try:
            with self._container:
                for frame in self._container.decode(self._stream):
                    yield frame.to_ndarray(format="rgb24")
        except av.FFmpegError as e:
            raise ValueError(f"{self.path}: broken video data ({e})") from None


class VideoWriter:
    """Writes uint8 RGB frames to an H.264 mp4; the file appears under its name on `close`."""

    def __init__(self, path: Path, rate: Fraction) -> None:
        self.path, self.rate = path, rate
        self._temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
        self._container = _av().open(str(self._temporary), "w", format="mp4")
        self._stream: Any = None

    def write(self, frame: np.ndarray | Image.Image) -> None:
        """uint8 H x W x 3; odd sizes lose their last row or column (4:2:0 chroma)."""
        frame = np.asarray(frame)
        h, w = (s - s % 2 for s in frame.shape[:2])
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self.rate)
            self._stream.width, self._stream.height = w, h
            self._stream.pix_fmt = "yuv420p"
            self._stream.options = {"crf": "18", "preset": "veryfast"}
        picture = _av().VideoFrame.from_ndarray(np.ascontiguousarray(frame[:h, :w]), format="rgb24")
        self._container.mux(self._stream.encode(picture))

    def close(self, *, keep: bool = True) -> None:
        """Finishes the file with the frames written so far; removes it if empty or not kept."""
        keep = keep and self._stream is not None
        if keep:
            self._container.mux(self._stream.encode())
        self._container.close()
        if keep:
            os.replace(self._temporary, self.path)
        else:
            self._temporary.unlink(missing_ok=True)
