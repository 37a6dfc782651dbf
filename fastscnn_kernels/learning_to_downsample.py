"""Frame to 1/8 of its size: the stem and two stride-2 depthwise separable convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, uint8

from fastscnn_kernels import checks, registration
from fastscnn_kernels.shapes import convolved, empty_map, stem_size


def _fake(
    frame: Tensor,
    stem_weight: Tensor,
    stem_bias: Tensor,
    dsconv1: Sequence[Tensor],
    dsconv2: Sequence[Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    padding: str,
    mid_activation: str,
) -> Tensor:
    h, w = frame.shape[1:3] if frame.dtype == uint8 else frame.shape[2:4]
    h, w = (convolved(convolved(s, 2), 2) for s in stem_size(h, w, padding))
    return empty_map(frame, dsconv2[2].shape[0], h, w, stem_weight.dtype)


_op = registration.define(
    "learning_to_downsample",
    "(Tensor frame, Tensor stem_weight, Tensor stem_bias, Tensor[] dsconv1, Tensor[] dsconv2, *,"
    " float[] mean, float[] std, str padding, str mid_activation) -> Tensor",
    _fake,
    registration.with_padding,
)


def learning_to_downsample(
    frame: Tensor,
    stem_weight: Tensor,
    stem_bias: Tensor,
    dsconv1: Sequence[Tensor],
    dsconv2: Sequence[Tensor],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    padding: int | str = 1,
    mid_activation: str = "none",
) -> Tensor:
    """Stem and two stride-2 DSConvs; each of `dsconv1`, `dsconv2` is the four tensors of one.

    y = dsconv(dsconv(stem_conv(frame), *dsconv1, stride=2), *dsconv2, stride=2)

    `frame` as in `stem_conv`; each DSConv's tensors are C x 1 x 3 x 3, C, O x C x 1 x 1, O.
    Returns about N x O x H / 8 x W / 8, channels_last. Raises TypeError or ValueError naming what
    does not fit.

    Ideally moves 3 bytes per frame pixel and O / 64 activations (Triton stores both maps between).

    Equivalent to: the formula above with the twins of `stem_conv` and `dsconv`.
    """
    op = "learning_to_downsample"
    checks.check_frame(op, frame, stem_weight, padding)
    c = stem_weight.shape[0]
    checks.check_conv(op, "stem_", stem_weight, stem_bias, (c, 3, 3, 3), stem_weight)
    for name, d in (("dsconv1 ", dsconv1), ("dsconv2 ", dsconv2)):
        if len(d) != 4:
            raise ValueError(f"{op}: {name}has {len(d)} tensors, expected 4")
        o = d[2].shape[0]
        checks.check_conv(op, f"{name}depthwise ", d[0], d[1], (c, 1, 3, 3), stem_weight)
        checks.check_conv(op, f"{name}pointwise ", d[2], d[3], (o, c, 1, 1), stem_weight)
        c = o
    checks.check_activation(op, mid_activation, "mid_activation")
    y: Tensor = _op(
        frame,
        stem_weight,
        stem_bias,
        list(dsconv1),
        list(dsconv2),
        mean=[float(v) for v in mean],
        std=[float(v) for v in std],
        padding=str(padding),
        mid_activation=mid_activation,
    )
    return y
