"""The first convolution: normalisation, 3x3 stride 2, bias, activation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastscnn_kernels import checks, registration
from fastscnn_kernels.shapes import empty_map, stem_size


def _fake(
    frame: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    padding: str,
    activation: str,
) -> Tensor:
    h, w = frame.shape[1:3] if frame.dtype == torch.uint8 else frame.shape[2:4]
    return empty_map(frame, weight.shape[0], *stem_size(h, w, padding), weight.dtype)


_op = registration.define(
    "stem_conv",
    "(Tensor frame, Tensor weight, Tensor bias, *, float[] mean, float[] std, str padding,"
    " str activation) -> Tensor",
    _fake,
    registration.with_padding,
)


def stem_conv(
    frame: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    padding: int | str = 1,
    activation: str = "relu",
) -> Tensor:
    """3x3 stride-2 convolution of a uint8 frame, or of normalised floats.

    y[n, o, h, w] = f(b[o] + sum_ijc weight[o, c, i, j] z[n, c, 2 h + i - top, 2 w + j - left])
    z = (frame / 255 - mean) / std, zero outside the frame

    `frame` uint8 N x H x W x 3, or float N x 3 x H x W that is normalised already; `weight`
    O x 3 x 3 x 3 gives the result's dtype. `padding` 0, 1 or "same" (TensorFlow's rule). Returns
    N x O x OH x OW, channels_last. Raises TypeError or ValueError naming what does not fit.

    Moves 3 bytes per input pixel and O activations per output pixel; 54 O flops per output pixel.

    Equivalent to:
        f(F.conv2d(F.pad(normalize(frame, mean, std), pads), weight, bias, stride=2))
    """
    op = "stem_conv"
    checks.check_frame(op, frame, weight, padding)
    checks.check_conv(op, "", weight, bias, (weight.shape[0], 3, 3, 3), weight)
    checks.check_activation(op, activation)
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(f"{op}: mean={mean}, std={std}, expected three values each (R, G, B)")
    y: Tensor = _op(
        frame,
        weight,
        bias,
        mean=[float(v) for v in mean],
        std=[float(v) for v in std],
        padding=str(padding),
        activation=activation,
    )
    return y
