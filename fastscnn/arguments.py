"""What the commands' arguments have in common: their types, and errors in one line."""

from __future__ import annotations

import argparse
import re

import torch

#: What wrong input raises: the command shows one line of it.
USER_ERRORS = (ValueError, TypeError, OSError, ImportError, FloatingPointError, MemoryError)


def is_out_of_memory(error: RuntimeError) -> bool:
    """torch raises a plain RuntimeError where the CPU's memory does not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


def positive(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1 to 1024")
    return int(text)


def unit(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 0 to 1")
    return value


def duration(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds, more than 0")
    return value


def size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text.lower())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r}: expected HEIGHTxWIDTH, as 512x1024")
    return int(match[1]), int(match[2])


def add_model_options(p: argparse.ArgumentParser) -> None:
    """Which weights run, where, and at which size."""
    p.add_argument("--weights", default="camvid", help="checkpoint file or shipped name")
    p.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    p.add_argument("--threads", type=positive, help="CPU threads (default: torch's)")
    p.add_argument("--opacity", type=unit, default=0.5, help="of the overlay, 0..1")
    p.add_argument("--size", type=size, help="network input HxW (default: the weights' own)")
