"""What the worker tells its supervisor: messages, and steps that may break, hang or be too late."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

from fastscnn.benchmark.provider import Unavailable

#: Seconds in which measuring one contestant once, or building a layer, must come back.
STEP_SECONDS = 60.0


def say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


class Deadline:
    """Seconds since the epoch at which nothing more is begun."""

    at = math.inf


@contextlib.contextmanager
def step(group: str, contestant: str, seconds: float) -> Iterator[bool]:
    """Announces a contestant and reports why it cannot take part; ends the process if the GPU's
    context is lost. Yields whether there is time for it."""
    about: dict[str, Any] = {"group": group, "contestant": contestant}
    if time.time() + seconds / 2 > Deadline.at:
        say(skipped=f"may take {seconds:.0f} s: over the time budget", **about)
        yield False
        return
    say(start=contestant, group=group, seconds=seconds)
    try:
        yield True
    except Unavailable as reason:
        say(skipped=str(reason), **about)
    except Exception as error:  # whatever a peer or a kernel of ours does wrong
        say(failed=reason_of(error), **about)
        print(f"{group}, {contestant}:", repr(error), file=sys.stderr)
        if context_lost():
            raise SystemExit(3) from error


def reason_of(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:300]}"


def context_lost() -> bool:
    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
