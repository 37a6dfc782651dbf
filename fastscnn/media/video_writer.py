"""H.264 clips: frames with their time stamps, and the sound of another clip (extra `[video]`)."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from fastscnn.media.video import pyav

#: In pieces of a second while it is written; an ordinary file when closed. With the first piece
#: inside the index (no delay_moov), players would skip it in a file that nobody closed.
_PLAYABLE_WHILE_WRITTEN = {
    "movflags": "hybrid_fragmented+delay_moov",
    "use_editlist": "1",  # sound begins before 0 where its codec says so
    "frag_duration": "1000000",
    "flush_packets": "1",
}
_FRAME_DURATION = 1 << 8  # AV_CODEC_FLAG_FRAME_DURATION
_BT709, _LIMITED = 1, 1  # as ISO/IEC 23091-2 and FFmpeg number them


class VideoWriter:
    """Writes uint8 RGB frames to an H.264 .mp4; the file appears under its name on `close`.

    `rate` (frames/s) is what players show; `time_base` the unit of `pts` in seconds (default: one
    frame). `sound` are another clip's sound streams: their packets, given to `write_sound`, are
    copied; `left_out` names the codecs that an .mp4 cannot hold. The file under way can be played
    up to the last second or so, whatever happens to it. Threads may share a writer.
    """

    def __init__(
        self,
        path: Path,
        rate: Fraction,
        *,
        time_base: Fraction | None = None,
        pixel_aspect: Fraction | None = None,
        sound: Sequence[Any] = (),
    ) -> None:
        self.path, self.rate = path, rate
        self.left_out: list[str] = []
        self._time_base = time_base or 1 / rate
        self._pixel_aspect = pixel_aspect
        self._sources = sound
        self._temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
        self._container = pyav().open(
            str(self._temporary), "w", format="mp4", options=_PLAYABLE_WHILE_WRITTEN
        )
        self._video: Any = None
        self._sound: dict[int, Any] = {}
        self._frames = 0
        self._lock = threading.Lock()

    def write(self, frame: np.ndarray, pts: int | None = None, duration: int = 0) -> None:
        """uint8 H x W x 3, shown from `pts` on (default: one frame after the last), for `duration`
        (0: until the next, the last as long as the one before).

        Odd sizes lose their last row or column (4:2:0 chroma); a frame of another size than the
        first is scaled to it. Raises OSError where the file cannot be written, from then on always.
        """
        h, w = (s - s % 2 for s in frame.shape[:2])
        if min(h, w) < 2:
            raise ValueError(f"frame of {frame.shape[0]}x{frame.shape[1]}: expected at least 2x2")
        with self._writing():
            if self._video is None:
                self._start(h, w)
            picture = pyav().VideoFrame.from_ndarray(
                np.ascontiguousarray(frame[:h, :w]), format="rgb24"
            )
            picture = picture.reformat(
                *(self._video.width, self._video.height, "yuv420p"),
                **{"dst_colorspace": "ITU709", "dst_color_range": "MPEG"},
            )
            picture.pts = self._frames if pts is None else pts
            picture.time_base, picture.duration = self._time_base, duration
            self._container.mux(self._video.encode(picture))
            self._frames += 1

    def write_sound(self, packets: Iterable[Any]) -> None:
        """Packets of the streams given as `sound`, after the first frame; they stay as they are.
        Broken ones are left out."""
        av = pyav()
        with self._writing():
            for packet in packets:
                stream = self._sound.get(packet.stream_index)
                if stream is not None:
                    with suppress(av.ArgumentError, av.InvalidDataError):
                        self._container.mux(_copy(packet, stream))

    def close(self) -> None:
        """Finishes the file with the frames written so far; removes it if there are none.

        Raises OSError where its end cannot be written; what can be played is kept.
        """
        with self._lock:
            if self._container is None:
                return
            try:
                if self._frames:
                    self._container.mux(self._video.encode())
                self._container.close()
            except pyav().FFmpegError as e:
                if self._frames:
                    raise self._given_up(e) from None
            finally:
                if self._container is not None:
                    self._container = None
                    self._appear(keep=self._frames > 0)

    def _start(self, height: int, width: int) -> None:
        stream = self._container.add_stream("libx264", rate=self.rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = self._time_base
        stream.codec_context.flags |= _FRAME_DURATION
        if self._pixel_aspect:
            stream.codec_context.sample_aspect_ratio = self._pixel_aspect
        stream.codec_context.colorspace = stream.codec_context.color_primaries = _BT709
        stream.codec_context.color_trc, stream.codec_context.color_range = _BT709, _LIMITED
        stream.options = {"crf": "18", "preset": "veryfast"}
        self._video = stream
        for source in self._sources:
            try:
                self._sound[source.index] = self._container.add_stream_from_template(source)
            except ValueError:
                self.left_out.append(source.codec_context.name)
        self._container.start_encoding()
        self._container.flags |= (
            pyav().container.Flags.auto_bsf.value
        )  # ADTS sound of a .ts needs it

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One thread at a time, and none once a write failed or the file is closed."""
        with self._lock:
            if self._container is None:
                raise OSError(f"{self.path}: nothing more can be written to it")
            try:
                yield
            except pyav().FFmpegError as e:
                raise self._given_up(e) from None

    def _given_up(self, error: Any) -> OSError:
        """Ends the file where it broke off."""
        container, self._container = self._container, None
        with suppress(pyav().FFmpegError):
            container.close()
        count = _frames_in(self._temporary)
        self._appear(keep=count > 0)
        kept = f"about {count} frames are kept" if count else "nothing of it could be kept"
        reason = error.strerror or error
        return OSError(
            f"{self.path}: cannot be written ({reason}); {kept}: make room and try again"
        )

    def _appear(self, *, keep: bool) -> None:
        if keep:
            os.replace(self._temporary, self.path)
        else:
            self._temporary.unlink(missing_ok=True)


def _frames_in(path: Path) -> int:
    """Frames of a file that broke off, as far as they can be played."""
    av = pyav()
    try:
        with av.open(str(path)) as container:
            return sum(packet.size > 0 for packet in container.demux(video=0))
    except (av.FFmpegError, IndexError):
        return 0


def _copy(packet: Any, stream: Any) -> Any:
    """Muxing changes a packet, and several writers may be given the same ones."""
    copy = pyav().Packet(bytes(packet))
    copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
    copy.time_base, copy.is_keyframe = packet.time_base, packet.is_keyframe
    copy.stream = stream
    return copy
