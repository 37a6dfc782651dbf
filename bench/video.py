"""A clip from file to file beside its stages alone: how well reading, network, drawing and
encoding overlap.

    python bench/video.py [CLIP] [--size 360x720] [--rounds 5]

Each round measures every stage alone on all frames (wall time and the process's CPU time, which
counts the threads of decoder, network and encoder), then the clip through `segment_clip`. What it
could take at best is the larger of the slowest stage and the stages' summed CPU time over the
cores. Without CLIP a drawn street of 640x1280 is driven through.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

import fastscnn
from fastscnn.arguments import size as parse_size
from fastscnn.media.demo import street_scene
from fastscnn.media.outputs import draw
from fastscnn.media.video import VideoReader
from fastscnn.media.video_writer import VideoWriter
from fastscnn.predict.clips import segment_clip
from fastscnn.service.workers import cores

FRAMES = 150


def drive(path: Path) -> None:
    """The camera moves into a street, swaying a little."""
    street = Image.fromarray(street_scene(1024, 2048))
    writer = VideoWriter(path, Fraction(30))
    for i in range(FRAMES):
        scale = 0.95 - 0.3 * i / FRAMES
        w, h = street.width * scale, street.height * scale
        x = (street.width - w) / 2 + 20 * np.sin(i / 7)
        y = (street.height - h) / 2 + 10 * np.sin(i / 5)
        view = street.resize((1280, 640), Image.Resampling.BICUBIC, (x, y, x + w, y + h))
        writer.write(np.asarray(view))
    writer.close()


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def encode(path: Path, pictures: Iterable[np.ndarray], rate: Fraction) -> None:
    writer = VideoWriter(path, rate)
    for picture in pictures:
        writer.write(picture)
    writer.close()


def rounds(clip: Path, size: tuple[int, int], count: int) -> tuple[dict[str, list], int]:
    """Wall and CPU seconds of each stage and of the whole, by round; and the number of frames."""
    model = fastscnn.load(device="cpu")
    segment: Callable[[np.ndarray], np.ndarray] = lambda f: model.segment(f, size=size)  # noqa: E731
    shown: Callable[..., np.ndarray] = lambda *x: draw(*x, fastscnn.CAMVID, 0.5)  # noqa: E731
    with VideoReader(clip) as reader:
        frames, rate = [f.pixels for f in reader], reader.rate
    labels = [segment(f) for f in frames]
    pictures = [shown("overlay", *pair) for pair in zip(frames, labels, strict=True)]
    out = clip.with_name("bench_out.mp4")
    work: dict[str, Callable[[], object]] = {
        "read": lambda: sum(1 for _ in VideoReader(clip)),
        "network": lambda: [segment(f) for f in frames],
        "draw": lambda: [shown("overlay", *x) for x in zip(frames, labels, strict=True)],
        "write": lambda: encode(out, pictures, rate),
        "file to file": lambda: sum(
            1 for _ in segment_clip(VideoReader(clip), {"overlay": out}, segment, shown)
        ),
    }
    taken: dict[str, list] = {name: [] for name in work}
    for _ in range(count):
        for name, job in work.items():
            taken[name].append(timed(job))
    out.unlink()
    return taken, len(frames)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("clip", nargs="?", type=Path)
    parser.add_argument("--size", type=parse_size, default=(360, 720))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clip = args.clip or Path(folder) / "drive.mp4"
        if args.clip is None:
            drive(clip)
        taken, frames = rounds(clip, args.size, args.rounds)
    whole = taken.pop("file to file")
    print(f"{frames} frames, {args.rounds} rounds, {cores()} cores; ms a frame, medians")
    print("| stage | alone | CPU |\n| --- | --- | --- |")
    for name, values in {**taken, "file to file": whole}.items():
        wall, cpu = (1e3 * statistics.median(v) / frames for v in zip(*values, strict=True))
        print(f"| {name} | {wall:.1f} | {cpu:.1f} |")
    ratios = []
    for i, (wall, _) in enumerate(whole):
        stages = [values[i] for values in taken.values()]
        best = max(*(w for w, _ in stages), sum(c for _, c in stages) / cores())
        ratios.append(wall / best)
    print("file to file / best possible, by round:", " ".join(f"{r:.2f}" for r in ratios))


if __name__ == "__main__":
    main()
