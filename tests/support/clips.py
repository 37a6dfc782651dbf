"""Clips made for tests, by PyAV: every pixel, time stamp and sound packet is known."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")

RED, GREEN, BLUE = (200, 30, 20), (30, 180, 40), (20, 40, 210)
TICK = Fraction(1, 90000)


def quarters(height: int, width: int, shade: int = 128) -> np.ndarray:
    """Red, green / blue, and a grey of that shade: tells channels, turns and frames apart."""
    frame = np.zeros((height, width, 3), np.uint8)
    h, w = height // 2, width // 2
    frame[:h, :w], frame[:h, w:], frame[h:, :w], frame[h:, w:] = RED, GREEN, BLUE, shade
    return frame


def shades(count: int, height: int = 64, width: int = 96) -> list[np.ndarray]:
    return [quarters(height, width, 20 + 215 * i // max(1, count - 1)) for i in range(count)]


def corners(frame: np.ndarray) -> np.ndarray:
    """4 x 3: the middles of a frame's four quarters, by rows."""
    h, w = frame.shape[:2]
    return frame[[h // 4, h // 4, 3 * h // 4, 3 * h // 4], [w // 4, 3 * w // 4] * 2].astype(int)


def assert_close(frame: np.ndarray, expected: np.ndarray, levels: int = 8) -> None:
    """The colours of the four quarters, as far as a codec keeps them."""
    off = np.abs(corners(frame) - corners(expected))
    assert off.max() <= levels, f"{corners(frame).tolist()} is not {corners(expected).tolist()}"


def write_clip(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    rate: Fraction = Fraction(10),
    pts: Sequence[int] | None = None,
    pix_fmt: str = "yuv420p",
    sound: str = "",
    options: dict[str, str] | None = None,
) -> None:
    """H.264 of BT.601; `pts` in 1/90000 s. `sound` is the codec of as long a tone."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "10", "g": "8"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if pts is not None:
            stream.codec_context.time_base = TICK
        tone = container.add_stream(sound, rate=48000, layout="mono") if sound else None
        if tone is not None:
            tone.bit_rate = 64000
        for i, pixels in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts = i if pts is None else pts[i]
            picture.time_base = 1 / rate if pts is None else TICK
            container.mux(stream.encode(picture))
        if tone is not None:
            for start in range(0, int(48000 * len(frames) / rate), 1000):
                wave = np.sin(np.arange(start, start + 1000) / 20).astype(np.float32)[None]
                piece = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
                piece.sample_rate, piece.pts, piece.time_base = 48000, start, Fraction(1, 48000)
                container.mux(tone.encode(piece))
            container.mux(tone.encode())
        container.mux(stream.encode())


def turn(path: Path, degrees: int) -> None:
    """Writes a display rotation (clockwise) into an .mp4, as phones do: the track's matrix."""
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    one = 1 << 16
    matrix = struct.pack(">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    data = path.read_bytes()
    for tag in re.finditer(b"tkhd\0", data):  # version 0
        at = tag.start() + 4 + 40
        data = data[:at] + matrix + data[at + len(matrix) :]
    path.write_bytes(data)


def sound_packets(path: Path) -> list[tuple[float, bytes]]:
    """Times in seconds and bytes of a clip's first sound stream."""
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(audio=0) if p.size]
        return [(float(p.pts * p.time_base), bytes(p)) for p in packets]
