"""Triton's launches for a target, compiled and not run (see `compile_only.py`), as `Recorded`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "triton"))

from compile_only import Launch, compile_only
from cuda_resources import cuobjdump, run
from machine import Memory
from machine_code import Recorded
from sass import functions

#: Constants that name a kernel's channels.
CHANNELS = ("CI", "CH", "CL", "C", "CO")


@contextmanager
def triton_recording(target: str) -> Iterator[list[Launch]]:
    """Triton's launches inside; `recorded` makes one ready to run."""
    with compile_only(int(target.rstrip("af"))) as launches:
        yield launches


def recorded(launch: Launch, target: str) -> Recorded:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(launch.cubin)
        file.flush()
        (code,) = functions(run(cuobjdump(), "-sass", file.name)).values()
    spans = [(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) for t in launch.tensors]
    return Recorded(
        launch.name, target, launch.grid, launch.threads, launch.metadata.shared, launch.params,
        Memory(spans), launch.usage["REG"], code,
    )  # fmt: skip


def label(launch: Launch) -> str:
    """The kernel, its channels and steps, e.g. "dsconv 32-48 s2"."""
    k = launch.constants
    channels = "-".join(str(k[c]) for c in CHANNELS if c in k)
    step = f" s{k['STRIDE']}" if k.get("STRIDE", 1) != 1 else ""
    return f"{launch.name.removesuffix('_kernel')} {channels}{step}".strip()
