"""The operations on CPU tensors in C++: checks, memory layouts and calls; no mathematics.

Every function has the name, arguments and meaning of its twin in `reference.py`, for float32
tensors on the CPU. Two keywords are added: `threads` (default: torch's setting; the result does
not depend on it) and `isa`, the instruction set ("" is the machine's best; see `device_info`).
Inputs that are not channels_last are copied into that layout; outputs are channels_last.
Other dtypes raise TypeError: half precision is slower than float32 on nearly every CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastscnn_kernels import extension


def argmax_head(
    scores: Tensor,
    size: tuple[int, int],
    *,
    align_corners: bool = False,
    confidence: bool = True,
    threads: int | None = None,
    isa: str = "",
) -> tuple[Tensor, Tensor | None]:
    """Bilinear to `size`; uint8 labels N x H x W and the top-1 softmax probability (or None).

    The full-size logits never exist. Of equal classes the lowest wins, as in torch; NaN never
    wins. Labels differ from the twin's only where the two best classes agree to rounding.
    """
    scores = _nhwc("argmax_head", "scores", scores)
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
        _threads("argmax_head", threads),
        isa,
    )
    return labels, top


def softmax_head(
    scores: Tensor,
    size: tuple[int, int],
    *,
    align_corners: bool = False,
    threads: int | None = None,
    isa: str = "",
) -> Tensor:
    """Bilinear to `size`; softmax probabilities N x C x H x W, contiguous."""
    return _dense_head("softmax_head", scores, size, align_corners, True, threads, isa)


def resize(
    x: Tensor,
    size: tuple[int, int],
    align_corners: bool,
    *,
    threads: int | None = None,
    isa: str = "",
) -> Tensor:
    """Bilinear sampling of N x C x h x w (C up to 255) to N x C x H x W, contiguous."""
    return _dense_head("resize", x, size, align_corners, False, threads, isa)


def _dense_head(
    op: str,
    scores: Tensor,
    size: tuple[int, int],
    align_corners: bool,
    softmax: bool,
    threads: int | None,
    isa: str,
) -> Tensor:
    scores = _nhwc(op, "scores", scores)
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
        _threads(op, threads),
        isa,
    )
    return out


def _nhwc(op: str, name: str, x: Tensor) -> Tensor:
    """`x` as a dense channels_last float32 CPU tensor; the same memory where it is one already."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} is a {type(x).__name__}, expected a torch.Tensor")
    if x.device.type != "cpu":
        raise ValueError(f"{op}: {name} is on {x.device}, expected a CPU tensor; use {name}.cpu()")
    if x.dtype != torch.float32:
        raise TypeError(f"{op}: {name} is {x.dtype}, expected torch.float32; use {name}.float()")
    if x.dim() != 4 or 0 in x.shape:
        raise ValueError(
            f"{op}: {name} has shape {tuple(x.shape)}, expected non-empty N x C x H x W"
        )
    # permute().contiguous() instead of memory_format: the strides of axes of size 1 matter too
    return x.detach().permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


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


def _threads(op: str, threads: int | None) -> int:
    if threads is None:
        return torch.get_num_threads()
    if threads < 1:
        raise ValueError(
            f"{op}: threads={threads}, expected 1 or more, or None for torch's setting"
        )
    return threads
