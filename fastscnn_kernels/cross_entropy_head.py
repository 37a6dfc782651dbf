"""Softmax cross-entropy of upsampled class scores, without full-size logits, with gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastscnn_kernels import checks, registration
from fastscnn_kernels.shapes import empty_map, nhwc

_OPTIONS = "*, int ignore_index, float label_smoothing, bool align_corners"
REDUCTIONS = ("mean", "sum", "none")


def _sums_fake(
    scores: Tensor, target: Tensor, weight: Tensor | None, gradient: bool, **_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    grad = empty_map(scores, *scores.shape[1:]) if gradient else scores.new_empty(0)
    return scores.new_empty(()), scores.new_empty(()), grad


def _sums_adapt(
    implementation: registration.Implementation, scores: Tensor, *args: Any, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    loss, count, grad = implementation(scores, *args, **options)
    return loss, count.to(loss.dtype), scores.new_empty(0) if grad is None else nhwc(grad)


def _sums_setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: Any, output: Any) -> None:
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.save_for_backward(output[2])


@once_differentiable
def _sums_backward(ctx: Any, loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    (grad,) = ctx.saved_tensors
    return grad * loss, None, None


_sums_op = registration.define(
    "cross_entropy_head_sums",
    f"(Tensor scores, Tensor target, Tensor? weight, {_OPTIONS}, bool gradient)"
    " -> (Tensor, Tensor, Tensor)",
    _sums_fake,
    _sums_adapt,
    (_sums_setup, _sums_backward),
)


def _map_fake(scores: Tensor, target: Tensor, weight: Tensor | None, **_: Any) -> Tensor:
    return scores.new_empty(target.shape)


def _map_setup(
    ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any
) -> None:
    ctx.save_for_backward(*inputs)
    ctx.options = keyword_only_inputs


@once_differentiable
def _map_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    scores, target, weight = ctx.saved_tensors
    return _backward_op(grad, scores, target, weight, **ctx.options), None, None


_map_op = registration.define(
    "cross_entropy_head_map",
    f"(Tensor scores, Tensor target, Tensor? weight, {_OPTIONS}) -> Tensor",
    _map_fake,
    lambda implementation, *args, **options: implementation(*args, **options),
    (_map_setup, _map_backward),
)

_backward_op = registration.define(
    "cross_entropy_head_backward",
    f"(Tensor pixel_grad, Tensor scores, Tensor target, Tensor? weight, {_OPTIONS}) -> Tensor",
    lambda pixel_grad, scores, *_, **__: empty_map(scores, *scores.shape[1:]),
)


def cross_entropy_head(
    scores: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    align_corners: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Bilinear to the target's size, then softmax cross-entropy with its labels, in float32.

    loss = (1 - s) w_y (lse(v) - v_y) + s / K sum_k w_k (lse(v) - v_k), v = bilinear(scores)

    `scores` N x K x h x w with K <= 255; `target` N x H x W, uint8 or int64; `weight` K class
    weights w (default: ones). Pixels whose label is `ignore_index` do not count. `reduction`
    "mean" divides by the labelled pixels' weights, "sum" does not, "none" gives the losses
    N x H x W, which are 0 where ignored. Differentiable once, by `scores`. A batch of all-ignored
    pixels has torch's mean, NaN.

    Raises TypeError or ValueError naming what does not fit, such as labels that are no class; on
    a GPU, where torch's own operations run, torch's assertion in the kernel stops the program.

    The full-size logits never exist: reads the scores and labels once, and writes the scores'
    gradient in the same sweep ("none" does so in a second one); about 40 K flops per pixel.

    Equivalent to:
        v = F.interpolate(scores.float(), size, mode="bilinear", align_corners=align_corners)
        F.cross_entropy(v, target.long(), weight, ignore_index=ignore_index,
                        label_smoothing=label_smoothing, reduction=reduction)
    """
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"cross_entropy_head: reduction={reduction!r}, expected 'mean', 'sum' or 'none'"
        )
    options = (weight, ignore_index, label_smoothing, align_corners)
    if reduction == "none":
        args, keywords = _checked(scores, target, *options)
        losses: Tensor = _map_op(*args, **keywords)
        return losses
    loss, count = cross_entropy_head_sums(
        scores, target, weight=weight, ignore_index=ignore_index,
        label_smoothing=label_smoothing, align_corners=align_corners,
    )  # fmt: skip
    return loss if reduction == "sum" else loss / count


def cross_entropy_head_sums(
    scores: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    align_corners: bool = False,
) -> tuple[Tensor, Tensor]:
    """The sum of `cross_entropy_head`'s losses, and that of the labelled pixels' weights.

    For a mean over more than one call, such as over many processes. Only the first is
    differentiable.
    """
    args, keywords = _checked(scores, target, weight, ignore_index, label_smoothing, align_corners)
    gradient = torch.is_grad_enabled() and scores.requires_grad
    loss, count, _ = _sums_op(*args, **keywords, gradient=gradient)
    return loss, count


def _checked(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
) -> tuple[tuple[Tensor, Tensor, Tensor | None], dict[str, Any]]:
    """What the registered operations take: scores and weights in float32 (or float64)."""
    op = "cross_entropy_head"
    checks.check_map(op, "scores", scores)
    checks.check_labels(op, target, scores)
    checks.check_size(op, (target.shape[1], target.shape[2]), scores.shape[1])
    dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
    if weight is not None:
        checks.check_tensor(op, "weight", weight, (scores.shape[1],))
        if weight.device != scores.device:
            raise ValueError(f"{op}: weight is on {weight.device}, expected {scores.device}")
        weight = weight.detach().to(dtype)
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"{op}: label_smoothing={label_smoothing}, expected 0 or more and below 1")
    keywords = {
        "ignore_index": ignore_index,
        "label_smoothing": float(label_smoothing),
        "align_corners": align_corners,
    }
    return (scores.to(dtype), target, weight), keywords
