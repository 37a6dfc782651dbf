"""The `fastscnn` command: segment, demo, info, convert, quantize, train, evaluate.

Exit codes: 0 done, 1 some inputs failed, 2 wrong use or nothing done, 130 interrupted.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import fastscnn
from fastscnn.classes import Classes
from fastscnn.demo import street_scene
from fastscnn.frames import read_image_noted
from fastscnn.outputs import KINDS, FrameFolder, Job, plan_jobs, render, write_image
from fastscnn.plan import table
from fastscnn.segment import Size
from fastscnn.training.cli import add_evaluate_parser, add_train_parser
from fastscnn.video import VideoReader, VideoWriter
from fastscnn.visualize import legend

USER_ERRORS = (ValueError, TypeError, OSError, ImportError, FloatingPointError, MemoryError)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; user errors become one line on stderr and exit code 2."""
    args = _parser().parse_args(argv)
    try:
        code: int = args.run(args)
        return code
    except KeyboardInterrupt:
        print("fastscnn: interrupted", file=sys.stderr)
        return 130
    except USER_ERRORS as e:
        print(f"fastscnn: error: {_one_line(e)}", file=sys.stderr)
        return 2
    except RuntimeError as e:
        if not _is_out_of_memory(e):
            raise
        print(f"fastscnn: error: {_one_line(e)}; use a smaller --size", file=sys.stderr)
        return 2


def _is_out_of_memory(error: RuntimeError) -> bool:
    """torch raises a plain RuntimeError where the CPU's memory does not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastscnn", description=fastscnn.__doc__)
    parser.add_argument("--version", action="version", version=f"fastscnn {fastscnn.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    p = commands.add_parser("segment", help="label images, folders, globs and videos")
    p.add_argument("inputs", nargs="+", metavar="INPUT", help="image, folder, glob or video")
    p.add_argument("-o", "--out", type=Path, required=True, help="folder (or file for one image)")
    for kind, text in zip(
        KINDS,
        ("frame tinted by class (default)", "index PNG with palette", "colour map"),
        strict=True,
    ):
        p.add_argument(f"--{kind}", action="store_true", help=f"write the {text}")
    p.add_argument("--force", action="store_true", help="overwrite existing files")
    _add_model_options(p)
    p.set_defaults(run=_segment)

    p = commands.add_parser("demo", help="draw a simple street scene and segment it")
    p.add_argument("-o", "--out", type=Path, default=Path("out"), help="folder")
    _add_model_options(p)
    p.set_defaults(run=_demo)

    p = commands.add_parser("info", help="version, devices, and what runs where")
    p.add_argument("--plan", type=_size, metavar="HxW", help="kernels that a frame of HxW costs")
    p.add_argument("--batch", type=_positive, default=1, help="frames at once, for --plan")
    p.add_argument("--weights", default="camvid", help="whose network, for --plan")
    p.set_defaults(run=_info)

    p = commands.add_parser("convert", help="translate a checkpoint")
    p.add_argument("source", metavar="IN", help="checkpoint file or shipped name")
    p.add_argument("target", type=Path, metavar="OUT")
    p.add_argument("--to", default="fastscnn", help="layout of OUT (default: our safetensors)")
    p.add_argument("--force", action="store_true", help="overwrite an existing file")
    p.set_defaults(run=_convert)

    p = commands.add_parser("quantize", help="calibrate a checkpoint for int8 on CPUs")
    p.add_argument("images", type=Path, metavar="IMAGES", help="folder of images to calibrate on")
    p.add_argument("-o", "--out", type=Path, required=True, help="checkpoint (.safetensors)")
    p.add_argument("--weights", default="camvid", help="checkpoint file or shipped name")
    p.add_argument("--size", type=_size, help="network input HxW (default: the weights' own)")
    p.add_argument("--limit", type=_positive, default=100, help="images at most (default 100)")
    p.add_argument("--force", action="store_true", help="overwrite an existing file")
    p.set_defaults(run=_quantize)

    add_train_parser(commands)
    add_evaluate_parser(commands)
    return parser


def _add_model_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--weights", default="camvid", help="checkpoint file or shipped name")
    p.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    p.add_argument("--threads", type=_positive, help="CPU threads (default: torch's)")
    p.add_argument("--opacity", type=_unit, default=0.5, help="of the overlay, 0..1")
    p.add_argument("--size", type=_size, help="network input HxW (default: the weights' own)")


def _positive(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1 to 1024")
    return int(text)


def _unit(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 0 to 1")
    return value


def _size(text: str) -> Size:
    match = re.fullmatch(r"(\d+)x(\d+)", text.lower())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r}: expected HEIGHTxWIDTH, as 512x1024")
    return int(match[1]), int(match[2])


class _Run:
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
            for frame in _bar(reader, job.source.name, reader.count or None):
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


def _bar(items: Any, name: str, total: int | None) -> Any:
    return tqdm(items, name, total, unit="frame", leave=False, disable=not sys.stderr.isatty())


def _segment(args: argparse.Namespace) -> int:
    kinds = [k for k in KINDS if getattr(args, k)] or ["overlay"]
    jobs = plan_jobs(args.inputs, args.out, kinds, force=args.force)
    run = _Run(args)
    done, failed = 0, 0
    try:
        for job in _bar(jobs, "segment", len(jobs)) if len(jobs) > 1 else jobs:
            try:
                run.video(job) if job.is_video else run.image(job)
                done += 1
            except (*USER_ERRORS, RuntimeError) as e:
                if len(jobs) == 1 or (isinstance(e, RuntimeError) and not _is_out_of_memory(e)):
                    raise
                failed += 1
                tqdm.write(f"fastscnn: error: {_one_line(e)}", file=sys.stderr)
    except KeyboardInterrupt:
        print(
            f"fastscnn: interrupted: {done} of {len(jobs)} inputs are finished in {args.out}",
            file=sys.stderr,
        )
        return 130
    print(run.summary())
    print(f"{done} of {len(jobs)} input(s) written to {args.out}")
    return 1 if failed else 0


def _demo(args: argparse.Namespace) -> int:
    run = _Run(args)
    frame = street_scene()
    print("no photo given: segmenting a street scene drawn from simple shapes")
    labels = run.labels(frame)
    write_image(Image.fromarray(frame), args.out / "demo.png")
    picture = render("overlay", frame, labels, run.classes, args.opacity)
    write_image(picture, args.out / "demo_overlay.png")
    print(run.summary())
    print(f"written to {args.out / 'demo_overlay.png'}")
    return 0


def _info(args: argparse.Namespace) -> int:
    if args.plan is None:
        print("\n".join(fastscnn.info()))
    else:
        model: Any = fastscnn.load(args.weights, device="cpu")
        print(table(model.plan(args.plan, batch=args.batch)))
    return 0


def _convert(args: argparse.Namespace) -> int:
    from fastscnn.checkpoints import convert

    source = convert(args.source, args.target, to=args.to, force=args.force)
    print(
        f"{args.source}: {source.layout.name} layout, {source.card.num_classes} classes\n"
        f"written to {args.target} in the {args.to} layout"
    )
    return 0


def _quantize(args: argparse.Namespace) -> int:
    from fastscnn.quantize import quantize
    from fastscnn_kernels.cpu_int8 import pays

    done = quantize(
        args.images,
        args.out,
        weights=args.weights,
        size=args.size,
        limit=args.limit,
        force=args.force,
        progress=lambda files: tqdm(files, unit="image"),
    )
    print(
        f"calibrated on {done.images} images; int8 labels are those of float32 on "
        f"{done.agreement:.2%} of their pixels ({done.worst:.2%} of the worst image)\n"
        f"written to {args.out}"
    )
    if not pays():
        print("this CPU, without AVX-512, runs it in float32: the comparison says nothing of int8")
    return 0
