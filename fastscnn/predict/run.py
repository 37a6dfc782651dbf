"""One run of `fastscnn segment` over images and clips: labels, pictures, counts."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import fastscnn
from fastscnn.classes import Classes
from fastscnn.media.frames import read_image_noted
from fastscnn.media.outputs import FrameFolder, Job, render, write_image
from fastscnn.media.video import VideoReader, VideoWriter
from fastscnn.media.visualize import legend
from fastscnn.network.segment import Size


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
        self.seconds = 0.0

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

    def image(self, job: Job) -> None:
        frame, note = read_image_noted(job.source)
        if note:
            self.notes[note] += 1
            if self.notes[note] == 1:
                tqdm.write(f"{job.source}: {note} (further ones are counted)", file=sys.stderr)
        labels = self.labels(frame)
        for kind, target in job.targets.items():
            write_image(render(kind, frame, labels, self.classes, self.args.opacity), target)

    def video(self, job: Job) -> None:
        reader = VideoReader(job.source)
        writers: dict[str, FrameFolder | VideoWriter] = {}
        for kind, target in job.targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            writers[kind] = (
                FrameFolder(target) if kind == "labels" else VideoWriter(target, reader.rate)
            )
        done = False
        try:
            for frame in bar(reader, job.source.name, reader.count or None):
                labels = self.labels(frame)
                for kind, writer in writers.items():
                    writer.write(render(kind, frame, labels, self.classes, self.args.opacity))
            done = True
        except KeyboardInterrupt:
            done = True
            print(f"{job.source}: the frames so far are kept", file=sys.stderr)
            raise
        finally:
            for writer in writers.values():
                writer.close(keep=done)

    def summary(self) -> str:
        fps = self.frames / self.seconds if self.seconds else 0.0
        notes = "".join(f"{n} file(s): {note}\n" for note, n in self.notes.items() if n > 1)
        table = legend(self.counts, self.classes, color=sys.stdout.isatty())
        return f"{notes}{table}\n{self.frames} frame(s), {fps:.1f} fps in the network"


def bar(items: Any, name: str, total: int | None) -> Any:
    return tqdm(items, name, total, unit="frame", leave=False, disable=not sys.stderr.isatty())
