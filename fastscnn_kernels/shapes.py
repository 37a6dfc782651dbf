"""Sizes and layouts of what the operations return: shared by fakes and launchers."""

from __future__ import annotations

import torch
from torch import Tensor

from fastscnn_kernels.reference import stem_padding

#: Output pixels from which Triton runs a bottleneck's depthwise and projection in one kernel:
#: below, 8x8 tiles leave most of a GPU idle, while the hidden tensor (3 MB at most) stays in L2.
FUSED_PIXELS = 8192


def convolved(size: int, stride: int) -> int:
    """Output size of a 3x3 convolution with padding = dilation."""
    return (size - 1) // stride + 1


def stem_size(height: int, width: int, padding: int | str) -> tuple[int, int]:
    """Output size of the 3x3 stride-2 stem."""
    left, right, top, bottom = stem_padding(height, width, padding)
    return (height + top + bottom - 3) // 2 + 1, (width + left + right - 3) // 2 + 1


def empty_map(
    like: Tensor, channels: int, height: int, width: int, dtype: torch.dtype | None = None
) -> Tensor:
    """An uninitialised N x channels x height x width in channels_last memory."""
    shape = (like.shape[0], height, width, channels)
    y = torch.empty(shape, dtype=dtype or like.dtype, device=like.device)
    return y.permute(0, 3, 1, 2)


def nhwc(x: Tensor) -> Tensor:
    """`x` in dense channels_last memory; copied only where it is not."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def taps_evenly_spaced(weight: Tensor) -> Tensor:
    """`weight` (out, in, kh, kw) with one stride from tap to tap, as the kernels step through it.

    True of contiguous and of channels_last weights, and of the channel-major ones that the runtime
    lays out; anything else is copied.
    """
    even = weight.stride(2) == weight.shape[3] * weight.stride(3)
    return weight if even else weight.contiguous()


def resize_scale(source: int, target: int, align_corners: bool) -> float:
    """Source pixels per target pixel, torch's rule."""
    if align_corners:
        return (source - 1) / (target - 1) if target > 1 else 0.0
    return source / target


#: Pixels at the fusion's edge where its depthwise does not commute with the upsampling: the reach
#: of a tap (4) and of a clamped sample (2).
FUSION_FRAME = 6


def fusion_commutes(
    high: tuple[int, int], low: tuple[int, int], dilation: int, align_corners: bool
) -> bool:
    """Whether the dilated depthwise of the upsampled map is, inside that frame, the upsampled plain
    depthwise of `low`; and the inside is worth a kernel of its own."""
    exact = high == (4 * low[0], 4 * low[1]) and dilation == 4 and not align_corners
    return exact and min(high) >= 32
