"""Feature fusion: the upsampled low-resolution branch added to the high-resolution one."""

from __future__ import annotations

from torch import Tensor

from fastscnn_kernels import checks, registration
from fastscnn_kernels.shapes import empty_map


def _fake(
    high: Tensor,
    low: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    low_weight: Tensor,
    low_bias: Tensor,
    high_weight: Tensor,
    high_bias: Tensor,
    dilation: int,
    align_corners: bool,
) -> Tensor:
    return empty_map(high, low_weight.shape[0], high.shape[2], high.shape[3])


_op = registration.define(
    "feature_fusion",
    "(Tensor high, Tensor low, Tensor depthwise_weight, Tensor depthwise_bias, Tensor low_weight,"
    " Tensor low_bias, Tensor high_weight, Tensor high_bias, *, SymInt dilation,"
    " bool align_corners) -> Tensor",
    _fake,
)


def feature_fusion(
    high: Tensor,
    low: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    low_weight: Tensor,
    low_bias: Tensor,
    high_weight: Tensor,
    high_bias: Tensor,
    *,
    dilation: int = 4,
    align_corners: bool = False,
) -> Tensor:
    """relu(low_1x1(relu(depthwise(bilinear(low)))) + high_1x1(high)).

    `high` N x D x H x W, `low` N x C x h x w. `depthwise_weight` is C x 1 x 3 x 3 (with `dilation`,
    padding = dilation) or, for the dense variant, C x C x 1 x 1; `low_weight` O x C x 1 x 1,
    `high_weight` O x D x 1 x 1. Returns N x O x H x W, channels_last; the upsampled map is never
    stored. Raises TypeError or ValueError naming what does not fit.

    Moves D + O activations per pixel and C per pixel of `low`; (90 + 2 O) C + 2 D O flops a pixel.

    Equivalent to:
        u = F.interpolate(low, high.shape[2:], mode="bilinear", align_corners=align_corners)
        u = F.relu(F.conv2d(u, depthwise_weight, depthwise_bias, 1, d, d, groups=C))
        F.relu(F.conv2d(u, low_weight, low_bias) + F.conv2d(high, high_weight, high_bias))
    """
    op = "feature_fusion"
    checks.check_map(op, "high", high)
    checks.check_map(op, "low", low)
    c, d, o = low.shape[1], high.shape[1], low_weight.shape[0]
    checks.check_tensor(op, "low", low, (high.shape[0], *low.shape[1:]), high)
    dense = depthwise_weight.shape[-1] == 1
    shape = (c, c, 1, 1) if dense else (c, 1, 3, 3)
    checks.check_conv(op, "depthwise_", depthwise_weight, depthwise_bias, shape, high)
    checks.check_conv(op, "low_", low_weight, low_bias, (o, c, 1, 1), high)
    checks.check_conv(op, "high_", high_weight, high_bias, (o, d, 1, 1), high)
    checks.check_step(op, 1, dilation)
    y: Tensor = _op(
        high,
        low,
        depthwise_weight,
        depthwise_bias,
        low_weight,
        low_bias,
        high_weight,
        high_bias,
        dilation=dilation,
        align_corners=align_corners,
    )
    return y
