"""Video files by value: colours, sizes, times, rotation, sound, and what is broken."""

from __future__ import annotations

import re
import resource
from collections import deque
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clips import TICK, assert_close, quarters, shades, sound_packets, turn, write_clip

from fastscnn.media.video import VideoReader
from fastscnn.media.video_writer import VideoWriter


def read(path: Path, seconds: float | None = None) -> tuple[VideoReader, list[np.ndarray]]:
    with VideoReader(path, seconds=seconds) as reader:
        return reader, [frame.pixels for frame in reader]


def times(path: Path) -> list[float]:
    with VideoReader(path) as reader:
        return [float(frame.pts * reader.time_base) for frame in reader]


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv420p10le", "yuv422p"])
def test_red_is_red_in_every_pixel_format(tmp_path: Path, pix_fmt: str) -> None:
    frames = shades(3)
    write_clip(tmp_path / "a.mp4", frames, pix_fmt=pix_fmt)
    _, got = read(tmp_path / "a.mp4")
    assert len(got) == 3
    for frame, expected in zip(got, frames, strict=True):
        assert frame.dtype == np.uint8
        assert_close(frame, expected)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    frames = shades(12)
    writer = VideoWriter(tmp_path / "a.mp4", Fraction(25))
    for frame in frames:
        writer.write(frame)
    assert not (tmp_path / "a.mp4").exists()
    writer.close()
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    reader, got = read(tmp_path / "a.mp4")
    assert (len(got), reader.count, reader.rate, reader.damaged, reader.cut) == (12, 12, 25, 0, "")
    for frame, expected in zip(got, frames, strict=True):
        assert_close(frame, expected)


def test_odd_sizes_lose_their_last_row_and_column(tmp_path: Path) -> None:
    """97x129 is written as 96x128, nothing scaled: 4:2:0 halves both sides."""
    frame = quarters(96, 128)
    odd = np.full((97, 129, 3), 255, np.uint8)
    odd[:96, :128] = frame
    writer = VideoWriter(tmp_path / "a.mp4", Fraction(10))
    writer.write(odd)
    writer.close()
    _, (got,) = read(tmp_path / "a.mp4")
    assert got.shape == (96, 128, 3)
    assert_close(got, frame)
    assert np.abs(got[-1].astype(int) - frame[-1]).max() < 60  # no white crept in
    write_clip(tmp_path / "b.mp4", [odd], pix_fmt="yuv444p")
    assert read(tmp_path / "b.mp4")[1][0].shape == (97, 129, 3)


def test_a_frame_of_another_size_is_scaled_and_a_tiny_one_refused(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", Fraction(10))
    writer.write(quarters(64, 96))
    writer.write(quarters(128, 192))
    with pytest.raises(ValueError, match="frame of 1x96: expected at least 2x2"):
        writer.write(np.zeros((1, 96, 3), np.uint8))
    writer.close()
    for frame in read(tmp_path / "a.mp4")[1]:
        assert_close(frame, quarters(64, 96))


@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(24000, 1001), Fraction(15, 2)])
def test_rates_are_exact(tmp_path: Path, rate: Fraction) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", rate)
    for frame in shades(31):
        writer.write(frame)
    writer.close()
    assert VideoReader(tmp_path / "a.mp4").rate == rate
    assert times(tmp_path / "a.mp4")[-1] == pytest.approx(float(30 / rate), abs=1e-4)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_times_of_a_variable_rate_stay(tmp_path: Path, suffix: str) -> None:
    """Frames at 0, 0.1, 0.5, 0.6, 1.9 s, in the file read and in one written from it."""
    at = [0.0, 0.1, 0.5, 0.6, 1.9]
    write_clip(tmp_path / f"a{suffix}", shades(5), pts=[round(90000 * t) for t in at])
    assert times(tmp_path / f"a{suffix}") == pytest.approx(at, abs=1.1e-3)
    with VideoReader(tmp_path / f"a{suffix}") as reader:
        writer = VideoWriter(tmp_path / "b.mp4", reader.rate, time_base=reader.time_base)
        for frame in reader:
            writer.write(frame.pixels, frame.pts, frame.duration)
    writer.close()
    assert times(tmp_path / "b.mp4") == pytest.approx(at, abs=1.1e-3)


def test_seconds_end_it_early(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", shades(20), sound="aac")
    reader, got = read(tmp_path / "a.mp4", seconds=0.7)
    assert len(got) == 7
    assert reader.cut == ""
    kept = reader.take_sound()
    assert 0.5 < float(kept[-1].pts * kept[-1].time_base) < 0.7


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_display_rotation_is_applied(tmp_path: Path, degrees: int) -> None:
    """What a player shows: turned clockwise by that much."""
    frame = quarters(64, 96)
    write_clip(tmp_path / "a.mp4", [frame, frame])
    turn(tmp_path / "a.mp4", degrees)
    expected = np.rot90(frame, -degrees // 90)
    for got in read(tmp_path / "a.mp4")[1]:
        assert got.shape == expected.shape
        assert_close(got, expected)


def test_pixels_that_are_not_square_stay_so_also_turned(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", Fraction(10), pixel_aspect=Fraction(4, 3))
    writer.write(quarters(64, 96))
    writer.close()
    assert VideoReader(tmp_path / "a.mp4").pixel_aspect == Fraction(4, 3)
    turn(tmp_path / "a.mp4", 90)
    assert VideoReader(tmp_path / "a.mp4").pixel_aspect == Fraction(3, 4)


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mp4", "aac"), (".mkv", "libopus"), (".ts", "aac")]
)
def test_sound_is_copied(tmp_path: Path, suffix: str, codec: str) -> None:
    """Every packet's bytes, at its time."""
    source = tmp_path / f"a{suffix}"
    write_clip(source, shades(20), sound=codec)
    with VideoReader(source) as reader:
        writer = VideoWriter(
            *(tmp_path / "b.mp4", reader.rate), time_base=reader.time_base, sound=reader.sound
        )
        for frame in reader:
            writer.write(frame.pixels, frame.pts, frame.duration)
            writer.write_sound(reader.take_sound())
        writer.write_sound(reader.take_sound())
    writer.close()
    theirs, ours = sound_packets(source), sound_packets(tmp_path / "b.mp4")
    header = 7 if suffix == ".ts" else 0  # of ADTS, which an .mp4 does without
    assert [data for _, data in ours] == [data[header:] for _, data in theirs]
    began = float(Fraction(reader._start))
    lags = [a[0] - (b[0] - began) for a, b in zip(ours, theirs, strict=True)]
    assert max(map(abs, lags)) < 0.03


def test_sound_that_an_mp4_cannot_hold_is_named(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.avi", shades(10), sound="wmav2")
    with VideoReader(tmp_path / "a.avi") as reader:
        writer = VideoWriter(tmp_path / "b.mp4", reader.rate, sound=reader.sound)
        for frame in reader:
            writer.write(frame.pixels)
            writer.write_sound(reader.take_sound())
    writer.close()
    assert writer.left_out == ["wmav2"]
    assert len(read(tmp_path / "b.mp4")[1]) == 10


def test_corrupt_packets_are_counted_and_the_others_read(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", shades(40), options={"movflags": "faststart"})
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    rng = np.random.default_rng(0)
    start = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    data[start : start + 300] = rng.bytes(300)
    (tmp_path / "b.mp4").write_bytes(data)
    reader, got = read(tmp_path / "b.mp4")
    assert 1 <= reader.damaged <= 20
    assert 20 <= len(got) < 40
    assert reader.cut == ""
    assert_close(got[0], shades(40)[0])
    assert_close(got[-1], shades(40)[-1])


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_truncated_clips_say_how_far_they_go(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (64, 96, 3), np.uint8) for _ in range(60)]
    write_clip(path, frames, options={"movflags": "faststart"} if name == "a.mp4" else {})
    assert read(path)[0].cut == ""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    reader, got = read(path)
    assert 10 < len(got) < 50
    said = re.search(r"is truncated: it ends after ([\d.]+) s of the 6\.00 s", reader.cut)
    assert said, reader.cut
    assert float(said[1]) == pytest.approx(len(got) / 10, abs=0.4)


def test_unreadable_clips_say_why(tmp_path: Path) -> None:
    whole = tmp_path / "whole.mp4"
    write_clip(whole, shades(10))
    for name, data, words in (
        ("empty.mp4", b"", "is empty"),
        ("index.mp4", whole.read_bytes()[:-500], "index at the end of an .mp4 is missing"),
        ("text.mp4", b"not a video" * 100, "cannot be read as a video"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name}: .*{words}"):
            VideoReader(tmp_path / name)
    with pytest.raises(ValueError, match=r"missing\.mkv: .*No such file"):
        VideoReader(tmp_path / "missing.mkv")


def test_a_file_under_way_can_be_played(tmp_path: Path) -> None:
    """As after a crash or a power cut: nobody closes it. From its first frame on, in time."""
    write_clip(tmp_path / "source.mp4", shades(90), sound="aac")
    with VideoReader(tmp_path / "source.mp4") as source:
        writer = VideoWriter(
            tmp_path / "a.mp4", source.rate, time_base=source.time_base, sound=source.sound
        )
        for frame in source:
            writer.write(frame.pixels, frame.pts, frame.duration)
            writer.write_sound(source.take_sound())
    (under_way,) = tmp_path.glob(".a*")
    early, heard = times(under_way), sound_packets(under_way)
    writer.close()
    assert 30 <= len(early) < 90
    assert early == times(tmp_path / "a.mp4")[: len(early)]
    assert len(heard) > 100
    assert heard == sound_packets(tmp_path / "a.mp4")[: len(heard)]


def test_a_full_disk_keeps_what_was_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = VideoWriter(tmp_path / "a.mp4", Fraction(10))
    frames = [rng.integers(0, 256, (64, 96, 3), np.uint8) for _ in range(200)]
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
        words = r"a\.mp4: cannot be written \(.*large\); about (\d+) frames are kept: make room"
        with pytest.raises(OSError, match=words) as error:
            deque(map(writer.write, frames))
        with pytest.raises(OSError, match="nothing more can be written"):
            writer.write(np.zeros((64, 96, 3), np.uint8))
        writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    kept = re.search(words, str(error.value))
    assert kept is not None
    assert 10 < int(kept[1]) < 200
    assert 0 <= int(kept[1]) - len(read(tmp_path / "a.mp4")[1]) <= 8  # a piece of the last second


def test_a_disk_that_is_full_from_the_start_keeps_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = VideoWriter(tmp_path / "a.mp4", Fraction(10))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
        with pytest.raises(OSError, match="nothing of it could be kept"):
            deque(map(writer.write, shades(200)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    writer.close()
    assert not list(tmp_path.iterdir())


def test_a_writer_without_frames_leaves_nothing(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", Fraction(10), time_base=TICK)
    writer.close()
    writer.close()
    assert not list(tmp_path.iterdir())
