"""Builds, validates and times groups of contestants in a process of its own; prints JSON lines.

A kernel that breaks the GPU's context, hangs, or compiles for too long costs this process only:
`gpu_supervisor.py` starts another without the culprit. Every contestant is validated before it is
timed and takes turns with the others of its group, over different inputs (see `gpu_clock.py`).

Lines: {"start": contestant, "group", "seconds"} before each step, then {"row": ...},
{"skipped": reason, "group", "contestant"} or {"failed": reason, ...}, and {"done": group}.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from gpu_groups import Layer, Network, Training, contestants, groups
from gpu_layers import layer_rows
from gpu_networks import compile_kernels, network_rows
from gpu_steps import Deadline, context_lost, reason_of, say
from gpu_training import training_rows

ROWS: dict[type, Any] = {Network: network_rows, Layer: layer_rows, Training: training_rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--compile-only", metavar="DTYPE", help="our Triton kernels, once")
    parser.add_argument("--until", type=float, default=math.inf, help="seconds since the epoch")
    parser.add_argument("--skip", type=json.loads, default={}, help="group: contestants, as JSON")
    parser.add_argument("--done", type=json.loads, default=[], help="groups, as JSON")
    options = parser.parse_args()
    Deadline.at = options.until
    torch.backends.cuda.matmul.allow_tf32 = False  # fp32 means IEEE for everybody
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True  # peers get their fastest convolutions
    torch.set_grad_enabled(False)
    if options.device == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream())  # ONNX Runtime takes any but the default
    if options.compile_only:
        compile_kernels(getattr(torch, options.compile_only))
        return
    for group in groups(options.smoke, options.compile):
        if group.name in options.done:
            continue
        if time.time() > Deadline.at:
            for name in contestants(group):
                say(skipped="the time budget was spent", group=group.name, contestant=name)
            continue
        skip = set(options.skip.get(group.name, []))
        try:
            for row in ROWS[type(group)](group, skip, options):
                say(row=row, group=group.name)
        except Exception as error:  # in what the contestants share, or while one is timed
            print(f"{group.name}:", repr(error), file=sys.stderr)
            if context_lost():
                raise SystemExit(3) from error
            for name in (n for n in contestants(group) if n not in skip):
                say(failed=reason_of(error), group=group.name, contestant=name)
        say(done=group.name)


if __name__ == "__main__":
    main()
