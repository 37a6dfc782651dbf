"""Streams as ffmpeg sends them over the loopback: late frames, silence, reconnects, time limits."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from clips import BLUE, shades, write_clip
from rtsp import RtspServer

from fastscnn.media import live
from fastscnn.media.live import LiveReader, is_live, open_video, shown
from fastscnn.media.video import VideoReader

SOURCE = "color=c=0x{:02x}{:02x}{:02x}:s=96x64:r=25".format(*BLUE)


def ffmpeg() -> str:
    return shutil.which("ffmpeg") or pytest.skip("needs ffmpeg to send a stream")


@pytest.fixture
def port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "RETRIES", (0.1, 0.2, 0.4))


class Sender:
    """ffmpeg as a camera that serves one client after the other, for some seconds each: blue
    MPEG-TS over TCP, 25 frames a second as time goes by."""

    def __init__(self, port: int) -> None:
        self._ffmpeg = ffmpeg()
        self.url = f"tcp://127.0.0.1:{port}"
        self._process: subprocess.Popen[bytes] | None = None

    def send(self, seconds: float) -> None:
        coding = "-c:v libx264 -preset ultrafast -g 5 -f mpegts"
        self._process = subprocess.Popen(
            [
                *(self._ffmpeg, "-v", "quiet", "-re", "-f", "lavfi", "-i", SOURCE),
                *("-t", str(seconds), *coding.split(), f"{self.url}?listen=1"),
            ]
        )
        self.wait_for_port()

    def wait_for_port(self) -> None:
        """Until it listens; a connection would be taken for the client's."""
        port = f"{int(self.url.rpartition(':')[2]):04X}"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
            if any(row[1].endswith(f":{port}") and row[3] == "0A" for row in rows):
                return
            time.sleep(0.02)
        pytest.fail("ffmpeg does not listen")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def sender(port: int) -> Iterator[Sender]:
    if not Path("/proc/net/tcp").exists():
        pytest.skip("needs /proc/net/tcp to see when the sender listens")
    sender = Sender(port)
    yield sender
    sender.stop()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rtsp://camera/1", True),
        ("http://host/clip.mp4", True),
        ("tcp://127.0.0.1:9", True),
        ("/dev/video0", True),
        ("0", True),
        ("clip.mp4", False),
        ("C:/clip.mp4", False),
        ("frames/0", False),
    ],
)
def test_what_is_live(text: str, expected: bool) -> None:
    assert is_live(text) is expected


def test_a_file_named_by_a_digit_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "x.mp4", shades(2))
    (tmp_path / "x.mp4").rename(tmp_path / "0")
    assert not is_live("0")
    assert isinstance(open_video("0"), VideoReader)


def test_passwords_are_not_shown() -> None:
    assert shown("rtsp://me:sec@ret@host:554/a@b") == "rtsp://host:554/a@b"
    with pytest.raises(ConnectionError) as e:
        LiveReader("rtsp://me:secret@127.0.0.1:1/cam", timeout=1)
    assert "secret" not in str(e.value)
    assert "rtsp://127.0.0.1:1/cam: cannot be opened" in str(e.value)


def test_every_frame_of_a_stream_for_whom_keeps_up(sender: Sender) -> None:
    """All but those that came before it was opened; blue, with the sender's times. Then nobody is
    there any more."""
    sender.send(1.6)
    with LiveReader(sender.url, timeout=5) as reader:
        assert reader.live
        frames = list(reader)
    assert len(frames) + reader.dropped == 40
    assert len(frames) > 15
    for frame in frames:
        assert np.abs(frame.pixels.astype(int) - BLUE).max() <= 8
    seconds = np.array([float(f.pts * reader.time_base) for f in frames])
    np.testing.assert_allclose(25 * seconds, np.round(25 * seconds), atol=0.01)
    assert 1.4 < seconds[-1] < 1.6
    assert "is gone (the stream ended) and did not come back in " in reader.cut
    assert reader.cut.endswith("3 attempts")


def test_late_frames_are_dropped_and_counted(sender: Sender) -> None:
    """Who takes 0.2 s a frame sees about one in five, and never an old one."""
    sender.send(5)
    ages = []
    with LiveReader(sender.url, seconds=1.5) as reader:
        frames = []
        for frame in reader:
            ages.append(time.monotonic() - frame.arrived)
            time.sleep(0.2)
            frames.append(frame)
    assert 4 <= len(frames) <= 9
    assert reader.dropped >= 2 * len(frames)
    assert np.median(ages) < 0.1
    assert reader.cut == ""


def test_seconds_end_a_stream(sender: Sender) -> None:
    sender.send(20)
    start = time.monotonic()
    with LiveReader(sender.url, seconds=0.6) as reader:
        frames = list(reader)
    assert time.monotonic() - start < 6
    assert 8 <= len(frames) + reader.dropped <= 40
    assert max(float(f.pts * reader.time_base) for f in frames) < 0.6


def test_a_stream_that_comes_back_goes_on(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "RETRIES", (0.2,) * 50)
    sender.send(1)
    again = threading.Timer(1.2, sender.send, [10])
    again.start()
    frames, later = [], 0
    with LiveReader(sender.url, seconds=20) as reader:
        for frame in reader:
            frames.append(frame)
            later += reader.reconnects
            if later == 10:
                break
    again.join()
    assert reader.reconnects == 1
    assert reader.cut == ""
    pts = [f.pts for f in frames]
    assert pts == sorted(set(pts))
    gaps = np.diff(pts) / 90000
    assert gaps.max() > 0.1  # while it was away


def test_rtsp_comes_over_tcp(tmp_path: Path) -> None:
    server = RtspServer(ffmpeg(), SOURCE, tmp_path)
    try:
        with LiveReader(f"rtsp://127.0.0.1:{server.port}/cam", seconds=1.2) as reader:
            frames = list(reader)
    finally:
        server.close()
    assert [r for r in server.requests if "TCP" in r] == server.requests[2:3]
    assert reader.live
    assert len(frames) > 5
    for frame in frames:
        assert np.abs(frame.pixels.astype(int) - BLUE).max() <= 8


@pytest.mark.parametrize("scheme", ["tcp", "http", "rtsp"])
def test_silence_names_the_timeout(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/x"
        start = time.monotonic()
        with pytest.raises(ConnectionError, match=r"no answer within 0\.3 s.*--timeout"):
            LiveReader(url, timeout=0.3)
        assert time.monotonic() - start < 5


def test_what_is_not_there_is_named(port: int) -> None:
    with pytest.raises(ConnectionError, match=r"cannot be opened .*refused.*sender runs"):
        LiveReader(f"tcp://127.0.0.1:{port}", timeout=2)
    with pytest.raises(FileNotFoundError, match="/dev/video63: there is no such camera"):
        LiveReader("63")
    with pytest.raises(ConnectionError, match="foo://x: cannot be opened"):
        LiveReader("foo://x")


def test_a_file_behind_a_url_is_read_in_full(tmp_path: Path) -> None:
    """However slowly it is taken, nothing is dropped, and there is nobody to come back."""
    write_clip(tmp_path / "a.mp4", shades(30), options={"movflags": "faststart"})
    handler = partial(Quiet, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.mp4"
        with LiveReader(url) as reader:
            frames = []
            for frame in reader:
                time.sleep(0.01)
                frames.append(frame)
        assert not reader.live
        assert (len(frames), reader.dropped, reader.reconnects, reader.cut) == (30, 0, 0, "")
        with VideoReader(tmp_path / "a.mp4") as whole:
            for got, expected in zip(frames, whole, strict=True):
                np.testing.assert_array_equal(got.pixels, expected.pixels)
        with pytest.raises(ConnectionError, match=r"missing\.mp4: cannot be opened .*404"):
            LiveReader(url.replace("/a", "/missing"))
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing in the tests' output."""
