"""`fastscnn benchmark`."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fastscnn.arguments import positive, size
from fastscnn.benchmark.compare import Row, compare
from fastscnn.benchmark.cpu import PROVIDERS
from fastscnn.benchmark.provider import Case
from fastscnn.checkpoints.formats import write_atomically
from fastscnn.info import __version__
from fastscnn.load import load
from fastscnn.media.demo import street_scene
from fastscnn.media.frames import read_image
from fastscnn.network.segment import Size, resize_frames
from fastscnn.quantize import image_files
from fastscnn_kernels.extension import device_info

#: Frames on which int8 is calibrated.
CALIBRATION = 8


def add_benchmark_parser(commands: Any) -> None:
    """Adds `benchmark`; its `run(args)` returns the exit code."""
    p = commands.add_parser("benchmark", help="time the ways to run these weights on this CPU")
    p.add_argument("weights", nargs="?", default="camvid", metavar="WEIGHTS", help="file or name")
    p.add_argument("--image", type=Path, help="frame to run on (default: a drawn street)")
    p.add_argument(
        "--calibrate",
        type=Path,
        metavar="IMAGES",
        help="folder of other images, for int8 (default: drawn streets, where the frame is drawn)",
    )
    p.add_argument("--size", type=size, default=(512, 1024), metavar="HxW", help="of the frame")
    p.add_argument("--threads", type=positive, help="CPU threads (default: torch's)")
    p.add_argument("--rounds", type=positive, default=9, help="measured frames of each (default 9)")
    p.add_argument(
        "--only", nargs="+", metavar="NAME", help=f"of {', '.join(map(repr, PROVIDERS))}"
    )
    p.add_argument("--compile", action="store_true", help="torch.compile too, which takes minutes")
    p.add_argument("-o", "--out", type=Path, metavar="FILE", help="results as .json")
    p.add_argument("--force", action="store_true", help="overwrite an existing file")
    p.set_defaults(run=_benchmark)


def _benchmark(args: argparse.Namespace) -> int:
    unknown = [name for name in args.only or () if name not in PROVIDERS]
    if unknown:
        raise ValueError(f"--only {unknown[0]}: expected some of {', '.join(PROVIDERS)}")
    if args.out and args.out.exists() and not args.force:
        raise FileExistsError(f"{args.out} exists: use --force to overwrite it")
    model = load(args.weights, fused=False, device="cpu").requires_grad_(False)
    h, w = model.input_size(args.size, args.size)
    pixels = read_image(args.image) if args.image else street_scene(h, w)
    threads = args.threads or torch.get_num_threads()
    case = Case(_batch([pixels], (h, w)), threads, _others(args, (h, w)))
    chosen = [
        p
        for p in PROVIDERS.values()
        if (p.name in args.only if args.only else args.compile or not p.slow)
    ]
    total = 1 + len(chosen) + args.rounds * len(chosen)
    with tqdm(total=total, leave=False, unit="step") as bar:

        def tick(name: str) -> None:
            bar.set_description(name)
            bar.update()

        rows = compare(model, case, chosen, args.rounds, tick=tick)
    print(f"{h}x{w}, {threads} threads, {model.num_classes} classes, {_cpu()}")
    print("\n".join(_table(rows)))
    if args.out:
        data = {
            **{"fastscnn": __version__, "torch": torch.__version__, "cpu": _cpu()},
            **{"weights": str(args.weights), "size": [h, w], "threads": threads},
            "rows": [row.to_dict() for row in rows],
        }
        text = json.dumps(data, indent=1) + "\n"
        write_atomically(args.out, lambda temporary: temporary.write_text(text))
    return 0 if any(row.seconds for row in rows) else 2


def _batch(images: list[Any], size: Size) -> Tensor:
    """uint8 N x H x W x 3."""
    frames = [resize_frames(torch.from_numpy(image.copy())[None], size) for image in images]
    return torch.cat(frames).contiguous()


def _others(args: argparse.Namespace, size: Size) -> Tensor | None:
    """Frames for int8 that are not the one that is judged."""
    if args.calibrate:
        files = [f for f in image_files(args.calibrate, CALIBRATION + 1) if f != args.image]
        return _batch([read_image(f) for f in files[:CALIBRATION]], size)
    if args.image:
        return None
    return _batch([street_scene(*size, seed=i) for i in range(1, 1 + CALIBRATION)], size)


def _cpu() -> str:
    return f"{platform.machine()} with {device_info()['cpu_instruction_set']}"


def _table(rows: list[Row]) -> list[str]:
    """The fastest first; labels in per cent equal to the float32 reference's."""
    lines = [f"{'':28} {'ms':>8} {'20..80 %':>16} {'fps':>7} {'MB':>6} {'labels':>9}"]
    for r in sorted((r.to_dict() for r in rows if r.seconds), key=lambda r: r["ms"]):
        between = f"{r['q20_ms']:.1f}..{r['q80_ms']:.1f}"
        memory = "-" if r["megabytes"] is None else f"{r['megabytes']:.0f}"
        lines.append(
            f"{r['provider']:28} {r['ms']:8.1f} {between:>16} {r['fps']:7.1f} {memory:>6} "
            f"{r['equal']:9.3%}"
        )
    return lines + [f"{r.provider:28} not measured: {r.skipped}" for r in rows if not r.seconds]
