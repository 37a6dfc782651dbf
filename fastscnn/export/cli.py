"""`fastscnn export` and `fastscnn verify`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from fastscnn.arguments import size
from fastscnn.export.verify import verify
from fastscnn.export.write import INPUTS, OUTPUTS, Options, export
from fastscnn.load import load


def add_export_parsers(commands: Any) -> None:
    """Adds `export` and `verify`; their `run(args)` returns the exit code."""
    p = commands.add_parser("export", help="write a checked file that runs elsewhere")
    p.add_argument("weights", metavar="WEIGHTS", help="checkpoint file or shipped name")
    p.add_argument(
        *("-o", "--out"),
        type=Path,
        required=True,
        metavar="FILE",
        help=".onnx, .pt2, or .fscnn for C++",
    )
    p.add_argument("--input", choices=INPUTS, default="frame", help="uint8, or normalised floats")
    p.add_argument("--output", choices=OUTPUTS, default="labels")
    p.add_argument("--size", type=size, metavar="HxW", help="fix the frame's size (default: free)")
    p.add_argument("--no-resize", action="store_true", help="leave the working size out")
    p.add_argument("--for", dest="target", choices=["tensorrt"], help="keep to what it knows")
    p.add_argument(
        "--bf16", action="store_true", help="a .fscnn that multiplies bfloat16 where CPUs can"
    )
    _add_frames(p, "--frames", nargs="+")
    p.add_argument("--force", action="store_true", help="overwrite an existing file")
    p.set_defaults(run=_export)

    p = commands.add_parser("verify", help="hold a file against weights; say what differs")
    p.add_argument("file", type=Path, metavar="FILE", help=".onnx, .pt2, .fscnn or a checkpoint")
    _add_frames(p, "frames", nargs="*")
    p.add_argument(
        "--against", default="camvid", metavar="WEIGHTS", help="checkpoint file or shipped name"
    )
    p.set_defaults(run=_verify)


def _add_frames(p: argparse.ArgumentParser, name: str, nargs: str) -> None:
    text = "images to check on (default: drawn ones)"
    p.add_argument(name, type=Path, nargs=nargs, default=[], metavar="FRAMES", help=text)


def _export(args: argparse.Namespace) -> int:
    dtype = torch.bfloat16 if args.bf16 else None
    model = load(args.weights, fused=args.bf16, device="cpu", dtype=dtype)
    options = Options(
        input=args.input,
        output=args.output,
        size=args.size,
        resize=not args.no_resize,
        tensorrt=args.target == "tensorrt",
        frames=tuple(args.frames),
    )
    for row in export(model, args.out, options, force=args.force):
        print(row)
    print(f"written to {args.out}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    report = verify(args.file, args.against, args.frames)
    print(report)
    return 0 if report.equal else 1
