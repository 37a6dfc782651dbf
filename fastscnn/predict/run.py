"""One run of `fastscnn segment` over images and clips: labels, pictures, counts."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import fastscnn
from fastscnn.classes import Classes
from fastscnn.media.frames import read_image_noted
from fastscnn.media.live import open_video
from fastscnn.media.outputs import Job, draw, render, write_image
from fastscnn.media.visualize import legend
from fastscnn.network.segment import Size
from fastscnn.predict.clips import segment_clip


class Run:
    """One `segment` command: the model, its options, and what was counted on the way."""

    def __init__(self, args: argparse.Namespace) -> None:
        if args.threads:
            torch.set_num_threads(args.threads)
        self.args = args
        self.model: Any = fastscnn.load(args.weights, device=args.device)
        card = self.model.card
        self.classes = Classes.for_count(
            self.model.num_classes, card.classes if card else (), card.colors if card else ()
        )
        self.counts = np.zeros(256, np.int64)
        self.notes: Counter[str] = Counter()
        self.sizes: set[tuple[Size, Size]] = set()
        self.frames = 0
        self.seconds = 0.0  # in the network
        self.elapsed = 0.0  # from file to file

    def labels(self, frame: np.ndarray) -> np.ndarray:
        """Labels of one frame, counted and timed; the first frame of a size is announced."""
        shape = (frame.shape[0], frame.shape[1])
        size = self.model.input_size(shape, self.args.size)
        if (shape, size) not in self.sizes:
            self.sizes.add((shape, size))
            why = (
                "--size" if self.args.size else "its own size" if size == shape else "working size"
            )
            tqdm.write(
                f"frame {shape[0]}x{shape[1]} -> network input {size[0]}x{size[1]} ({why})",
                file=sys.stderr,
            )
        start = time.perf_counter()
        labels: np.ndarray = self.model.segment(frame, size=size, threads=self.args.threads)
        self.seconds += time.perf_counter() - start
        self.counts += np.bincount(labels.ravel(), minlength=256)
        self.frames += 1
        return labels

    def segment(self, job: Job) -> str:
        """Any input; the sentence to say where a clip broke off, or ""."""
        if job.is_video:
            return self.video(job)
        self.image(job)
        return ""

    def image(self, job: Job) -> None:
        start = time.perf_counter()
        frame, note = read_image_noted(Path(job.source))
        if note:
            self.notes[note] += 1
            if self.notes[note] == 1:
                tqdm.write(f"{job.source}: {note} (further ones are counted)", file=sys.stderr)
        labels = self.labels(frame)
        for kind, target in job.targets.items():
            write_image(render(kind, frame, labels, self.classes, self.args.opacity), target)
        self.elapsed += time.perf_counter() - start

    def video(self, job: Job) -> str:
        """A clip, or what a camera sends; the sentence to say where it broke off, or ""."""
        args = self.args
        start, before = time.perf_counter(), self.frames
        ages: list[float] = []
        reader = open_video(job.source, seconds=args.seconds, timeout=args.timeout)
        written = segment_clip(
            reader,
            job.targets,
            self.labels,
            lambda kind, frame, labels: draw(kind, frame, labels, self.classes, args.opacity),
            note=lambda text: tqdm.write(text, file=sys.stderr),
        )
        progress = bar(written, reader.name, reader.count or None)
        try:
            with closing(written):  # type: ignore[type-var]
                for age in progress:
                    if reader.live:
                        ages.append(age)
                        progress.set_postfix_str(
                            f"latency {1e3 * age:.0f} ms, {reader.dropped} dropped"
                        )
        except KeyboardInterrupt:
            tqdm.write(f"{reader.name}: the frames so far are kept", file=sys.stderr)
            raise
        finally:
            self.elapsed += time.perf_counter() - start
            self._report(reader, self.frames - before, ages)
        if not reader.cut:
            return ""
        kept = f"the {self.frames - before} frames before are kept"
        return f"{reader.name}: {reader.cut}; {kept if self.frames > before else 'nothing is kept'}"

    def _report(self, reader: Any, frames: int, ages: list[float]) -> None:
        """What a clip or camera had beside its frames."""
        facts = []
        if reader.live and ages:
            p50, p95 = np.percentile(ages, [50, 95])
            facts += [
                f"{frames} frames, {reader.dropped} dropped as too late",
                f"latency {1e3 * p50:.0f} ms, 95 % within {1e3 * p95:.0f}",
            ]
        if reader.reconnects:
            facts.append(f"lost and found again {reader.reconnects} time(s)")
        if reader.damaged:
            facts.append(f"{reader.damaged} corrupt packet(s)")
        if facts:
            tqdm.write(f"{reader.name}: {'; '.join(facts)}", file=sys.stderr)

    def summary(self) -> str:
        notes = "".join(f"{n} file(s): {note}\n" for note, n in self.notes.items() if n > 1)
        table = legend(self.counts, self.classes, color=sys.stdout.isatty())
        rates = f"{self.frames / max(self.seconds, 1e-9):.1f} fps in the network"
        if self.elapsed:
            rates += f", {self.frames / self.elapsed:.1f} fps from file to file"
        return f"{notes}{table}\n{self.frames} frame(s), {rates}"


def bar(items: Any, name: str, total: int | None) -> Any:
    return tqdm(items, name, total, unit="frame", leave=False, disable=not sys.stderr.isatty())
