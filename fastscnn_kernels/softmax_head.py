"""Class scores to softmax probabilities at full size, in one kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from fastscnn_kernels import checks, registration


def _fake(scores: Tensor, size: list[int], align_corners: bool) -> Tensor:
    shape = (*scores.shape[:2], size[0], size[1])
    return torch.empty(shape, dtype=torch.float32, device=scores.device)


def _adapt(
    implementation: registration.Implementation,
    scores: Tensor,
    size: list[int],
    align_corners: bool,
) -> Tensor:
    y: Tensor = implementation(scores, tuple(size), align_corners=align_corners)
    return y.contiguous()


_op = registration.define(
    "softmax_head", "(Tensor scores, SymInt[] size, *, bool align_corners) -> Tensor", _fake, _adapt
)


def softmax_head(scores: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """Bilinear to `size`; softmax probabilities N x K x H x W in float32, contiguous.

    p_k = exp(v_k - max v) / sum_j exp(v_j - max v), v = bilinear(scores)

    `scores` N x K x h x w with K <= 255, any layout (planes are read fastest). Raises TypeError or
    ValueError naming what does not fit.

    Moves K scores per source pixel and 4 K bytes per pixel; about 8 K flops per pixel.

    Equivalent to:
        F.interpolate(scores, size, mode="bilinear", align_corners=align_corners).softmax(1)
    """
    op = "softmax_head"
    checks.check_map(op, "scores", scores)
    checks.check_size(op, size, scores.shape[1])
    y: Tensor = _op(scores, list(size), align_corners=align_corners)
    return y
