"""How far a run is: the part of its state that a person reads, and the rows of its log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """Counts over a whole run and over the epoch under way; its fields are kept in `last.pth`."""

    step: int = 0
    best: float = -1.0
    #: Of the epoch under way: sum and number of the losses, seconds, and of these waiting for data.
    loss_sum: float = 0.0
    losses: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    total_seconds: float = 0.0
    skipped: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """Mean loss of the epoch under way."""
        return self.loss_sum / max(1, self.losses)

    def count(self, took: float, waited: float) -> None:
        """One more step, with its seconds and those of them that waited for data."""
        self.step += 1
        self.seconds += took
        self.waited += waited

    def finish_epoch(
        self, epoch: int, batch: int, lr: float, scores: Mapping[str, float], validation: float
    ) -> dict[str, Any]:
        """The epoch's row of the log; `validation` are the seconds that followed its last step."""
        images = self.step * batch - (self.rows[-1]["images"] if self.rows else 0)
        row = {
            "epoch": epoch,
            "step": self.step,
            "images": self.step * batch,
            "lr": round(lr, 6),
            "loss": round(self.loss, 5),
            **{k: round(v, 5) for k, v in scores.items()},
            "images_per_second": round(images / max(self.seconds, 1e-9), 2),
            "data_wait": round(self.waited / max(self.seconds, 1e-9), 4),
            "skipped": len(self.skipped),
            "seconds": round(self.seconds + validation, 2),
        }
        self.total_seconds += self.seconds + validation
        self.rows.append(row)
        self.loss_sum, self.losses, self.seconds, self.waited = 0.0, 0, 0.0, 0.0
        return row
