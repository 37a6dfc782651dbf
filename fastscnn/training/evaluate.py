"""Evaluation: confusion matrix, class and category IoU, pixel accuracy (Tables 4 and 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fastscnn.classes import IGNORE, Classes


@dataclass(frozen=True)
class Result:
    """Counts of one evaluation; `confusion[t, p]` pixels of true class t labelled p."""

    classes: Classes
    confusion: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union per class; NaN where a class neither occurs nor is predicted."""
        return _iou(self.confusion)

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur (0..1)."""
        return float(np.nanmean(self.iou))

    @property
    def category_iou(self) -> dict[str, float]:
        """IoU per category (Cityscapes' seven); empty where the classes have none."""
        groups = [list(members) for _, members in self.classes.categories]
        merged = np.array(
            [[self.confusion[np.ix_(a, b)].sum() for b in groups] for a in groups], dtype=np.int64
        ).reshape(len(groups), len(groups))
        names = (name for name, _ in self.classes.categories)
        return dict(zip(names, map(float, _iou(merged)), strict=True))

    @property
    def category_miou(self) -> float:
        """Mean IoU over the categories that occur; NaN where the classes have none."""
        values = [v for v in self.category_iou.values() if not np.isnan(v)]
        return float(np.mean(values)) if values else float("nan")

    @property
    def pixel_accuracy(self) -> float:
        """Share of labelled pixels with the right class."""
        return float(np.trace(self.confusion) / max(1, self.confusion.sum()))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready summary; absent classes are null."""

        def number(v: float) -> float | None:
            return None if np.isnan(v) else round(float(v), 5)

        out: dict[str, Any] = {
            "miou": number(self.miou),
            "pixel_accuracy": number(self.pixel_accuracy),
            "iou": {n: number(v) for n, v in zip(self.classes.names, self.iou, strict=True)},
        }
        if self.classes.categories:
            values = self.category_iou
            out["category_miou"] = number(self.category_miou)
            out["category_iou"] = {n: number(v) for n, v in values.items()}
        return out

    def table(self) -> str:
        """Per-class table and totals as text."""
        share = self.confusion.sum(axis=1) / max(1, self.confusion.sum())
        width = max(len(n) for n in (*self.classes.names, "pixel accuracy", "category mIoU"))
        rows = [f"{'class':{width}}  IoU %  share %"]
        for name, iou, s in zip(self.classes.names, self.iou, share, strict=True):
            rows.append(f"{name:{width}}  {_percent(iou)}  {100 * s:7.2f}")
        rows.append("-" * (width + 16))
        rows.append(f"{'class mIoU':{width}}  {_percent(self.miou)}")
        if self.classes.categories:
            rows.append(f"{'category mIoU':{width}}  {_percent(self.category_miou)}")
        rows.append(f"{'pixel accuracy':{width}}  {_percent(self.pixel_accuracy)}")
        return "\n".join(rows)


def _percent(v: float) -> str:
    return "    -" if np.isnan(v) else f"{100 * v:5.2f}"


def _iou(confusion: np.ndarray) -> np.ndarray:
    hit = np.diag(confusion).astype(np.float64)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hit
    return np.divide(hit, union, out=np.full(len(hit), np.nan), where=union > 0)


def evaluate(
    predict: Callable[[Tensor], Tensor],
    pairs: Iterable[tuple[Tensor, Tensor]],
    classes: Classes,
) -> Result:
    """Counts over (uint8 image 3 x H x W, uint8 mask H x W) pairs; 255 in a mask is ignored.

    `predict` takes a uint8 frame H x W x 3 and returns uint8 labels H x W, as `model.segment`.
    """
    n = len(classes)
    total = np.zeros((n, n), np.int64)
    for image, mask in pairs:
        labels = predict(image.permute(1, 2, 0).contiguous()).cpu()
        total += confusion(mask.numpy(), labels.numpy(), n)
    return Result(classes, total)


def confusion(truth: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Pixels by (true class, label), classes x classes; where the truth is 255 none is counted."""
    counted = truth != IGNORE
    t, p = truth[counted].astype(np.int64), labels[counted].astype(np.int64)
    if max(t.max(initial=0), p.max(initial=0)) >= classes:
        raise ValueError(
            f"truth up to {t.max(initial=0)} and labels up to {p.max(initial=0)}: expected class "
            f"indices below {classes}, or 255 in the truth"
        )
    return np.bincount(classes * t + p, minlength=classes**2).reshape(classes, classes)
