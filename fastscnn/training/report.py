"""What a person sees of a training run: the plan, a progress bar, a line per epoch."""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fastscnn.training.recipe import Recipe

#: How validation scores are called in print.
_NAMES = {
    "miou": "mIoU",
    "category_miou": "category mIoU",
    "pixel_accuracy": "pixel accuracy",
    "top1": "top-1",
    "top5": "top-5",
}
#: Steps that are timed for the estimate, after some that warm up.
_WARM_UP, _TIMED = 3, 5


class Report:
    """Prints and counts down one run; nothing at all where `shown` is false."""

    def __init__(self, recipe: Recipe, steps_per_epoch: int, shown: bool) -> None:
        self.recipe, self.steps_per_epoch, self.shown = recipe, steps_per_epoch, shown
        self._paces: list[float] = []
        self._bar: Any = None

    def say(self, text: str) -> None:
        """One line on stdout, above the bar."""
        if self.shown:
            tqdm.write(text)
            sys.stdout.flush()

    def plan(
        self, data: Iterator[str], model: str, done: int, left: int, device: str, folder: str
    ) -> None:
        """What the run will do, with `done` of its steps made; `left` images fill no batch."""
        r, n = self.recipe, self.steps_per_epoch
        if not self.shown:
            return
        for line in data:
            self.say(line)
        paper, now = Recipe().to_dict(), r.to_dict()
        values = {k: "x".join(map(str, v)) if isinstance(v, list) else v for k, v in now.items()}
        own = ", ".join(f"{k} {v}" for k, v in values.items() if now[k] != paper[k])
        self.say(f"recipe   the paper's but {own}" if own else "recipe   the paper's")
        self.say(f"model    {model}")
        self.say(
            f"steps    {n} an epoch of {r.batch} images each, {r.epochs} epochs, "
            f"{n * r.epochs} in all; {done} done"
        )
        if left:
            self.say(f"note     {left} images do not fill a batch; others are left out each epoch")
        self.say(f"runs on  {device}")
        self.say(f"writes   {folder}: last.pth, best.safetensors, log.csv")
        if done == n * r.epochs:
            self.say("nothing to do: the run has all its epochs; another --out trains anew")

    def step(self, step: int, loss: float, lr: float, took: float, waited: float) -> None:
        """After a step: moves the bar; after a few, says how long the run will take."""
        if not self.shown:
            return
        n, epochs = self.steps_per_epoch, self.recipe.epochs
        if self._bar is None:
            self._bar = tqdm(
                total=n, leave=False, disable=not sys.stderr.isatty(), dynamic_ncols=True,
                bar_format="{desc} |{bar:30}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}",
            )  # fmt: skip
        if not self._bar.disable:
            self._bar.set_description_str(f"epoch {(step - 1) // n + 1}/{epochs}", False)
            self._bar.set_postfix_str(
                f"loss {loss:.3f}, lr {lr:.4f}, {1e3 * took:.0f} ms a step, "
                f"data {1e3 * waited:.0f} ms",
                False,
            )
            self._bar.update((step - 1) % n + 1 - self._bar.n)
        if len(self._paces) < _WARM_UP + _TIMED:
            self._paces.append(took)
            if len(self._paces) == _WARM_UP + _TIMED:
                pace = statistics.median(self._paces[_WARM_UP:])
                left = duration(pace * (n * epochs - step))
                self.say(f"pace     {pace:.3g} s a step: {left} to go, validation not counted")

    def epoch(
        self,
        row: Mapping[str, Any],
        scores: Mapping[str, float],
        best: float,
        unreadable: int,
        seconds: float,
    ) -> None:
        """One line at an epoch's end; `seconds` are those of the whole run so far."""
        self.end_bar()
        done, epochs = row["epoch"], self.recipe.epochs
        parts = [f"epoch {done}/{epochs}", f"loss {row['loss']:.4f}"]
        parts += [f"{_NAMES[k]} {100 * v:.2f} %" for k, v in scores.items()]
        if scores:
            new = best == next(iter(scores.values()))
            parts.append("best so far" if new else f"(best {100 * best:.2f} %)")
        if unreadable:
            parts.append(f"{unreadable} validation files unreadable")
        if row["skipped"]:
            parts.append(f"{row['skipped']} training files skipped")
        wait = f"{100 * row['data_wait']:.0f} % of the time waiting for data"
        parts.append(f"{row['images_per_second']:.1f} images/s, {wait}")
        left = seconds / done * (epochs - done)
        parts.append(f"{duration(left)} left" if done < epochs else f"{duration(seconds)} in all")
        self.say("  ".join(parts))

    def end(self, score: str, best: float, path: str) -> None:
        """The last line."""
        self.say(f"best {_NAMES[score]} {100 * best:.2f} %: {path}")

    def end_bar(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def duration(seconds: float) -> str:
    """Seconds in words: "50 s", "3 min", "1 h 20 min"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def machine(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} {platform.machine()}, {threads} thread{'s' if threads > 1 else ''}"


def commit() -> str:
    """The commit of this source tree, or nothing."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()
