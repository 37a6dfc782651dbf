"""Cameras and network streams, as they come: the newest frame counts, late ones are dropped."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastscnn.media.video import Frame, VideoReader, pyav, upright

#: Seconds before the first, second, ... attempt to reach a source again; then it is given up.
RETRIES = (0.2, 0.5, 1.0, 2.0, 4.0)
_ENDED = "the stream ended"
#: Where even a source that knows how long it is sends it as time goes by.
_AS_TIME_GOES_BY = {"rtsp", "rtsps", "rtmp", "rtmps", "udp", "tcp", "srt"}
#: How much of such a source is looked at before its first frame: 1 s, or 5 frames.
_START_SOON = {"analyzeduration": "1000000", "fpsprobesize": "5"}


def is_live(text: str) -> bool:
    """Whether an input is a URL, a camera's device, or a camera's number that is no file's name."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        return True
    return text.startswith("/dev/video") or (text.isdigit() and not Path(text).exists())


def shown(source: str) -> str:
    """The source as messages and file names may show it: without user and password."""
    return re.sub(r"(://)[^/]*@", r"\1", source)


def open_video(
    source: str | Path, *, seconds: float | None = None, timeout: float = 10.0
) -> VideoReader | LiveReader:
    """A reader of a clip, of a camera or of a URL; see `LiveReader` for the options."""
    if isinstance(source, str) and is_live(source):
        return LiveReader(source, seconds=seconds, timeout=timeout)
    return VideoReader(Path(source), seconds=seconds)


class LiveReader:
    """The frames of a camera or a network stream, until it ends, `seconds` are over or `stop`.

    A thread receives and decodes. Iterating gives the newest frame; those that nobody took in time
    are `dropped`. After an error or the end of the stream it is opened again (`reconnects`), after
    the pauses `RETRIES`; then the frames end and `cut` says why. A URL that is a finite file is
    read in full instead, nothing dropped. `timeout` is how many seconds a silent source is waited
    for.

    Frames are counted in 1/90000 s from the first; rate, sizes and rotation are the stream's.
    Raises ValueError, or ConnectionError where nothing answers, on construction.
    """

    time_base = Fraction(1, 90000)
    count = 0
    sound: tuple[Any, ...] = ()

    def __init__(self, source: str, *, seconds: float | None = None, timeout: float = 10.0) -> None:
        self.source, self.name = source, shown(source)
        self.dropped = self.reconnects = self.damaged = 0
        self.cut = ""
        self._seconds, self._timeout = seconds, timeout
        self._container = self._open()
        stream = self._video()
        self.rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
        self.pixel_aspect = Fraction(stream.sample_aspect_ratio or 1)
        #: Whether frames are dropped that come too late; a file behind a URL waits.
        self.live = self._container.duration is None or urlsplit(source).scheme in _AS_TIME_GOES_BY
        self._slot: Any = None
        self._ended = self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._receive, name="fastscnn-live", daemon=True)
        self._opened, self._started = time.monotonic(), 0.0

    def __enter__(self) -> LiveReader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._thread.join(timeout=1)  # a silent source wakes it after the time-out only

    def __iter__(self) -> Iterator[Frame]:
        last = -1
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._slot or self._ended or self._stopped, self._time_left()
                )
                if self._slot is None or self._stopped:
                    if not (self._started or self._ended or self._stopped):
                        self.cut = f"sent no picture to start with in {self._timeout:g} s"
                    return
                (picture, at, arrived), self._slot = self._slot, None
                self._changed.notify_all()
            if self._over(at):
                return
            last = max(last + 1, round(at / self.time_base))
            yield Frame(upright(picture), last, 0, arrived)

    def take_sound(self) -> list[Any]:
        """Live sources are recorded without sound."""
        return []

    def stop(self) -> None:
        """Ends the iteration, from any thread."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _receive(self) -> None:
        """The thread: decodes all, offers each frame, and reopens the source where it broke off."""
        while not self._stopped:
            reason = self._receive_once()
            if reason and not self.live and reason != _ENDED:
                self.cut = f"broke off ({reason})"
            if not reason or not self.live or not self._reopen(reason):
                break
        self._container.close()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _receive_once(self) -> str:
        """Until the stream ends; why it did, or "" where enough was received. Times go on from the
        time of reopening."""
        av = pyav()
        first: float | None = None
        stream = self._video()
        stream.thread_type = "SLICE" if self.live else "AUTO"
        try:
            for packet in self._container.demux(stream):
                try:
                    pictures = packet.decode()
                except av.InvalidDataError:
                    self.damaged += first is not None  # before the first key frame it is no damage
                    continue
                for picture in pictures:
                    arrived = time.monotonic()
                    self._started = self._started or arrived
                    at = float(picture.time) if picture.pts is not None else arrived
                    if first is None:
                        first = at - (arrived - self._started)
                    self._offer(picture, at - first, arrived)
                    if self._stopped or self._over(at - first):
                        return ""
        except (av.FFmpegError, OSError) as e:
            return e.strerror or str(e)
        return _ENDED

    def _time_left(self) -> float | None:
        """How long the next frame may take; None: until the stream ends."""
        if not self._started:
            return max(0.0, self._opened + self._timeout - time.monotonic())
        if self._seconds is None:
            return None
        return max(0.0, self._started + self._seconds - time.monotonic())

    def _over(self, at: float) -> bool:
        return self._seconds is not None and at >= self._seconds

    def _offer(self, picture: Any, at: float, arrived: float) -> None:
        with self._changed:
            if not self.live:  # a file: wait until the last frame was taken
                self._changed.wait_for(lambda: self._slot is None or self._stopped)
            self.dropped += self._slot is not None
            self._slot = (picture, at, arrived)
            self._changed.notify_all()

    def _reopen(self, reason: str) -> bool:
        self._container.close()
        broken = time.monotonic()
        for pause in RETRIES:
            with self._changed:
                if self._changed.wait_for(lambda: self._stopped, timeout=pause):
                    return False
            try:
                self._container = self._open()
                self._video()
            except (OSError, ValueError):
                continue
            self.reconnects += 1
            return True
        self.cut = (
            f"is gone ({reason}) and did not come back in {time.monotonic() - broken:.0f} s: "
            f"{len(RETRIES)} attempts"
        )
        return False

    def _video(self) -> Any:
        stream = self._container.streams.best("video")
        if stream is None:
            self._container.close()
            raise ValueError(f"{self.name}: sends no video")
        return stream

    def _open(self) -> Any:
        """The opened container; names the time-out, and what can be done."""
        av = pyav()
        device = self.source.isdigit() or self.source.startswith("/dev/")
        if self.source.isdigit() and not sys.platform.startswith("linux"):
            raise ValueError(f"camera {self.source}: numbers name cameras on Linux; give a URL")
        url = f"/dev/video{self.source}" if self.source.isdigit() else self.source
        scheme = urlsplit(url).scheme
        options = dict(_START_SOON) if device or scheme in _AS_TIME_GOES_BY else {}
        if scheme in ("rtsp", "rtsps"):
            options["rtsp_transport"] = "tcp"  # UDP loses packets without a word
        started = time.monotonic()
        try:
            return av.open(
                url,
                format="v4l2" if device else None,
                options=options,
                timeout=self._timeout,
                metadata_errors="replace",
            )
        except (av.FFmpegError, OSError, ValueError) as e:
            if device and not Path(url).exists():
                raise FileNotFoundError(f"{url}: there is no such camera on this machine") from None
            if time.monotonic() - started >= 0.9 * self._timeout:
                raise ConnectionError(
                    f"{self.name}: no answer within {self._timeout:g} s; check the address and "
                    "that the sender runs, or give it longer with --timeout"
                ) from None
            raise ConnectionError(
                f"{self.name}: cannot be opened ({getattr(e, 'strerror', None) or e}); check the "
                "address and that the sender runs"
            ) from None
