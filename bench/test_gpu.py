"""Times the network and its layers on a GPU against other ways of running them.

    pytest bench/test_gpu.py --benchmark-only --benchmark-json=gpu.json [--data DIR]
    python bench/gpu_table.py gpu.json

`make gpu` runs this, the GPU tests and more. What is measured is listed in `gpu_groups.py`, how in
`gpu_worker.py`, which runs in a process of its own; the rounds measured there (seconds per call,
medians over blocks of calls) are handed to pytest-benchmark through its timer. A contestant of ours
that gives wrong labels or breaks fails; a peer is skipped with the reason. `--smoke` tries
everything at tiny sizes, on the CPU where there is no GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_groups import contestants, groups
from gpu_supervisor import ROOT, Supervisor, python_path, worker_command
from test_cpu import Playback

START = time.time()
playback = Playback()
pytestmark = pytest.mark.benchmark(timer=playback, disable_gc=True)

CELLS = [
    pytest.param(smoke, group.name, name, id=f"{'smoke ' if smoke else ''}{group.name}, {name}")
    for smoke in (False, True)
    for group in groups(smoke, compiling=True)
    for name in contestants(group)
]


class Results:
    """What the worker found, read as far as it is asked for."""

    def __init__(self, messages: Iterator[dict[str, Any]]) -> None:
        self._messages = messages
        self._found: dict[tuple[str, str], dict[str, Any]] = {}
        self._done: set[str] = set()
        self._ended: str | None = None

    def of(self, group: str, contestant: str) -> dict[str, Any]:
        """{"row": ...}, {"skipped": reason} or {"failed": reason}."""
        while group not in self._done and self._ended is None:
            message = next(self._messages, {"ended": "the worker did not come to it"})
            self._ended = message.get("ended")
            self._done.add(message.get("done", ""))
            name = message.get("row", message).get("contestant")
            if name is not None:
                self._found[message["group"], name] = message
        return self._found.get((group, contestant), {"skipped": self._ended or "not asked for"})


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> Iterator[Results]:
    option = request.config.getoption
    options = ["--device", device(option("--smoke"))]
    options += ["--smoke"] * option("--smoke") + ["--compile"] * (not option("--smoke"))
    if option("--data"):
        options += ["--data", str(option("--data").resolve())]
    log = ROOT / "build" / "gpu" / "worker.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    supervisor = Supervisor(worker_command(*options), START + option("--seconds"), log)
    yield Results(iter(supervisor))
    supervisor.stop()


def device(smoke: bool) -> str:
    if torch.cuda.is_available():
        return "cuda"
    if not smoke:
        pytest.skip("needs an NVIDIA GPU")
    return "cpu"


@pytest.mark.parametrize("start", ["CUDA C++ alone", "cold", "warm"])
def test_first_frame(
    benchmark: Any, start: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Seconds from weights on disk to the first labels of a 1024x2048 frame, in a new process."""
    smoke = request.config.getoption("--smoke")
    place = device(smoke)
    cache = {} if start == "warm" else {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(Path(__file__).parent / "first_frame.py"), start, place]
    environment = {**os.environ, **cache, "PYTHONPATH": python_path()}
    rounds = []
    for _ in range(1 if smoke or start == "cold" else 3):
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode == 2:
            pytest.skip(done.stdout.strip())
        assert done.returncode == 0, done.stderr[-2000:]
        rounds.append(json.loads(done.stdout.splitlines()[-1]))
    times = [1e6 * r["seconds"] for r in rounds]
    whole = sorted(rounds, key=lambda r: r["seconds"])[len(rounds) // 2]
    us = 1e6 * whole.pop("seconds")
    row = {
        "contestant": start,
        "kind": "first frame",
        "ours": True,
        "us": us,
        "rounds": times,
        **whole,
    }
    report(benchmark, "first frame", row)


@pytest.mark.parametrize(("smoke", "group", "contestant"), CELLS)
def test_gpu(
    benchmark: Any, smoke: bool, group: str, contestant: str, request: pytest.FixtureRequest
) -> None:
    if smoke != request.config.getoption("--smoke"):
        pytest.skip("for --smoke only" if smoke else "not for --smoke")
    device(smoke)
    found = request.getfixturevalue("results").of(group, contestant)
    if "skipped" in found:
        pytest.skip(found["skipped"])
    if "failed" in found:
        ours = contestant.startswith(("CUDA C++", "Triton"))
        (pytest.fail if ours else pytest.skip)(found["failed"])
    report(benchmark, group, found["row"])


def report(benchmark: Any, group: str, row: dict[str, Any]) -> None:
    """Hands a row and its rounds (us) to pytest-benchmark."""
    rounds = [us / 1e6 for us in row.pop("rounds")]
    playback.load(rounds)
    benchmark.group = group
    benchmark.extra_info.update(row)
    benchmark.pedantic(lambda: None, rounds=len(rounds))
