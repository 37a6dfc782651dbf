"""3x3 depthwise convolution, bias, activation.

y[n, h, w, c] = f(b[c] + sum_{i, j} w[c, i, j] x[n, h s + (i - 1) d, w s + (j - 1) d, c])

Equivalent to: f(F.conv2d(x, weight, bias, stride=s, padding=d, dilation=d, groups=C))
Reads x once (plus a halo of (ROWS s + 2 d) / ROWS s per axis, from L2), writes y once.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastscnn_kernels.shapes import convolved, empty_map, nhwc, taps_evenly_spaced
from fastscnn_kernels.triton import tiles
from fastscnn_kernels.triton.device import activate, depthwise_sum, pixel_offset, tile_pixels


@triton.jit
def depthwise_conv_kernel(
    x, weight, bias, y,
    H, W, OH, OW,
    weight_channel, weight_tap,
    C: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(C, BLOCK_C)
    image = tl.program_id(2)
    row, column, inside = tile_pixels(tl.program_id(0) // blocks, OH, OW, ROWS, COLUMNS)
    channel = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = depthwise_sum(
        x, weight, bias, image, row, column, inside, channel, H, W,
        weight_channel, weight_tap, C, STRIDE, DILATION,
    )  # [ROWS * COLUMNS, BLOCK_C]  # fmt: skip
    tl.store(
        y + pixel_offset(image, row, column, OH, OW, C)[:, None] + channel[None, :],
        activate(acc, ACTIVATION).to(y.dtype.element_ty),
        mask=inside[:, None] & (channel < C)[None, :],
    )


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int = 1,
    dilation: int = 1,
    activation: str = "none",
) -> Tensor:
    """One program computes a tile of ROWS x COLUMNS pixels and BLOCK_C channels."""
    x, weight = nhwc(x), taps_evenly_spaced(weight)
    n, c, h, w = x.shape
    y = empty_map(x, c, convolved(h, stride), convolved(w, stride))
    oh, ow = y.shape[2:]
    t = tiles.choose("depthwise_conv", x, pixels=n * oh * ow, inner=c, outer=c)
    grid = (triton.cdiv(ow, t.columns) * triton.cdiv(c, t.outer), triton.cdiv(oh, t.rows), n)
    depthwise_conv_kernel[grid](
        x, weight, bias, y,
        h, w, oh, ow,
        weight.stride(0), weight.stride(3),
        c, stride, dilation, activation,
        t.rows, t.columns, t.outer,
        num_warps=t.warps,
    )  # fmt: skip
    return y
