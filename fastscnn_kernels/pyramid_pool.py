"""Pyramid pooling: average pools at several grids, mixed, sampled back, joined with the input."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastscnn_kernels import checks, registration
from fastscnn_kernels.shapes import empty_map


def _fake(
    x: Tensor,
    branch_weights: Sequence[Tensor],
    branch_biases: Sequence[Tensor],
    join_weight: Tensor,
    join_bias: Tensor,
    order: Sequence[int],
    align_corners: bool,
) -> Tensor:
    return empty_map(x, join_weight.shape[0], x.shape[2], x.shape[3])


_op = registration.define(
    "pyramid_pool",
    "(Tensor x, Tensor[] branch_weights, Tensor[] branch_biases, Tensor join_weight,"
    " Tensor join_bias, *, int[] order, bool align_corners) -> Tensor",
    _fake,
)


def pyramid_pool(
    x: Tensor,
    branch_weights: Sequence[Tensor],
    branch_biases: Sequence[Tensor],
    join_weight: Tensor,
    join_bias: Tensor,
    *,
    order: Sequence[int] = (0, 1, 2, 3, 6),
    align_corners: bool = False,
) -> Tensor:
    """Adaptive average pools, 1x1 + ReLU each, bilinear back, concat in `order`, join, ReLU.

    m_b = resize(relu(branch_b(adaptive_avg_pool(x, b))));  y = relu(join(cat(x, m_1, m_2, ...)))

    `x` N x C x H x W. Branches are given by ascending bin, each weight B x C x 1 x 1; 0 in `order`
    stands for x itself. The join is 1x1 or 3x3 (zero padding) over C + B * bins channels. Returns
    N x O x H x W, channels_last. Raises TypeError or ValueError naming what does not fit.

    Moves 2 C + O activations per pixel; 2 (C + B bins) O k^2 flops per pixel.

    Equivalent to:
        maps = [resize(F.relu(F.conv2d(F.adaptive_avg_pool2d(x, b), w, v)), x.shape[2:]) ...]
        F.relu(F.conv2d(torch.cat([x, *maps], 1), join_weight, join_bias, padding=k // 2))
    """
    op = "pyramid_pool"
    checks.check_map(op, "x", x)
    bins = sorted(b for b in order if b)
    if sorted(order)[0] != 0 or len(set(order)) != len(order) or len(bins) < 1:
        raise ValueError(f"{op}: order={tuple(order)}, expected 0 and distinct positive bins")
    if not len(bins) == len(branch_weights) == len(branch_biases):
        raise ValueError(
            f"{op}: {len(branch_weights)} branch weights and {len(branch_biases)} biases, expected "
            f"one for each of the bins {bins}"
        )
    c, width, k = x.shape[1], branch_weights[0].shape[0], join_weight.shape[-1]
    for i, (weight, bias) in enumerate(zip(branch_weights, branch_biases, strict=True)):
        checks.check_conv(op, f"branch {i} ", weight, bias, (width, c, 1, 1), x)
    if k not in (1, 3):
        raise ValueError(f"{op}: join_weight is {k}x{k}, expected a 1x1 or 3x3 join")
    shape = (join_weight.shape[0], c + width * len(bins), k, k)
    checks.check_conv(op, "join_", join_weight, join_bias, shape, x)
    y: Tensor = _op(
        x,
        list(branch_weights),
        list(branch_biases),
        join_weight,
        join_bias,
        order=list(order),
        align_corners=align_corners,
    )
    return y
