"""Builds, judges and times ways to run one model on one frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fastscnn.benchmark.memory import forget_peak, kept, peak
from fastscnn.benchmark.provider import (
    Agreement,
    Case,
    Provider,
    Unavailable,
    agreement,
    use_threads,
)
from fastscnn.benchmark.timing import alternate, quantiles
from fastscnn.network.model import FastSCNN
from fastscnn_kernels import reference


@dataclass(frozen=True)
class Row:
    """One provider: seconds of its rounds, MB of memory that building and the first frame added to
    the process's peak (None where the system does not say), and its labels' agreement; or the
    reason why there is none of that."""

    provider: str
    seconds: list[float]
    megabytes: float | None
    agreement: Agreement | None
    skipped: str = ""

    def to_dict(self) -> dict[str, Any]:
        if not self.seconds:
            return {"provider": self.provider, "skipped": self.skipped}
        low, median, high = quantiles(self.seconds)
        times = {"ms": median, "q20_ms": low, "q80_ms": high, "fps": 1e3 / median}
        row = {"provider": self.provider, **times, "megabytes": self.megabytes}
        return {**row, **(asdict(self.agreement) if self.agreement else {})}


def compare(
    model: FastSCNN,
    case: Case,
    providers: Iterable[Provider],
    rounds: int,
    *,
    tick: Callable[[str], None] = lambda name: None,
) -> list[Row]:
    """A row per provider, all measured in turns, by an allocator that keeps memory.

    `model` is float32 on the CPU, not fused. A provider whose labels cannot be the reference's has
    no speed: it is skipped, and says so. `tick` is told what happens next.
    """
    calls: dict[str, Callable[[], Any]] = {}
    found: dict[str, tuple[float | None, Agreement]] = {}
    skipped: dict[str, str] = {}
    names = []
    with torch.inference_mode(), kept():
        tick("reference")
        logits = model(reference.normalize(case.frame, model.config.mean, model.config.std))
        for p in providers:
            names.append(p.name)
            tick(p.name)
            forget_peak()
            before = peak()
            try:
                call = p.build(model, case)
                labels = call()
            except Unavailable as reason:
                skipped[p.name] = str(reason)
                continue
            grown = None if before is None else (peak() or before) - before
            judged = agreement(labels, logits, p.near)
            if judged.near < p.share:
                skipped[p.name] = f"wrong labels: {judged.near:.3%} are near the best"
                continue
            calls[p.name], found[p.name] = call, (grown, judged)
        del logits
        use_threads(case.threads)
        seconds = alternate(calls, rounds, case.threads, untimed=1, tick=lambda: tick("timing"))
    return [
        Row(name, seconds[name], *found[name])
        if name in calls
        else Row(name, [], None, None, skipped[name])
        for name in names
    ]
