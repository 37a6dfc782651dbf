"""The `fastscnn` command; each subcommand stands beside what it runs.

Exit codes: 0 done, 1 some inputs failed, 2 wrong use or nothing done, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import fastscnn
from fastscnn.arguments import USER_ERRORS, is_out_of_memory, one_line
from fastscnn.checkpoints.cli import add_convert_parser
from fastscnn.export.cli import add_export_parser
from fastscnn.info import add_info_parser
from fastscnn.predict.cli import add_segment_parsers
from fastscnn.quantize import add_quantize_parser
from fastscnn.service.cli import add_serve_parser
from fastscnn.training.cli import add_evaluate_parser, add_train_parser


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
        print(f"fastscnn: error: {one_line(e)}", file=sys.stderr)
        return 2
    except RuntimeError as e:
        if not is_out_of_memory(e):
            raise
        print(f"fastscnn: error: {one_line(e)}; use a smaller --size", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastscnn", description=fastscnn.__doc__)
    parser.add_argument("--version", action="version", version=f"fastscnn {fastscnn.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        add_segment_parsers,
        add_serve_parser,
        add_info_parser,
        add_convert_parser,
        add_export_parser,
        add_quantize_parser,
        add_train_parser,
        add_evaluate_parser,
    ):
        add(commands)
    return parser
