"""Rows of training steps: PyTorch's loop in its ways, ours untouched and ours with its losses."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from gpu_clock import Call, Clock, Memory, facts, limits, measure
from gpu_groups import Training
from gpu_steps import STEP_SECONDS, say, step
from test_training import DTYPES, Case, Step, gradients


def training_rows(
    group: Training, skip: set[str], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Each is held against float32's loss and gradients; the first, torch's own, says how near a
    dtype comes."""
    device, dtype = torch.device(options.device), DTYPES[group.dtype]
    case = Case(group.images, group.classes, group.size, 1)
    with torch.enable_grad():
        loss, exact = gradients(Step("eager", case, torch.float32, 1, device))
        calls: dict[str, Call] = {}
        known: dict[str, dict[str, Any]] = {}
        distance = 0.0
        for name in (n for n in group.steppers if n not in skip):
            with step(group.name, name, STEP_SECONDS) as allowed:
                if not allowed:
                    continue
                memory = Memory(device)
                one = Step(name, case, dtype, 1, device)
                got, whole = gradients(one)
                apart = 1 - float(F.cosine_similarity(whole, exact, dim=0))
                distance = distance or apart
                if abs(got / loss - 1) > 0.01 or apart > 2 * distance + 0.02:
                    raise ValueError(f"loss {got} for {loss}, gradients {apart:.3f} apart")
                one()
                known[name] = {"peak_memory_mb": memory.peak() / 1e6, "gradients_apart": apart}
                calls[name] = lambda _, one=one: one()
        before = lambda name: say(start=name, group=group.name, seconds=STEP_SECONDS)  # noqa: E731
        few = {"passes": 3, "least": 3, **limits(options)}
        times = measure(calls, Clock(device), before, **few)
    for name in calls:
        yield {
            "contestant": name, **facts(*times[name]), **known[name], "kind": "training",
            "ours": name in ("unchanged_loop", "ours"), "dtype": group.dtype,
            "images": group.images, "frame": list(group.size), "classes": group.classes,
        }  # fmt: skip
