"""The heads on CPU tensors in C++: class scores to full-size labels, probabilities or logits.

`operations.py` offers them beside the other operations and says what all have in common.
`workspace` is the `_C.Workspace` to use; by default one of the calling thread.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastscnn_kernels import extension
from fastscnn_kernels.cpu import pack as cpu_pack
from fastscnn_kernels.cpu.pack import check_threads, nhwc


def argmax_head(
    scores: Tensor,
    size: tuple[int, int],
    *,
    align_corners: bool = False,
    confidence: bool = True,
    threads: int | None = None,
    isa: str = "",
    workspace: Any = None,
) -> tuple[Tensor, Tensor | None]:
    """Bilinear to `size`; uint8 labels N x H x W and the top-1 softmax probability (or None).

    The full-size logits never exist. Of equal classes the lowest wins, as in torch; NaN never
    wins. Labels differ from the twin's only where the two best classes agree to rounding.
    """
    scores = nhwc("argmax_head", "scores", scores)
    n, h, w, classes = _sizes("argmax_head", scores, size)
    labels = torch.empty((n, *size), dtype=torch.uint8)
    top = torch.empty((n, *size)) if confidence else None
    ext = extension.load()
    ext.argmax_head(
        scores.data_ptr(),
        labels.data_ptr(),
        top.data_ptr() if top is not None else 0,
        n,
        classes,
        ext.Axis(h, size[0], align_corners),
        ext.Axis(w, size[1], align_corners),
        check_threads("argmax_head", threads),
        isa,
        workspace or cpu_pack.workspace(),
    )
    return labels, top


def softmax_head(
    scores: Tensor,
    size: tuple[int, int],
    *,
    align_corners: bool = False,
    threads: int | None = None,
    isa: str = "",
    workspace: Any = None,
) -> Tensor:
    """Bilinear to `size`; softmax probabilities N x C x H x W, contiguous."""
    return _dense_head("softmax_head", scores, size, align_corners, True, threads, isa, workspace)


def resize(
    x: Tensor,
    size: tuple[int, int],
    align_corners: bool,
    *,
    threads: int | None = None,
    isa: str = "",
    workspace: Any = None,
) -> Tensor:
    """Bilinear sampling of N x C x h x w (C up to 255) to N x C x H x W, contiguous."""
    return _dense_head("resize", x, size, align_corners, False, threads, isa, workspace)


def _dense_head(
    op: str,
    scores: Tensor,
    size: tuple[int, int],
    align_corners: bool,
    softmax: bool,
    threads: int | None,
    isa: str,
    workspace: Any,
) -> Tensor:
    scores = nhwc(op, "scores", scores)
    n, h, w, classes = _sizes(op, scores, size)
    out = torch.empty((n, classes, *size))
    ext = extension.load()
    ext.dense_head(
        scores.data_ptr(),
        out.data_ptr(),
        n,
        classes,
        softmax,
        ext.Axis(h, size[0], align_corners),
        ext.Axis(w, size[1], align_corners),
        check_threads(op, threads),
        isa,
        workspace or cpu_pack.workspace(),
    )
    return out


def _sizes(op: str, scores: Tensor, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(N, h, w, C) after checking what a head can do."""
    n, classes, h, w = scores.shape
    if classes > 255:
        raise ValueError(
            f"{op}: scores has {classes} channels, expected at most 255 (uint8 labels)"
        )
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"{op}: size={tuple(size)}, expected (height, width) of at least 1")
    return n, h, w, classes
