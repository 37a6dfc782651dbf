"""The stem and two stride-2 DSConvs, one launch each.

Equivalent to: dsconv(dsconv(stem_conv(frame), ..., stride=2), ..., stride=2)
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastscnn_kernels.triton.dsconv import dsconv
from fastscnn_kernels.triton.stem_conv import stem_conv


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
    """Three launches."""
    x = stem_conv(frame, stem_weight, stem_bias, mean=mean, std=std, padding=padding)
    for d in (dsconv1, dsconv2):
        x = dsconv(x, d[0], d[1], d[2], d[3], stride=2, mid_activation=mid_activation)
    return x
