"""`fastscnn segment --cluster`: the same inputs and outputs on many machines, over Ray Data."""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

import fastscnn
from fastscnn.arguments import USER_ERRORS, one_line
from fastscnn.classes import Classes
from fastscnn.media.frames import IMAGE_SUFFIXES
from fastscnn.media.outputs import Job, plan_jobs
from fastscnn.media.video import VIDEO_SUFFIXES
from fastscnn.media.visualize import legend
from fastscnn.predict.run import Run, bar

#: Times that a file may take its worker down with it before it is given up.
RETRIES = 3
#: Stores in which a file appears at once, when it is complete; elsewhere it is renamed.
OBJECT_STORES = ("s3", "gcs", "abfs")
#: What the workers need to know of the command.
OPTIONS = ("weights", "device", "threads", "size", "opacity", "seconds", "timeout")


def add_cluster_option(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--cluster",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="run over Ray: HOST:PORT of a cluster, auto, or alone this machine; goes on where an "
        "earlier run stopped; INPUT and -o may be buckets (s3://...)",
    )


def place(text: str) -> Path | str:
    """A path, or the URI of a folder in a bucket as it is."""
    return text if "://" in text else Path(text)


class Worker:
    """One process of the cluster: it loads the weights once, then takes files, batch by batch."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.run = Run(argparse.Namespace(**options))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """For each file its error (empty: none), frames, seconds in the network, pixels by label"""
        rows = [self._file(*x) for x in zip(batch["source"], batch["targets"], strict=True)]
        error, frames, seconds, counts = zip(*rows, strict=True)
        columns = {"error": error, "frames": frames, "seconds": seconds, "counts": counts}
        return {"source": batch["source"], **{k: np.array(v) for k, v in columns.items()}}

    def _file(self, source: str, targets: str) -> tuple[str, int, float, np.ndarray]:
        run = self.run
        run.counts, run.frames, run.seconds = np.zeros(256, np.int64), 0, 0.0
        error = ""
        try:
            with tempfile.TemporaryDirectory() as folder:
                error = self._segment(source, json.loads(targets), Path(folder))
        except USER_ERRORS as e:
            error = one_line(e)
        except Exception as e:  # one file's trouble is not the others'
            error = f"{source}: {type(e).__name__}: {one_line(e)}"
        return error, run.frames, run.seconds, run.counts

    def _segment(self, source: str, targets: dict[str, str], folder: Path) -> str:
        """As `Run.segment`; what lies in a bucket goes by way of `folder`."""
        here = Path(source)
        if "://" in source:
            here = folder / PurePosixPath(source).name
            _copy(source, str(here))
        local = {
            k: folder / f"out_{PurePosixPath(t).name}" if "://" in t else Path(t)
            for k, t in targets.items()
        }
        trouble = self.run.segment(Job(here, local))
        for kind, target in targets.items():
            if "://" in target:
                _copy(str(local[kind]), target)
        return trouble


def segment(args: argparse.Namespace, kinds: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    options = {name: getattr(args, name) for name in OPTIONS}
    model: Any = fastscnn.load(args.weights, device="cpu")  # raises here, not on every worker
    if args.size:
        model.input_size(args.size, args.size)
    card = model.card
    classes = Classes.for_count(
        model.num_classes, card.classes if card else (), card.colors if card else ()
    )
    ray = _connect(args.cluster)
    try:
        rows = _plan(args.inputs, args.out, kinds)
        todo = rows if args.force else [row for row in rows if not _finished(row)]
        if len(todo) < len(rows):
            print(f"{len(rows) - len(todo)} input(s) done before (--force: again)", file=sys.stderr)
        return _run(ray, todo, options, classes, args.out)
    finally:
        ray.shutdown()


def _run(
    ray: Any, rows: list[dict[str, str]], options: dict[str, Any], classes: Classes, out: Path | str
) -> int:
    missing = {row["source"] for row in rows}
    counts, frames, seconds, failed = np.zeros(256, np.int64), 0, 0.0, 0
    try:
        for row in bar(_answers(ray, rows, options), "segment", len(rows)) if rows else ():
            missing.discard(row["source"])
            failed += bool(row["error"])
            if row["error"]:
                print(f"fastscnn: error: {row['error']}", file=sys.stderr)
            counts += row["counts"]
            frames, seconds = frames + int(row["frames"]), seconds + float(row["seconds"])
    except KeyboardInterrupt:
        done = len(rows) - len(missing) - failed
        print(
            f"fastscnn: interrupted: {done} of {len(rows)} inputs are finished in {out}; the same "
            "command goes on with the others",
            file=sys.stderr,
        )
        return 130
    for source in sorted(missing):
        print(
            f"fastscnn: error: {source}: its worker died {RETRIES + 1} times (memory? a broken "
            "file?); the same command tries it again",
            file=sys.stderr,
        )
    done = len(rows) - len(missing) - failed
    if frames:
        print(legend(counts, classes, color=sys.stdout.isatty()))
        print(f"{frames} frame(s), {1e3 * seconds / frames:.1f} ms of a worker's network each")
    print(f"{done} of {len(rows)} input(s) written to {out}")
    return 1 if done < len(rows) else 0


def _connect(address: str) -> Any:
    """Ray's module, connected; its usage statistics are off."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(f"--cluster needs {error.name}: pip install 'fastscnn[ray]'") from None
    if address not in ("local", "auto"):
        _reach(address)
    try:
        ray.init(
            address,
            include_dashboard=False if address == "local" else None,
            logging_level="warning",
        )
    except ConnectionError:
        raise ConnectionError(
            f"--cluster {address}: no cluster runs here: `ray start --head --disable-usage-stats`, "
            "or leave the address out"
        ) from None
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # a file that kills its workers is reported at the end
    return ray


def _reach(address: str) -> None:
    """Raises where nothing listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"--cluster {address}: expected HOST:PORT, auto, or nothing after it")
    try:
        socket.create_connection((host, int(port)), 5).close()
    except (OSError, OverflowError) as error:
        raise OSError(
            f"--cluster {address}: no answer ({one_line(error)}); is `ray start --head` running "
            "there, and its port open?"
        ) from None


def _answers(ray: Any, rows: list[dict[str, str]], options: dict[str, Any]) -> Iterator[Any]:
    """One row per file, in any order, from one worker per GPU or per `threads` cores."""
    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0)) if options["device"] != "cpu" else 0
    threads = options["threads"] or 1
    count = gpus or max(1, int(there.get("CPU", 1)) // threads)
    each = {"num_gpus": 1} if gpus else {"num_cpus": threads}
    files_a_task = max(1, min(16, len(rows) // (4 * count)))
    data = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // files_a_task))
    answers = data.map_batches(
        Worker,
        fn_constructor_args=({**options, "threads": threads},),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=count),
        ray_remote_args_fn=lambda: {"max_restarts": -1, "max_task_retries": RETRIES},
        **each,
    )
    return iter(answers.iter_rows())


def _plan(inputs: Sequence[str], out: Path | str, kinds: Sequence[str]) -> list[dict[str, str]]:
    """For each file its source and its targets by kind, as text: paths or URIs."""
    found: list[tuple[str, dict[str, str]]] = []
    paths = [text for text in inputs if "://" not in text]
    if paths:
        jobs = plan_jobs(paths, Path("bucket") if isinstance(out, str) else out, kinds, force=True)
        for job in jobs:
            if isinstance(job.source, str):
                raise ValueError(
                    f"{job.source}: a camera or stream is for one machine: no --cluster"
                )
            targets = {
                k: f"{out.rstrip('/')}/{t.name}" if isinstance(out, str) else str(t.absolute())
                for k, t in job.targets.items()
            }
            found.append((str(job.source.absolute()), targets))
    for uri in (uri for text in inputs if "://" in text for uri in _listed(text)):
        name = PurePosixPath(uri)
        clip = name.suffix.lower() in VIDEO_SUFFIXES
        suffix = {k: ".png" if not clip else "" if k == "labels" else ".mp4" for k in kinds}
        folder = out.rstrip("/") if isinstance(out, str) else str(out.absolute())
        found.append((uri, {k: f"{folder}/{name.stem}_{k}{suffix[k]}" for k in kinds}))
    owner: dict[str, str] = {}
    for source, targets in found:
        for target in targets.values():
            if owner.setdefault(target, source) != source:
                raise ValueError(
                    f"{source} and {owner[target]} would both be written as {target}; segment "
                    "them into different folders"
                )
    return [{"source": s, "targets": json.dumps(t)} for s, t in found]


def _filesystem(uri: str) -> tuple[Any, str]:
    from pyarrow import ArrowException, fs

    try:
        found: tuple[Any, str] = fs.FileSystem.from_uri(uri)
    except (ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{uri}: {one_line(error)}") from None
    return found


def _listed(uri: str) -> list[str]:
    """The pictures and clips of a bucket's folder (not recursive), or the one file."""
    from pyarrow import fs

    system, path = _filesystem(uri)
    info = system.get_file_info(path)
    if info.type == fs.FileType.File:
        return [uri]
    if info.type == fs.FileType.NotFound:
        raise FileNotFoundError(f"{uri}: no such file or folder")
    known = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    names = sorted(
        f.base_name
        for f in system.get_file_info(fs.FileSelector(path))
        if f.type == fs.FileType.File and PurePosixPath(f.base_name).suffix.lower() in known
    )
    if not names:
        raise ValueError(f"{uri}: no images or videos in this folder")
    return [f"{uri.rstrip('/')}/{name}" for name in names]


def _finished(row: dict[str, str]) -> bool:
    """Whether all outputs of a file are there: each appears only when it is complete."""
    from pyarrow import fs

    for target in json.loads(row["targets"]).values():
        if "://" not in target:
            if not Path(target).exists():
                return False
            continue
        system, path = _filesystem(target)
        if system.get_file_info(path).type == fs.FileType.NotFound:
            return False
    return True


def _copy(source: str, target: str) -> None:
    """A file or folder, from or to a bucket; the target appears when it is complete."""
    from pyarrow import fs

    if "://" not in target:
        system, path = _filesystem(source)
        fs.copy_files(path, target, source_filesystem=system)
        return
    system, path = _filesystem(target)
    if system.type_name in OBJECT_STORES:
        fs.copy_files(source, path, destination_filesystem=system)
        return
    system.create_dir(str(PurePosixPath(path).parent), recursive=True)
    temporary = f"{path}.{os.getpid()}.tmp"
    fs.copy_files(source, temporary, destination_filesystem=system)
    system.move(temporary, path)
