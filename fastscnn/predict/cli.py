"""`fastscnn segment` and `fastscnn demo`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from fastscnn.arguments import USER_ERRORS, add_model_options, duration, is_out_of_memory, one_line
from fastscnn.media.demo import street_scene
from fastscnn.media.outputs import KINDS, plan_jobs, render, write_image
from fastscnn.predict.cluster import add_cluster_option, place, segment
from fastscnn.predict.run import Run, bar


def add_segment_parsers(commands: Any) -> None:
    """Adds `segment` and `demo`; their `run(args)` returns the exit code."""
    p = commands.add_parser("segment", help="label images, folders, globs, videos and cameras")
    p.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="image, folder, glob, video, camera (0, /dev/video0) or URL (rtsp://..., http://...)",
    )
    p.add_argument("-o", "--out", type=place, required=True, help="folder (or file for one image)")
    for kind, text in zip(
        KINDS,
        ("frame tinted by class (default)", "index PNG with palette", "colour map"),
        strict=True,
    ):
        p.add_argument(f"--{kind}", action="store_true", help=f"write the {text}")
    p.add_argument("--force", action="store_true", help="overwrite existing files")
    p.add_argument("--seconds", type=duration, help="of each video or camera, then stop")
    p.add_argument(
        "--timeout",
        type=duration,
        default=10.0,
        metavar="SECONDS",
        help="for a camera or URL that is silent (%(default)g)",
    )
    add_cluster_option(p)
    add_model_options(p)
    p.set_defaults(run=_segment)

    p = commands.add_parser("demo", help="draw a street and segment it")
    p.add_argument("-o", "--out", type=Path, default=Path("out"), help="folder")
    add_model_options(p)
    p.set_defaults(run=_demo)


def _segment(args: argparse.Namespace) -> int:
    kinds = [k for k in KINDS if getattr(args, k)] or ["overlay"]
    if args.cluster:
        return segment(args, kinds)
    if isinstance(args.out, str):
        raise ValueError(f"-o {args.out}: a bucket is for --cluster; give a folder")
    jobs = plan_jobs(args.inputs, args.out, kinds, force=args.force)
    run = Run(args)
    done, failed = 0, 0
    try:
        for job in bar(jobs, "segment", len(jobs)) if len(jobs) > 1 else jobs:
            try:
                trouble = run.segment(job)
                done += 1
                if trouble:
                    failed += 1
                    tqdm.write(f"fastscnn: error: {trouble}", file=sys.stderr)
            except (*USER_ERRORS, RuntimeError) as e:
                if len(jobs) == 1 or (isinstance(e, RuntimeError) and not is_out_of_memory(e)):
                    raise
                failed += 1
                tqdm.write(f"fastscnn: error: {one_line(e)}", file=sys.stderr)
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
    run = Run(args)
    frame = street_scene()
    print("no photo given: segmenting a street that is drawn by computation")
    labels = run.labels(frame)
    write_image(Image.fromarray(frame), args.out / "demo.png")
    picture = render("overlay", frame, labels, run.classes, args.opacity)
    write_image(picture, args.out / "demo_overlay.png")
    print(run.summary())
    print(f"written to {args.out / 'demo_overlay.png'}")
    return 0
