"""The folder of a training run: resumable state, log, curves; all written atomically."""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from fastscnn.checkpoints.formats import write_atomically
from fastscnn.training.recipe import Recipe

STATE = "last.pth"
BEST = "best.safetensors"


class RunFolder:
    """One run's files: `last.pth` (all that resuming needs), `best.safetensors`, `log.csv`.

    The log is kept in the state and written anew from it, so the two never disagree.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def state(self) -> Path:
        return self.path / STATE

    @property
    def best(self) -> Path:
        return self.path / BEST

    def prepare(self, needed: int) -> None:
        """Makes the folder; raises OSError unless `needed` bytes can be written there."""
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"{self.path} is a file: expected a folder for the run")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for old in self.path.glob(".*.tmp*"):  # left by a run that was killed
                old.unlink()
            with tempfile.TemporaryFile(dir=self.path) as probe:
                probe.write(b"fastscnn")
        except OSError as error:
            raise type(error)(
                f"{self.path}: cannot be written ({error.strerror or error}); choose another --out"
            ) from None
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise OSError(
                f"{self.path}: {free / 1e6:.0f} MB free, but the run's checkpoints need "
                f"{needed / 1e6:.0f} MB; free some space or choose another --out"
            )

    def read_state(self, device: torch.device) -> dict[str, Any] | None:
        """The state to resume from; None for a fresh run."""
        if not self.state.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.state, map_location=device, weights_only=True)
        except Exception as error:  # a damaged file makes torch raise almost anything
            raise ValueError(
                f"{self.state} cannot be read ({str(error).splitlines()[0][:120]}); move it away "
                "to start anew"
            ) from None
        if "recipe" not in state or "progress" not in state:
            raise ValueError(f"{self.state} is no state of a training run; use another --out")
        return state

    def check_same(self, state: dict[str, Any], data: dict[str, Any], recipe: Recipe) -> None:
        """Raises ValueError where a state belongs to other data or another recipe."""
        where = f"{self.state} was trained with"
        use = "give the same again, or another --out"
        for what, before in state["data"].items():
            now = data[what]
            if what == "classes" and len(now) != len(before):
                raise ValueError(f"{where} {len(before)} classes, not {len(now)}; {use}")
            if now != before:
                raise ValueError(f"{where} other {what} ({before}, now {now}); {use}")
        differ = recipe.differences(Recipe.from_dict(state["recipe"]))
        if differ:
            raise ValueError(f"{where} another recipe: {'; '.join(differ)}; {use}")

    def write_state(self, state: dict[str, Any]) -> None:
        """Replaces the state; a failure leaves the one before and raises OSError."""
        try:
            write_atomically(self.state, lambda path: torch.save(state, path))
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
            raise OSError(
                f"{self.state} cannot be written ({reason}); the state before is kept: free some "
                "space and give the same command to continue"
            ) from None

    def write_log(self, rows: list[dict[str, Any]]) -> None:
        """Replaces log.csv; empty cells where a row lacks a column."""
        columns = list(dict.fromkeys(name for row in rows for name in row))

        def write(path: Path) -> None:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(rows)

        write_atomically(self.path / "log.csv", write)


def read_log(path: Path) -> list[dict[str, float]]:
    """Rows of a run's log.csv (or of the folder's), empty cells left out."""
    path = path / "log.csv" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected the folder of a training run")
    with path.open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def size_on_disk(model: torch.nn.Module) -> int:
    """Bytes of a model's state dict."""
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())


class Board:
    """TensorBoard scalars, or nothing; of an earlier run those after `step` are hidden."""

    def __init__(self, folder: Path | None, step: int = 0) -> None:
        self._writer: Any = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ImportError(
                "--tensorboard needs the tensorboard package: pip install 'fastscnn[tensorboard]'"
            ) from None
        self._writer = SummaryWriter(os.fspath(folder / "tensorboard"), purge_step=step + 1)

    def add(self, values: dict[str, float], step: int) -> None:
        """One point per value."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def close(self) -> None:
        """Ends the record."""
        if self._writer is not None:
            self._writer.close()
