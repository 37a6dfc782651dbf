"""What `fastscnn segment` reads and writes: inputs, their outputs' names, atomic writing."""

from __future__ import annotations

import glob
import os
import re
import shutil
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastscnn.classes import Classes
from fastscnn.media.frames import IMAGE_SUFFIXES
from fastscnn.media.live import is_live, shown
from fastscnn.media.video import VIDEO_SUFFIXES
from fastscnn.media.visualize import colorize, overlay, palette_image

KINDS = ("overlay", "labels", "color")
#: Where only `--cluster` looks for files.
BUCKETS = ("s3://", "gs://", "gcs://", "abfs://", "abfss://", "hdfs://")


@dataclass(frozen=True)
class Job:
    """One input file and the output files it gives, by kind (overlay, labels, color)."""

    source: Path | str  # str: a camera or URL
    targets: dict[str, Path]

    @property
    def is_video(self) -> bool:
        return is_video(self.source)


def is_video(source: Path | str) -> bool:
    return isinstance(source, str) or source.suffix.lower() in VIDEO_SUFFIXES


def plan_jobs(inputs: Sequence[str], out: Path, kinds: Sequence[str], *, force: bool) -> list[Job]:
    """Jobs for files, folders (not recursive), glob patterns, cameras and URLs; refuses to
    overwrite unforced.

    `out` is a folder, or a file name where there is one image and one kind.
    """
    sources = _sources(inputs)
    if out.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and not out.is_dir():
        if len(sources) != 1 or len(kinds) != 1:
            raise ValueError(
                f"-o {out} names one file, but there are {len(sources)} inputs and {len(kinds)} "
                "kinds of output; give a folder"
            )
        jobs = [Job(sources[0], {kinds[0]: out})]
        _check_file(jobs[0], kinds[0], out)
    else:
        if out.exists() and not out.is_dir():
            raise FileExistsError(f"-o {out} is a file; give a folder, or a name ending in .png")
        names = _unique_names(sources)
        jobs = [Job(s, {k: out / _target(s, n, k) for k in kinds}) for s, n in names]
    inputs_too = {s.resolve() for s in sources if isinstance(s, Path)}
    for target in (t for job in jobs for t in job.targets.values()):
        if target.resolve() in inputs_too:
            raise ValueError(f"-o {out}: {target} is an input and would be overwritten")
    existing = [t for job in jobs for t in job.targets.values() if t.exists()]
    if existing and not force:
        more = f" and {len(existing) - 1} more exist" if len(existing) > 1 else " exists"
        raise FileExistsError(f"{existing[0]}{more} already; --force overwrites")
    return jobs


def _check_file(job: Job, kind: str, out: Path) -> None:
    """Whether one kind of output of one input can be written under the name `out`."""
    suffix = out.suffix.lower()
    if job.is_video:
        if kind == "labels" or suffix != ".mp4":
            raise ValueError(
                f"-o {out}: a video becomes an .mp4, or with --labels a folder of pictures; "
                "give an .mp4 name or a folder"
            )
    elif suffix in VIDEO_SUFFIXES or (kind == "labels" and suffix != ".png"):
        expected = ".png" if kind == "labels" else "an image suffix"
        raise ValueError(f"-o {out}: the input {job.source} is an image; expected {expected}")


def _sources(inputs: Sequence[str]) -> list[Path | str]:
    known = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    found: list[Path | str] = []
    for text in inputs:
        if not text:
            raise ValueError("an input is empty: expected a file, a folder or a pattern")
        path = Path(text)
        if text.startswith(BUCKETS):
            raise ValueError(f"{text}: a bucket is for --cluster; give a file or an http(s) URL")
        if is_live(text):
            found.append(text)
        elif path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix.lower() in known and p.is_file())
            if not files:
                raise ValueError(f"{path}: no images or videos in this folder")
            found += files
        elif path.exists():
            found.append(path)
        else:
            matches = sorted(Path(p) for p in glob.glob(text, recursive=True))
            files = [p for p in matches if p.is_file()]
            if not files:
                raise FileNotFoundError(
                    f"{text}: no such file or folder, and no match as a pattern"
                )
            found += files
    return list(dict.fromkeys(found))


def _unique_names(sources: list[Path | str]) -> list[tuple[Path | str, str]]:
    """An output stem for each source: its own, with the suffix added where two would collide."""
    stems = [_stem(s) for s in sources]
    names = [
        f"{stem}_{s.suffix.lstrip('.')}" if stems.count(stem) > 1 and isinstance(s, Path) else stem
        for s, stem in zip(sources, stems, strict=True)
    ]
    for i, name in enumerate(names):
        if name in names[:i]:
            other = sources[names.index(name)]
            raise ValueError(
                f"{sources[i]} and {other} would both be written as {name}; segment them into "
                "different folders"
            )
    return list(zip(sources, names, strict=True))


def _stem(source: Path | str) -> str:
    if isinstance(source, Path):
        return source.stem
    if source.isdigit():
        return f"video{source}"
    place = shown(source).partition("://")[2] or Path(source).name
    return re.sub(r"[^A-Za-z0-9.-]+", "_", place).strip("._")


def _target(source: Path | str, name: str, kind: str) -> str:
    if not is_video(source):
        return f"{name}_{kind}.png"
    return f"{name}_{kind}" if kind == "labels" else f"{name}_{kind}.mp4"


def draw(
    kind: str, frame: np.ndarray, labels: np.ndarray, classes: Classes, opacity: float
) -> np.ndarray | Image.Image:
    """What one kind shows of a frame: uint8 RGB H x W x 3, or an indexed picture of labels."""
    if kind == "labels":
        return palette_image(labels, classes)
    if kind == "color":
        return colorize(labels, classes)
    return overlay(frame, labels, classes, opacity)


def render(
    kind: str, frame: np.ndarray, labels: np.ndarray, classes: Classes, opacity: float
) -> Image.Image:
    """`draw`, to be saved as a picture."""
    drawn = draw(kind, frame, labels, classes, opacity)
    return Image.fromarray(drawn) if isinstance(drawn, np.ndarray) else drawn


def write_image(image: Image.Image, path: Path) -> None:
    """Writes to a temporary file beside `path`, then renames: never a half-written picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        image.save(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class FrameFolder:
    """Pictures of a video as 000000.png, ...; they take an earlier run's place on `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left_out: list[str] = []  # as a VideoWriter has
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._temporary.mkdir()
        self._count = 0
        self._lock = threading.Lock()

    def write(self, picture: Image.Image, pts: int = 0, duration: int = 0) -> None:
        """One more frame; a folder keeps no times."""
        with self._lock:
            target = self._temporary / f"{self._count:06d}.png"
            try:
                picture.save(target)
            except OSError as e:
                target.unlink(missing_ok=True)
                raise OSError(
                    f"{self.path}: frame {self._count} cannot be written ({e.strerror or e}); "
                    "those before are kept: make room and try again"
                ) from None
            self._count += 1

    def write_sound(self, packets: Iterable[Any]) -> None:
        """A folder of pictures keeps no sound."""

    def close(self) -> None:
        """Puts the frames so far into the folder, unless there are none."""
        with self._lock:
            if self._count:
                self.path.mkdir(exist_ok=True)
                for old in self.path.glob("[0-9]" * 6 + "*.png"):
                    old.unlink()
                for new in self._temporary.iterdir():
                    os.replace(new, self.path / new.name)
            shutil.rmtree(self._temporary, ignore_errors=True)
