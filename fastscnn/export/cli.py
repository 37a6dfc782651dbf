"""`fastscnn export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from fastscnn.arguments import size
from fastscnn.export.write import INPUTS, OUTPUTS, export_onnx
from fastscnn.load import load


def add_export_parser(commands: Any) -> None:
    """Adds `export`; its `run(args)` returns the exit code."""
    p = commands.add_parser("export", help="write a checked .onnx file of every frame size")
    p.add_argument("weights", metavar="WEIGHTS", help="checkpoint file or shipped name")
    p.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="an .onnx file")
    p.add_argument("--input", choices=INPUTS, default="frame", help="uint8, or normalised floats")
    p.add_argument("--output", choices=OUTPUTS, default="labels")
    p.add_argument("--size", type=size, metavar="HxW", help="fix the frame's size (default: free)")
    p.add_argument("--no-resize", action="store_true", help="leave the working size out")
    p.add_argument("--for", dest="target", choices=["tensorrt"], help="keep to what it knows")
    p.add_argument("--force", action="store_true", help="overwrite an existing file")
    p.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
    model = load(args.weights, fused=False, device="cpu")
    with torch.no_grad():
        rows = export_onnx(
            model,
            args.out,
            input=args.input,
            output=args.output,
            size=args.size,
            resize=not args.no_resize,
            tensorrt=args.target == "tensorrt",
            force=args.force,
        )
    for row in rows:
        print(row)
    print(f"written to {args.out}")
    return 0
