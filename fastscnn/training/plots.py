"""Pictures of results: confusion matrix, bars per class, learning curves (Figure 4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastscnn.checkpoints.formats import write_atomically
from fastscnn.training.evaluate import Result
from fastscnn.training.run_folder import read_log


def require_matplotlib() -> Any:
    """matplotlib, or an ImportError that names the extra."""
    try:
        import matplotlib
    except ImportError:
        raise ImportError("plots need matplotlib: pip install 'fastscnn[plot]'") from None
    return matplotlib


def _figure(width: float, height: float) -> Any:
    """An empty figure that needs no display."""
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _write(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda p: figure.savefig(p, dpi=120, format="png"))
    return path


def plot_result(result: Result, folder: Path) -> list[Path]:
    """confusion.png and classes.png of one evaluation."""
    return [
        plot_confusion(result, folder / "confusion.png"),
        plot_classes(result, folder / "classes.png"),
    ]


def plot_confusion(result: Result, path: Path) -> Path:
    """Share of each true class's pixels (rows) by their label (columns), in per cent."""
    counts = result.confusion.astype(np.float64)
    total = counts.sum(axis=1, keepdims=True)
    share = 100 * np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    n, names = len(result.classes), result.classes.names
    figure = _figure(2 + 0.42 * n, 1.8 + 0.42 * n)
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(n), names, rotation=45, ha="right")
    axes.set_yticks(range(n), names)
    axes.set_xlabel("label")
    axes.set_ylabel("truth")
    axes.set_title("% of the true class's pixels")
    for t in range(n):
        for p in range(n):
            if share[t, p] >= 0.5:
                color = "white" if share[t, p] > 55 else "black"
                axes.text(p, t, f"{share[t, p]:.0f}", ha="center", va="center", color=color, size=8)
    return _write(figure, path)


def plot_classes(result: Result, path: Path) -> Path:
    """IoU per class as bars in the classes' colours, best first, with the mean."""
    iou = 100 * result.iou
    order = sorted(range(len(iou)), key=lambda i: -np.nan_to_num(iou[i], nan=-1))
    names = [result.classes.names[i] for i in order]
    figure = _figure(8, 1.2 + 0.3 * len(iou))
    axes = figure.subplots()
    values = [float(np.nan_to_num(iou[i])) for i in order]
    colors = [tuple(c / 255 for c in result.classes.colors[i]) for i in order]
    axes.barh(range(len(order)), values, color=colors, edgecolor="0.4", linewidth=0.5)
    for y, i in enumerate(order):
        text = "absent" if np.isnan(iou[i]) else f"{iou[i]:.1f}"
        axes.text(values[y] + 0.8, y, text, va="center", size=9)
    axes.axvline(100 * result.miou, color="0.2", linestyle="--", linewidth=1)
    axes.set_title(
        f"IoU % per class; mean {100 * result.miou:.1f}, "
        f"pixel accuracy {100 * result.pixel_accuracy:.1f}"
    )
    axes.set_yticks(range(len(order)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 105)
    axes.spines[["top", "right"]].set_visible(False)
    return _write(figure, path)


def plot_curves(runs: Sequence[Path], path: Path, score: str | None = None) -> Path:
    """Validation score over iterations and over epochs, and the loss, of one or more runs."""
    figure = _figure(13, 4)
    axes = figure.subplots(1, 3)
    for run in runs:
        rows = read_log(run)
        name = run.parent.name if run.suffix == ".csv" else run.resolve().name
        key = score or ("top1" if any("top1" in r for r in rows) else "miou")
        scored = [r for r in rows if key in r]
        values = [100 * r[key] for r in scored]
        marker = "o" if len(values) < 30 else None
        axes[0].plot([r["step"] for r in scored], values, label=name, marker=marker, markersize=3)
        axes[1].plot([r["epoch"] for r in scored], values, label=name, marker=marker, markersize=3)
        axes[2].plot([r["epoch"] for r in rows], [r["loss"] for r in rows], label=name)
    label = {"miou": "validation mIoU %", "top1": "validation top-1 %"}
    for axis, x, y in zip(
        axes, ("iterations", "epochs", "epochs"), (label.get(key, key),) * 2 + ("training loss",),
        strict=True,
    ):  # fmt: skip
        axis.set_xlabel(x)
        axis.set_ylabel(y)
        axis.set_xlim(left=0)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].legend(frameon=False)
    return _write(figure, path)
