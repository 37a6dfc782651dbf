"""Pictures in bytes on CPU tensors in C++: frames to another size, labels to colours and overlays.

`operations.py` offers them beside the other operations and says what all have in common.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastscnn_kernels import extension
from fastscnn_kernels.cpu import pack as cpu_pack
from fastscnn_kernels.cpu.pack import check_threads, dense_bytes


def resize_frame(
    frame: Tensor,
    size: tuple[int, int],
    *,
    bgr: bool = False,
    threads: int | None = None,
    isa: str = "",
) -> Tensor:
    """Bilinear resize of uint8 N x H x W x 3, RGB or `bgr`, to contiguous RGB; equals the twin bit
    for bit."""
    op = "resize_frame"
    if not isinstance(frame, Tensor) or frame.dim() != 4 or 0 in frame.shape:
        raise ValueError(f"{op}: frame is {type(frame).__name__}, expected a uint8 N x H x W x 3")
    n, h, w, _ = frame.shape
    frame = dense_bytes(op, "frame", frame, (n, h, w, 3))
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"{op}: size={tuple(size)}, expected (height, width) of at least 1")
    y = torch.empty((n, *size, 3), dtype=torch.uint8)
    ext = extension.load()
    ext.resize_frame(
        *(frame.data_ptr(), bgr, n, ext.ByteAxis(h, size[0]), ext.ByteAxis(w, size[1])),
        y.data_ptr(),
        *(check_threads(op, threads), isa, cpu_pack.workspace()),
    )
    return y


def colorize(
    labels: Tensor,
    colors: Tensor,
    *,
    threads: int | None = None,
    isa: str = "",
    workspace: Any = None,
) -> Tensor:
    """uint8 labels of any shape to uint8 RGB ... x 3 by `colors`, uint8 K x 3; labels from K on are
    black."""
    return _overlay("colorize", None, labels, colors, 1.0, threads, isa, workspace)


def overlay(
    frame: Tensor,
    labels: Tensor,
    colors: Tensor,
    *,
    opacity: float = 0.5,
    threads: int | None = None,
    isa: str = "",
    workspace: Any = None,
) -> Tensor:
    """uint8 `frame` ... x 3 mixed with the colours of its labels, uint8 ...; labels from K on leave
    the frame as it is. Equals the twin bit for bit."""
    return _overlay("overlay", frame, labels, colors, opacity, threads, isa, workspace)


def _overlay(
    op: str,
    frame: Tensor | None,
    labels: Tensor,
    colors: Tensor,
    opacity: float,
    threads: int | None,
    isa: str,
    workspace: Any,
) -> Tensor:
    labels = dense_bytes(op, "labels", labels, tuple(labels.shape))
    colors = dense_bytes(op, "colors", colors, (len(colors), 3))
    if len(colors) > 255:
        raise ValueError(f"{op}: colors has {len(colors)} rows, expected at most 255 classes")
    if not 0 <= opacity <= 1:
        raise ValueError(f"{op}: opacity={opacity}, expected 0..1")
    if frame is not None:
        frame = dense_bytes(op, "frame", frame, (*labels.shape, 3))
    y = torch.empty((*labels.shape, 3), dtype=torch.uint8)
    width = labels.shape[-1] if labels.dim() else 1
    extension.load().overlay(
        *(labels.data_ptr(), 0 if frame is None else frame.data_ptr(), colors.data_ptr()),
        *(len(colors), round(256 * opacity), y.data_ptr(), labels.numel() // max(width, 1), width),
        *(check_threads(op, threads), isa, workspace or cpu_pack.workspace()),
    )
    return y
