"""Class scores to labels and confidence at full size, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from fastscnn_kernels import checks, registration


def _fake(
    scores: Tensor, size: list[int], align_corners: bool, confidence: bool
) -> tuple[Tensor, Tensor]:
    shape = (scores.shape[0], size[0], size[1])
    labels = torch.empty(shape, dtype=torch.uint8, device=scores.device)
    return labels, labels.new_empty(shape if confidence else (0,), dtype=torch.float32)


def _adapt(
    implementation: registration.Implementation,
    scores: Tensor,
    size: list[int],
    align_corners: bool,
    confidence: bool,
) -> tuple[Tensor, Tensor]:
    labels, top = implementation(
        scores, tuple(size), align_corners=align_corners, confidence=confidence
    )
    return labels, labels.new_empty(0, dtype=torch.float32) if top is None else top


_op = registration.define(
    "argmax_head",
    "(Tensor scores, SymInt[] size, *, bool align_corners, bool confidence) -> (Tensor, Tensor)",
    _fake,
    _adapt,
)


def argmax_head(
    scores: Tensor,
    size: tuple[int, int],
    *,
    align_corners: bool = False,
    confidence: bool = True,
) -> tuple[Tensor, Tensor]:
    """Bilinear to `size`; uint8 labels N x H x W and the top-1 softmax probability (float32).

    v = bilinear(scores);  label = argmax_k v_k;  confidence = 1 / sum_k exp(v_k - max v)

    `scores` N x K x h x w with K <= 255, any layout (planes are read fastest). With
    `confidence=False` the second result is empty and its exponentials are not computed. Labels
    differ from the twin's only where the two best classes agree to rounding. Raises TypeError or
    ValueError naming what does not fit.

    Moves K scores per source pixel and 1 (5) bytes per pixel; about 3 K flops per pixel.

    Equivalent to:
        v = F.interpolate(scores, size, mode="bilinear", align_corners=align_corners)
        v.argmax(1).to(torch.uint8), v.softmax(1).amax(1)
    """
    op = "argmax_head"
    checks.check_map(op, "scores", scores)
    checks.check_size(op, size, scores.shape[1])
    labels, top = _op(scores, list(size), align_corners=align_corners, confidence=confidence)
    return labels, top
