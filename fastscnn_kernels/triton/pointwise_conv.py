"""1x1 convolution, bias, residual, activation: one matrix product over all pixels.

y[m, o] = f(b[o] + sum_k x[m, k] w[o, k] + r[m, o]), m running over images and pixels

Equivalent to: f(F.conv2d(x, weight, bias) + residual)
Reads x once per BLOCK_N output channels, residual and weights once (weights again from L2 for each
tile of pixels), writes y once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastscnn_kernels.shapes import empty_map, nhwc
from fastscnn_kernels.triton import tiles
from fastscnn_kernels.triton.device import activate


@triton.jit
def pointwise_conv_kernel(
    x, weight, bias, residual, y,
    PIXELS, IMAGE,
    weight_out, weight_in,
    CI: tl.constexpr, CO: tl.constexpr,
    RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, PLANAR: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(CO, BLOCK_N)
    pixel = tl.program_id(0) // blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    out = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    line = x + pixel.to(tl.int64)[:, None] * CI
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k0 in range(0, CI, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        a = tl.load(
            line + k[None, :], mask=(pixel < PIXELS)[:, None] & (k < CI)[None, :], other=0.0
        )
        w = tl.load(
            weight + k[:, None] * weight_in + out[None, :] * weight_out,
            mask=(k < CI)[:, None] & (out < CO)[None, :],
            other=0.0,
        )
        acc = tl.dot(a, w, acc, input_precision="ieee")
    acc += tl.load(bias + out, mask=out < CO, other=0.0).to(tl.float32)[None, :]
    inside = (pixel < PIXELS)[:, None] & (out < CO)[None, :]
    nhwc = pixel.to(tl.int64)[:, None] * CO + out[None, :]
    if RESIDUAL:
        acc += tl.load(residual + nhwc, mask=inside, other=0.0).to(tl.float32)
    acc = activate(acc, ACTIVATION).to(y.dtype.element_ty)
    if PLANAR:
        plane = (pixel // IMAGE).to(tl.int64)[:, None] * CO + out[None, :]
        tl.store(y + plane * IMAGE + (pixel % IMAGE)[:, None], acc, mask=inside)
    else:
        tl.store(y + nhwc, acc, mask=inside)


def pointwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    *,
    activation: str = "none",
    channels_last: bool = True,
) -> Tensor:
    """One program computes BLOCK_M pixels and BLOCK_N output channels."""
    x = nhwc(x)
    n, ci, h, w = x.shape
    co = weight.shape[0]
    y = empty_map(x, co, h, w) if channels_last else _planes(x, co)
    t = tiles.choose("pointwise_conv", x, pixels=n * h * w, inner=ci, outer=co)
    block_m = t.rows * t.columns
    pointwise_conv_kernel[(triton.cdiv(n * h * w, block_m) * triton.cdiv(co, t.outer),)](
        x, weight, bias, y if residual is None else nhwc(residual), y,
        n * h * w, h * w,
        weight.stride(0), weight.stride(1),
        ci, co,
        residual is not None, activation, not channels_last,
        block_m, t.outer, t.inner,
        num_warps=t.warps, num_stages=t.stages,
    )  # fmt: skip
    return y


def _planes(like: Tensor, channels: int) -> Tensor:
    n, _, h, w = like.shape
    return torch.empty((n, channels, h, w), dtype=like.dtype, device=like.device)
