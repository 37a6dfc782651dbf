"""`fastscnn convert`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fastscnn.checkpoints.files import convert


def add_convert_parser(commands: Any) -> None:
    """Adds `convert`; its `run(args)` returns the exit code."""
    p = commands.add_parser("convert", help="translate a checkpoint")
    p.add_argument("source", metavar="IN", help="checkpoint file or shipped name")
    p.add_argument("target", type=Path, metavar="OUT")
    p.add_argument("--to", default="fastscnn", help="layout of OUT (default: our safetensors)")
    p.add_argument("--force", action="store_true", help="overwrite an existing file")
    p.set_defaults(run=_convert)


def _convert(args: argparse.Namespace) -> int:
    source = convert(args.source, args.target, to=args.to, force=args.force)
    print(
        f"{args.source}: {source.layout.name} layout, {source.card.num_classes} classes\n"
        f"written to {args.target} in the {args.to} layout"
    )
    return 0
