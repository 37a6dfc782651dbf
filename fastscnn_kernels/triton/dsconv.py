"""Depthwise 3x3 and pointwise convolution in one kernel; the middle tensor never leaves the chip.

m[n, h, w, k] = g(bd[k] + sum_{i, j} wd[k, i, j] x[n, h s + (i - 1) d, w s + (j - 1) d, k])
y[n, h, w, o] = f(bp[o] + sum_k m[n, h, w, k] wp[o, k] + r[n, h, w, o])

Equivalent to: f(F.conv2d(g(F.conv2d(x, wd, bd, s, d, d, groups=C)), wp, bp) + r)
Reads x once plus its halo per BLOCK_N output channels (one block up to 128), weights from L2 for
each tile, residual once; writes y once.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastscnn_kernels.shapes import convolved, empty_map, nhwc, taps_evenly_spaced
from fastscnn_kernels.triton import tiles
from fastscnn_kernels.triton.device import activate, depthwise_sum, pixel_offset, tile_pixels
from fastscnn_kernels.triton.pointwise_conv import pointwise_conv


@triton.jit
def dsconv_kernel(
    x, depthwise, depthwise_bias, pointwise, pointwise_bias, residual, y,
    H, W, OH, OW,
    depthwise_channel, depthwise_tap, pointwise_out, pointwise_in,
    CI: tl.constexpr, CO: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr,
    MID_ACTIVATION: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(CO, BLOCK_N)
    image = tl.program_id(2)
    row, column, inside = tile_pixels(tl.program_id(0) // blocks, OH, OW, ROWS, COLUMNS)
    out = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((ROWS * COLUMNS, BLOCK_N), tl.float32)
    for k0 in range(0, CI, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        mid = depthwise_sum(
            x, depthwise, depthwise_bias, image, row, column, inside, k, H, W,
            depthwise_channel, depthwise_tap, CI, STRIDE, DILATION,
        )  # [ROWS * COLUMNS, BLOCK_K]  # fmt: skip
        w = tl.load(
            pointwise + k[:, None] * pointwise_in + out[None, :] * pointwise_out,
            mask=(k < CI)[:, None] & (out < CO)[None, :],
            other=0.0,
        )
        acc = tl.dot(activate(mid, MID_ACTIVATION).to(w.dtype), w, acc, input_precision="ieee")
    acc += tl.load(pointwise_bias + out, mask=out < CO, other=0.0).to(tl.float32)[None, :]
    offset = pixel_offset(image, row, column, OH, OW, CO)[:, None] + out[None, :]
    mask = inside[:, None] & (out < CO)[None, :]
    if RESIDUAL:
        acc += tl.load(residual + offset, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + offset, activate(acc, ACTIVATION).to(y.dtype.element_ty), mask=mask)


def dsconv(
    x: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor,
    *,
    stride: int = 1,
    dilation: int = 1,
    mid_activation: str = "none",
    activation: str = "relu",
    residual: Tensor | None = None,
    head: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """One program computes ROWS x COLUMNS pixels and BLOCK_N output channels; `head` is a second
    launch."""
    x, depthwise_weight = nhwc(x), taps_evenly_spaced(depthwise_weight)
    n, ci, h, w = x.shape
    co = pointwise_weight.shape[0]
    y = empty_map(x, co, convolved(h, stride), convolved(w, stride))
    oh, ow = y.shape[2:]
    t = tiles.choose("dsconv", x, pixels=n * oh * ow, inner=ci, outer=co)
    grid = (triton.cdiv(ow, t.columns) * triton.cdiv(co, t.outer), triton.cdiv(oh, t.rows), n)
    dsconv_kernel[grid](
        x, depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias,
        y if residual is None else nhwc(residual), y,
        h, w, oh, ow,
        depthwise_weight.stride(0), depthwise_weight.stride(3),
        pointwise_weight.stride(0), pointwise_weight.stride(1),
        ci, co, stride, dilation,
        mid_activation, activation, residual is not None,
        t.rows, t.columns, t.outer, t.inner,
        num_warps=t.warps, num_stages=t.stages,
    )  # fmt: skip
    return y if head is None else pointwise_conv(y, *head, channels_last=False)
