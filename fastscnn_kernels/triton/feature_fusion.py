"""Fusion of the low-resolution branch into the high-resolution one; the upsampled map never exists.

u = bilinear(low) at the high branch's size
m[p, k] = relu(bd[k] + sum_{i, j} wd[k, i, j] u[p + (i - 1, j - 1) d, k])      (depthwise)
m[p, k] = relu(bd[k] + sum_c wd[k, c] u[p, c])                                 (dense 1x1)
y[p, o] = relu(sum_k m[p, k] wl[o, k] + bl[o] + sum_c high[p, c] wh[o, c] + bh[o])

Equivalent to: relu(conv2d(relu(conv2d(resize(low), wd, bd, ...)), wl, bl) + conv2d(high, wh, bh))
The dense 1x1 commutes with the sampling (its weights add up to one), so it runs on the small map
first. So does the depthwise where a dilation equals the scale and neither taps nor samples meet the
map's edge (`shapes.fusion_commutes`): programs inside sample a small map that was convolved, the
others convolve samples. Reads low once plus a halo, high once, writes y once.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastscnn_kernels.shapes import (
    FUSION_FRAME,
    empty_map,
    fusion_commutes,
    nhwc,
    resize_scale,
    taps_evenly_spaced,
)
from fastscnn_kernels.triton import tiles
from fastscnn_kernels.triton.depthwise_conv import depthwise_conv
from fastscnn_kernels.triton.device import activate, bilinear, pixel_offset, tile_pixels
from fastscnn_kernels.triton.pointwise_conv import pointwise_conv


@triton.jit
def _depthwise_of_samples(
    low, weight, bias,
    image, row, column, inside, channel,
    LH, LW, H, W, scale_h, scale_w,
    weight_channel, weight_tap,
    C: tl.constexpr, DILATION: tl.constexpr, ALIGN_CORNERS: tl.constexpr,
):  # fmt: skip
    """`depthwise_sum` over a map that is sampled while it is read; rolled for the same reason."""
    known = channel < C
    b = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)
    acc = tl.zeros((row.shape[0], channel.shape[0]), tl.float32) + b[None, :]
    for t in range(9):
        y = row + (t // 3 - 1) * DILATION
        x = column + (t % 3 - 1) * DILATION
        valid = inside & (y >= 0) & (y < H) & (x >= 0) & (x < W)
        v = bilinear(low, image, y, x, valid, channel, LH, LW, scale_h, scale_w, C, ALIGN_CORNERS)
        w = tl.load(weight + channel * weight_channel + t * weight_tap, mask=known, other=0.0)
        acc += v * w.to(tl.float32)[None, :]
    return acc


@triton.jit
def feature_fusion_kernel(
    high, low, convolved,
    depthwise, depthwise_bias, low_weight, low_bias, high_weight, high_bias, y,
    H, W, LH, LW, scale_h, scale_w,
    depthwise_channel, depthwise_tap, low_out, low_in, high_out, high_in,
    CH: tl.constexpr, CL: tl.constexpr, CO: tl.constexpr,
    DEPTHWISE: tl.constexpr, DILATION: tl.constexpr, ALIGN_CORNERS: tl.constexpr,
    FRAME: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(CO, BLOCK_N)
    image = tl.program_id(2)
    row, column, inside = tile_pixels(tl.program_id(0) // blocks, H, W, ROWS, COLUMNS)
    out = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    top = tl.program_id(1) * ROWS
    left = tl.program_id(0) // blocks * COLUMNS
    within = (top >= FRAME) & (top + ROWS + FRAME <= H)
    within &= (left >= FRAME) & (left + COLUMNS + FRAME <= W)
    acc = tl.zeros((ROWS * COLUMNS, BLOCK_N), tl.float32)
    for k0 in range(0, CL, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        if DEPTHWISE and FRAME > 0:
            if within:
                a = bilinear(
                    convolved, image, row, column, inside, k,
                    LH, LW, scale_h, scale_w, CL, ALIGN_CORNERS,
                )  # fmt: skip
            else:
                a = _depthwise_of_samples(
                    low, depthwise, depthwise_bias, image, row, column, inside, k,
                    LH, LW, H, W, scale_h, scale_w, depthwise_channel, depthwise_tap,
                    CL, DILATION, ALIGN_CORNERS,
                )  # fmt: skip
        elif DEPTHWISE:
            a = _depthwise_of_samples(
                low, depthwise, depthwise_bias, image, row, column, inside, k,
                LH, LW, H, W, scale_h, scale_w, depthwise_channel, depthwise_tap,
                CL, DILATION, ALIGN_CORNERS,
            )  # [ROWS * COLUMNS, BLOCK_K]  # fmt: skip
        else:
            a = bilinear(
                low, image, row, column, inside, k, LH, LW, scale_h, scale_w, CL, ALIGN_CORNERS
            )
        w = tl.load(
            low_weight + k[:, None] * low_in + out[None, :] * low_out,
            mask=(k < CL)[:, None] & (out < CO)[None, :],
            other=0.0,
        )
        acc = tl.dot(activate(a, "relu").to(w.dtype), w, acc, input_precision="ieee")
    line = high + pixel_offset(image, row, column, H, W, CH)[:, None]
    for k0 in range(0, CH, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        a = tl.load(line + k[None, :], mask=inside[:, None] & (k < CH)[None, :], other=0.0)
        w = tl.load(
            high_weight + k[:, None] * high_in + out[None, :] * high_out,
            mask=(k < CH)[:, None] & (out < CO)[None, :],
            other=0.0,
        )
        acc = tl.dot(a, w, acc, input_precision="ieee")
    acc += tl.load(low_bias + out, mask=out < CO, other=0.0).to(tl.float32)[None, :]
    acc += tl.load(high_bias + out, mask=out < CO, other=0.0).to(tl.float32)[None, :]
    tl.store(
        y + pixel_offset(image, row, column, H, W, CO)[:, None] + out[None, :],
        activate(acc, "relu").to(y.dtype.element_ty),
        mask=inside[:, None] & (out < CO)[None, :],
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
    """One program computes ROWS x COLUMNS pixels and BLOCK_N output channels."""
    high, low = nhwc(high), nhwc(low)
    dense = depthwise_weight.shape[-1] == 1
    if dense:
        low = pointwise_conv(low, depthwise_weight, depthwise_bias)
    else:
        depthwise_weight = taps_evenly_spaced(depthwise_weight)
    (n, ch, h, w), (_, cl, lh, lw), co = high.shape, low.shape, low_weight.shape[0]
    y = empty_map(high, co, h, w)
    t = tiles.choose("feature_fusion", high, pixels=n * h * w, inner=cl, outer=co)
    grid = (triton.cdiv(w, t.columns) * triton.cdiv(co, t.outer), triton.cdiv(h, t.rows), n)
    commutes = not dense and fusion_commutes((h, w), (lh, lw), dilation, align_corners)
    feature_fusion_kernel[grid](
        high, low, depthwise_conv(low, depthwise_weight, depthwise_bias) if commutes else low,
        depthwise_weight, depthwise_bias, low_weight, low_bias, high_weight, high_bias,
        y,
        h, w, lh, lw, resize_scale(lh, h, align_corners), resize_scale(lw, w, align_corners),
        depthwise_weight.stride(0), depthwise_weight.stride(3),
        low_weight.stride(0), low_weight.stride(1), high_weight.stride(0), high_weight.stride(1),
        ch, cl, co, not dense, dilation, align_corners, FUSION_FRAME if commutes else 0,
        t.rows, t.columns, t.outer, t.inner,
        num_warps=t.warps, num_stages=t.stages,
    )  # fmt: skip
    return y
