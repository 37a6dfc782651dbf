"""Cross-entropy of upsampled class scores on CPU tensors in C++; see `operations.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from fastscnn_kernels import extension
from fastscnn_kernels.cpu import pack


def cross_entropy_head_sums(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    align_corners: bool = False,
    gradient: bool = False,
    threads: int | None = None,
    isa: str = "",
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The sum of the pixels' losses, that of the labelled pixels' weights, and the gradient of the
    first (channels_last; None if not asked for), in one sweep."""
    scores = pack.nhwc("cross_entropy_head", "scores", scores)
    grad = torch.empty_like(scores, memory_format=torch.preserve_format) if gradient else None
    loss, count = _run(
        scores, target, weight, ignore_index, label_smoothing, align_corners, threads, isa,
        grad=grad,
    )  # fmt: skip
    return torch.tensor(loss), torch.tensor(count), grad


def cross_entropy_head_map(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    align_corners: bool = False,
    threads: int | None = None,
    isa: str = "",
) -> Tensor:
    """The pixels' losses, float32 N x H x W, 0 where ignored."""
    loss = torch.empty(target.shape, dtype=torch.float32)
    _run(
        pack.nhwc("cross_entropy_head", "scores", scores),
        *(target, weight, ignore_index, label_smoothing, align_corners, threads, isa),
        loss=loss,
    )
    return loss


def cross_entropy_head_backward(
    pixel_grad: Tensor,
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    align_corners: bool = False,
    threads: int | None = None,
    isa: str = "",
) -> Tensor:
    """The scores' gradient, channels_last, of `pixel_grad` N x H x W of the pixels' losses."""
    op = "cross_entropy_head"
    scores = pack.nhwc(op, "scores", scores)
    pixel_grad = pack.dense(op, "gradient", pixel_grad, 3)
    grad = torch.empty_like(scores, memory_format=torch.preserve_format)
    _run(
        scores, target, weight, ignore_index, label_smoothing, align_corners, threads, isa,
        pixel_grad=pixel_grad, grad=grad,
    )  # fmt: skip
    return grad


def _run(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
    threads: int | None,
    isa: str,
    *,
    pixel_grad: Tensor | None = None,
    loss: Tensor | None = None,
    grad: Tensor | None = None,
) -> tuple[float, float]:
    """(sum of the losses, sum of the labelled pixels' weights) of dense channels_last scores."""
    ext, op = extension.load(), "cross_entropy_head"
    n, classes, h, w = scores.shape
    target = target.contiguous()
    weight = None if weight is None else pack.dense(op, "weight", weight, 1)
    total, count, invalid = ext.cross_entropy_head(
        *(scores.data_ptr(), target.data_ptr(), target.dtype == torch.uint8),
        *(_address(weight), _address(pixel_grad), ignore_index, label_smoothing),
        *(_address(loss), _address(grad), n, classes),
        ext.Axis(h, target.shape[1], align_corners),
        ext.Axis(w, target.shape[2], align_corners),
        *(pack.check_threads(op, threads), isa, pack.workspace()),
    )
    if invalid >= 0:
        at = [int(i) for i in torch.unravel_index(torch.tensor(invalid), target.shape)]
        raise ValueError(
            f"{op}: target has label {int(target.flatten()[invalid])} at {tuple(at)}, expected "
            f"0..{classes - 1} or ignore_index={ignore_index}"
        )
    return total, count


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()
