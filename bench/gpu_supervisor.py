"""Runs `gpu_worker.py`, and again without the culprit when it breaks, hangs or takes too long."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
#: Beyond the seconds that a step asks for, and for a process to import torch and start.
GRACE = 20.0
STARTING = 120.0


class Supervisor:
    """Iterates the worker's messages; a lost contestant is told as {"failed": reason, ...}.

    `command` starts a worker; `until` is the time (seconds since the epoch) at which everything
    ends. Messages of a group come at least once, those of contestants that were measured before a
    breakdown again.
    """

    def __init__(self, command: list[str], until: float, log: Path) -> None:
        self._command, self._until, self._log = command, until, log
        self._skip: dict[str, list[str]] = {}
        self._done: list[str] = []
        self._at: dict[str, Any] = {}
        self._process: subprocess.Popen[str] | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            reason = None
            for message in self._lines():
                if "out_of_time" in message:
                    reason = message["out_of_time"]
                    break
                if "start" in message:
                    self._at = message
                elif "done" in message:
                    self._done.append(message["done"])
                    self._at = {}
                elif "failed" in message or "skipped" in message:
                    self._exclude(message["group"], message["contestant"])
                yield message
            status = self.stop()
            if status == 0 and reason is None:
                return
            if reason == "the time budget was spent" or not self._at:
                yield {
                    "ended": reason or f"the worker ended ({_status(status)}), see {self._log.name}"
                }
                return
            group, contestant = self._at["group"], self._at["start"]
            if contestant not in self._skip.get(group, []):
                self._exclude(group, contestant)
                why = reason or f"broke the process ({_status(status)})"
                yield {"failed": why, "group": group, "contestant": contestant}
            self._at = {}

    def stop(self) -> int | None:
        """Ends the worker and what it started; its exit status."""
        process = self._process
        if process is None:
            return None
        if process.poll() is None:
            try:
                process.wait(timeout=2)  # it closes its output just before it ends
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a hung kernel may hold it
            process.wait(timeout=10)
        return process.poll()

    def _exclude(self, group: str, contestant: str) -> None:
        self._skip.setdefault(group, []).append(contestant)

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Messages of one worker; {"out_of_time": reason} when it is to be ended."""
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [
                    *self._command,
                    *("--until", str(self._until)),
                    *("--skip", json.dumps(self._skip), "--done", json.dumps(self._done)),
                ],
                stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
                env={**os.environ, "PYTHONPATH": python_path()},
            )  # fmt: skip
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(self._process, lines), daemon=True).start()
        allowed = STARTING
        while True:
            left = self._until + GRACE - time.time()
            try:
                line = lines.get(timeout=max(0.1, min(allowed, left)))
            except queue.Empty:
                spent = left <= allowed
                yield {
                    "out_of_time": "the time budget was spent"
                    if spent
                    else f"no end after {allowed:.0f} s"
                }
                return
            if line is None:
                return
            if not line.startswith("{"):  # what a library prints
                continue
            message = json.loads(line)
            allowed = message.get("seconds", STARTING) + GRACE
            yield message


def worker_command(*options: str) -> list[str]:
    return [sys.executable, str(Path(__file__).parent / "gpu_worker.py"), *options]


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def python_path() -> str:
    """The repository's root, then what the caller added."""
    before = os.environ.get("PYTHONPATH")
    return f"{ROOT}{os.pathsep}{before}" if before else str(ROOT)


def _status(status: int | None) -> str:
    if status is not None and status < 0:
        return signal.Signals(-status).name
    return f"exit status {status}"
