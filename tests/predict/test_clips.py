"""`fastscnn segment` and `fastscnn.video` on clips: what comes out by value, and how it ends."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from clips import assert_close, shades, sound_packets, turn, write_clip
from PIL import Image

import fastscnn
from fastscnn.cli import main
from fastscnn.media.demo import street_scene
from fastscnn.media.video import VideoReader

SCENE = street_scene(96, 128)
SIZE = (64, 96)
OPTIONS = ["--size", "64x96"]


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    path = tmp_path / "drive.mp4"
    frames = [np.roll(SCENE, 4 * i, axis=1) for i in range(12)]
    write_clip(path, frames, pts=[9000 * i + 4000 * (i > 5) for i in range(12)], sound="aac")
    return path


def frames_of(path: Path) -> list[np.ndarray]:
    with VideoReader(path) as reader:
        return [frame.pixels for frame in reader]


def errors(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("fastscnn: error: ")]


def test_video_gives_each_frame_and_its_labels(drive: Path) -> None:
    model = fastscnn.load()
    pairs = list(fastscnn.video(str(drive), model, size=SIZE))
    expected = frames_of(drive)
    assert len(pairs) == len(expected) == 12
    for (frame, labels), true in zip(pairs, expected, strict=True):
        np.testing.assert_array_equal(frame, true)
        np.testing.assert_array_equal(labels, model.segment(true, size=SIZE))
    assert len(list(fastscnn.video(drive, model, size=SIZE, seconds=0.35))) == 4


def test_a_loop_over_video_may_stop_anywhere(drive: Path) -> None:
    model = fastscnn.load()
    for frame, labels in fastscnn.video(drive, model, size=SIZE):
        assert frame.shape[:2] == labels.shape
        break
    assert not [t for t in threading.enumerate() if t.name.startswith("fastscnn-")]
    with pytest.raises(ValueError, match=r"missing\.mp4: .*No such file"):
        fastscnn.video("missing.mp4", model)


def test_video_of_a_truncated_clip_ends_with_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    write_clip(path, shades(60))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    seen = 0
    with pytest.raises(ValueError, match=r"a\.mkv: is truncated"):  # noqa: PT012
        for _ in fastscnn.video(path, fastscnn.load(), size=SIZE):
            seen += 1
    assert seen > 10


def test_all_kinds_of_a_clip(
    drive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels exactly, pictures as far as H.264 keeps them, times and sound as they were."""
    out = tmp_path / "out"
    kinds = ["--overlay", "--labels", "--color", "--opacity", "0.5"]
    assert main(["segment", str(drive), "-o", str(out), *kinds, *OPTIONS]) == 0
    shown = capsys.readouterr().out
    rates = r"^12 frame\(s\), [\d.]+ fps in the network, [\d.]+ fps from file to file$"
    assert re.search(rates, shown, re.M)
    model = fastscnn.load()
    overlays, colors = (frames_of(out / f"drive_{k}.mp4") for k in ("overlay", "color"))
    source = frames_of(drive)
    assert len(overlays) == len(colors) == len(source) == 12
    for i, frame in enumerate(source):
        labels = model.segment(frame, size=SIZE)
        with Image.open(out / "drive_labels" / f"{i:06d}.png") as im:
            np.testing.assert_array_equal(np.array(im), labels)
        pairs = [
            (overlays[i], fastscnn.overlay(frame, labels, fastscnn.CAMVID)),
            (colors[i], fastscnn.colorize(labels, fastscnn.CAMVID)),
        ]
        for got, expected in pairs:
            assert np.abs(got.astype(int) - expected).mean() < 9
    for kind in ("overlay", "color"):
        with VideoReader(drive) as a, VideoReader(out / f"drive_{kind}.mp4") as b:
            times = [[f.pts * r.time_base for f in r] for r in (a, b)]
        assert times[0] == times[1]
        assert times[0][6] - times[0][5] > times[0][5] - times[0][4]
        assert sound_packets(out / f"drive_{kind}.mp4") == sound_packets(drive)
    assert sorted(p.name for p in out.iterdir()) == [
        *("drive_color.mp4", "drive_labels", "drive_overlay.mp4")
    ]


def test_a_portrait_clip_stays_upright(tmp_path: Path) -> None:
    frames = shades(3)
    write_clip(tmp_path / "a.mp4", frames)
    turn(tmp_path / "a.mp4", 90)
    out = tmp_path / "out.mp4"
    options = ["--opacity", "0", *OPTIONS]
    assert main(["segment", str(tmp_path / "a.mp4"), "-o", str(out), *options]) == 0
    for got, frame in zip(frames_of(out), frames, strict=True):
        assert got.shape == (96, 64, 3)
        assert_close(got, np.rot90(frame, -1))


def test_seconds_of_a_clip(drive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.mp4"
    options = ["-o", str(out), "--seconds", "0.45", *OPTIONS]
    assert main(["segment", str(drive), *options]) == 0
    assert len(frames_of(out)) == 5
    with pytest.raises(SystemExit):
        main(["segment", str(drive), "-o", str(out), "--seconds", "0"])
    assert "'0': expected seconds, more than 0" in capsys.readouterr().err


def test_a_truncated_clip_is_done_as_far_as_it_goes_and_named(
    drive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "cut.mkv"
    write_clip(cut, shades(60))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    out = tmp_path / "out"
    assert main(["segment", str(cut), str(drive), "-o", str(out), *OPTIONS]) == 1
    written = len(frames_of(out / "cut_overlay.mp4"))
    (line,) = errors(capsys.readouterr().err)
    assert "cut.mkv: is truncated: it ends after " in line
    assert line.endswith(f"the {written} frames before are kept")
    assert len(frames_of(out / "drive_overlay.mp4")) == 12


def test_corrupt_packets_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.ts"
    write_clip(path, shades(40), sound="aac")
    data, rng = bytearray(path.read_bytes()), np.random.default_rng(3)
    for start in rng.integers(len(data) // 4, len(data) - 600, 8):  # pictures and sound
        data[start : start + 600] = rng.bytes(600)
    path.write_bytes(data)
    assert main(["segment", str(path), "-o", str(tmp_path / "out.mp4"), *OPTIONS]) == 0
    assert re.search(r"a\.ts: [1-9]\d* corrupt packet", capsys.readouterr().err)
    assert len(frames_of(tmp_path / "out.mp4")) > 20


def test_broken_clips_leave_what_was_there(
    drive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shorter clip leaves no frames of a longer one, a broken one touches nothing."""
    labels = tmp_path / "out" / "drive_labels"
    options = ["-o", str(tmp_path / "out"), "--labels", "--force", *OPTIONS]
    for count in (4, 2):
        write_clip(drive, shades(count))
        assert main(["segment", str(drive), *options]) == 0
        labels.joinpath("notes.txt").touch()
    assert sorted(p.name for p in labels.iterdir()) == ["000000.png", "000001.png", "notes.txt"]
    drive.write_bytes(b"broken")
    assert main(["segment", str(drive), *options]) == 2
    assert len(errors(capsys.readouterr().err)) == 1
    assert len(list(labels.glob("*.png"))) == 2
    assert not list(labels.parent.glob(".*"))


@pytest.mark.parametrize("kind", ["overlay", "labels"])
def test_a_full_disk_is_one_sentence_and_loses_nothing(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    source, out = tmp_path / "a.mp4", tmp_path / "out"
    write_clip(source, [rng.integers(0, 256, (64, 96, 3), np.uint8) for _ in range(80)])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if kind == "labels":  # single files are small: the eleventh fails
        save, count = Image.Image.save, iter(range(10))
        monkeypatch.setattr(
            Image.Image,
            "save",
            lambda *a, **k: save(*a, **k) if next(count, None) is not None else full(),
        )
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        code = main(["segment", str(source), "-o", str(out), f"--{kind}", *OPTIONS])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2
    (line,) = errors(capsys.readouterr().err)
    assert f"a_{kind}" in line
    assert "cannot be written" in line
    assert "make room and try again" in line
    if kind == "labels":
        assert len(list((out / "a_labels").iterdir())) == 10
    else:
        assert 10 <= len(frames_of(out / "a_overlay.mp4")) < 80
    assert not list(out.glob(".*"))


def full() -> None:
    raise OSError(28, "No space left on device")


def test_ctrl_c_leaves_a_playable_clip(tmp_path: Path) -> None:
    source, out = tmp_path / "long.mp4", tmp_path / "out.mp4"
    write_clip(source, [SCENE] * 1000)
    process = subprocess.Popen(
        [sys.executable, "-m", "fastscnn", "segment", str(source), "-o", str(out), *OPTIONS],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
        # a test run in the background ignores SIGINT, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if any(p.stat().st_size > 1000 for p in tmp_path.glob(".out.*")):
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the frames so far are kept" in err
    assert "Traceback" not in err
    assert 1 <= len(frames_of(out)) < 1000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["long.mp4", "out.mp4"]
