"""Batch norm, activation and a 3x3 depthwise convolution in training, forward and backward.

a = f((x - mean) / sqrt(var + eps) * weight + bias), zero outside the map
y[n, h, w, c] = sum_{i, j} taps[c, i, j] a[n, h s + (i - 1) d, w s + (j - 1) d, c]

Equivalent to: F.conv2d(batch_norm(x, ...), taps, None, stride, d, d, groups=C), and its moments
Forward reads x and writes y; the gradients read x and dy twice, write g = dL/du into dx, read both
again and write dx. Sums over pixels go over tiles first: no atomics, the same bits always.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastscnn_kernels.shapes import convolved, empty_map, nhwc
from fastscnn_kernels.triton.batch_norm import (
    CHANNELS,
    PIXELS,
    affine,
    is_open,
    join_moments,
    norm_gradient_kernel,
    store_moments,
    sum_parts,
)
from fastscnn_kernels.triton.device import activate, pixel_offset

#: Pixels and channels of a tile: twice as many spill.
ROWS, COLUMNS, BLOCK_C = 4, 8, 32


@triton.jit
def normalized(
    x, scale, shift, image, row, column, inside, channel, H, W,
    C: tl.constexpr, ACTIVATION: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """[pixels, channels] of a, in fp32; zero outside the map."""
    valid = (inside & (row >= 0) & (row < H) & (column >= 0) & (column < W))[:, None]
    valid = valid & (channel < C)[None, :]
    at = x + pixel_offset(image, row, column, H, W, C)[:, None] + channel[None, :]
    v = tl.load(at, mask=valid, other=0.0).to(tl.float32)
    if NORM:
        v = activate(v * scale[None, :] + shift[None, :], ACTIVATION)
        v = tl.where(valid, v, 0.0)
    return v


@triton.jit
def norm_depthwise_kernel(
    x, taps, weight, bias, mean, var, y, counts, parts,
    H, W, OH, OW, eps,
    C: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: a tile of y, and its moments."""
    tile, image = tl.program_id(0), tl.program_id(2)
    columns = tl.cdiv(OW, COLUMNS)
    row, column, inside = _tile(tile, columns, OH, OW, ROWS, COLUMNS)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    scale, shift, _ = affine(weight, bias, mean, var, channel, eps, C)
    acc = tl.zeros((ROWS * COLUMNS, BLOCK_C), tl.float32)
    for i in range(3):
        for j in tl.static_range(3):
            a = normalized(
                x, scale, shift, image, row * STRIDE + (i - 1) * DILATION,
                column * STRIDE + (j - 1) * DILATION, inside, channel, H, W, C, ACTIVATION, True,
            )  # fmt: skip
            tap = tl.load(taps + channel * 9 + i * 3 + j, mask=channel < C, other=0.0)
            acc += a * tap[None, :]
    known = inside[:, None] & (channel < C)[None, :]
    to = y + pixel_offset(image, row, column, OH, OW, C)[:, None] + channel[None, :]
    tl.store(to, acc.to(y.dtype.element_ty), mask=known)
    count = tl.sum(inside.to(tl.float32), axis=0)
    first = tl.sum(tl.where(known, acc, 0.0), axis=0) / count
    away = tl.where(known, acc - first[None, :], 0.0)
    part = image * tl.num_programs(0) + tile
    store_moments(
        counts, parts, part, channel, count, first, tl.sum(away, axis=0),
        tl.sum(away * away, axis=0), C,
    )  # fmt: skip


@triton.jit
def _tile(tile, columns, H, W, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(row, column, inside) of the pixels of tile `tile`, of which a row of tiles has `columns`."""
    p = tl.arange(0, ROWS * COLUMNS)
    row = tile // columns * ROWS + p // COLUMNS
    column = tile % columns * COLUMNS + p % COLUMNS
    return row, column, (row < H) & (column < W)


@triton.jit
def taps_gradient_kernel(
    dy, x, weight, bias, mean, var, parts,
    H, W, OH, OW, eps,
    C: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, ACTIVATION: tl.constexpr,
    NORM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: what a tile of dy adds to the gradients of the taps and of a bias; a tenth of
    [parts, 10, C] each."""
    tile, image = tl.program_id(0), tl.program_id(2)
    row, column, inside = _tile(tile, tl.cdiv(OW, COLUMNS), OH, OW, ROWS, COLUMNS)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    scale = tl.zeros((BLOCK_C,), tl.float32)
    shift = scale
    if NORM:
        scale, shift, _ = affine(weight, bias, mean, var, channel, eps, C)
    at = dy + pixel_offset(image, row, column, OH, OW, C)[:, None] + channel[None, :]
    known = inside[:, None] & (channel < C)[None, :]
    g = tl.load(at, mask=known, other=0.0).to(tl.float32)
    part = (image * tl.num_programs(0) + tile).to(tl.int64)
    to = parts + part * 10 * C + channel
    for i in range(3):
        for j in tl.static_range(3):
            a = normalized(
                x, scale, shift, image, row * STRIDE + (i - 1) * DILATION,
                column * STRIDE + (j - 1) * DILATION, inside, channel, H, W, C, ACTIVATION, NORM,
            )  # fmt: skip
            tl.store(to + (i * 3 + j) * C, tl.sum(g * a, axis=0), mask=channel < C)
    tl.store(to + 9 * C, tl.sum(g, axis=0), mask=channel < C)


@triton.jit
def map_gradient_kernel(
    dy, x, taps, weight, bias, mean, var, dx, parts,
    H, W, OH, OW, eps,
    C: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, ACTIVATION: tl.constexpr,
    NORM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: a tile of the gradient of a, closed where f is flat, and batch norm's sums."""
    tile, image = tl.program_id(0), tl.program_id(2)
    row, column, inside = _tile(tile, tl.cdiv(W, COLUMNS), H, W, ROWS, COLUMNS)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = inside[:, None] & (channel < C)[None, :]
    acc = tl.zeros((ROWS * COLUMNS, BLOCK_C), tl.float32)
    for i in range(3):
        up = row - (i - 1) * DILATION
        for j in tl.static_range(3):
            left = column - (j - 1) * DILATION
            from_row, from_column = up // STRIDE, left // STRIDE
            valid = inside & (up >= 0) & (left >= 0) & (from_row < OH) & (from_column < OW)
            if STRIDE > 1:
                valid = valid & (up % STRIDE == 0) & (left % STRIDE == 0)
            at = dy + pixel_offset(image, from_row, from_column, OH, OW, C)[:, None]
            mask = valid[:, None] & (channel < C)[None, :]
            g = tl.load(at + channel[None, :], mask=mask, other=0.0).to(tl.float32)
            tap = tl.load(taps + channel * 9 + i * 3 + j, mask=channel < C, other=0.0)
            acc += g * tap[None, :]
    offset = pixel_offset(image, row, column, H, W, C)[:, None] + channel[None, :]
    if NORM:
        scale, shift, m = affine(weight, bias, mean, var, channel, eps, C)
        v = tl.load(x + offset, mask=known, other=0.0).to(tl.float32)
        acc = tl.where(is_open(v * scale[None, :] + shift[None, :], ACTIVATION), acc, 0.0)
        away = tl.where(known, v - m[None, :], 0.0)
        part = (image * tl.num_programs(0) + tile).to(tl.int64)
        to = parts + part * 2 * C + channel
        tl.store(to, tl.sum(acc, axis=0), mask=channel < C)
        tl.store(to + C, tl.sum(acc * away, axis=0), mask=channel < C)
    tl.store(dx + offset, acc.to(dx.dtype.element_ty), mask=known)


def norm_depthwise(
    x: Tensor,
    taps: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    eps: float,
    batch_moments: bool,
    activation: str = "none",
    stride: int = 1,
    dilation: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Two launches: a program for a tile of y and BLOCK_C channels; the moments of the tiles."""
    x, taps = nhwc(x), taps.contiguous()
    n, c, h, w = x.shape
    y = empty_map(x, c, convolved(h, stride), convolved(w, stride))
    oh, ow = y.shape[2:]
    grid = _grid(n, c, oh, ow)
    counts = torch.empty(n * grid[0], dtype=torch.float32, device=x.device)
    parts = torch.empty((n * grid[0], 2, c), dtype=torch.float32, device=x.device)
    norm_depthwise_kernel[grid](
        x, taps, weight, bias, mean, var, y, counts, parts,
        h, w, oh, ow, eps,
        c, stride, dilation, activation,
        ROWS, COLUMNS, BLOCK_C,
    )  # fmt: skip
    return y, *join_moments(counts, parts)


def norm_depthwise_backward(
    dy: Tensor,
    x: Tensor,
    taps: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    eps: float,
    batch_moments: bool,
    activation: str = "none",
    stride: int = 1,
    dilation: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Six launches: the gradients of taps and map by tile, their sums, and dx in place."""
    dy, x, taps = nhwc(dy), nhwc(x), taps.contiguous()
    n, c, h, w = x.shape
    norm = (weight, bias, mean, var)
    dtaps, _ = _taps_gradient(dy, x, norm, eps, stride, dilation, activation)
    dx, parts = _map_gradient(dy, x, taps, norm, eps, stride, dilation, activation)
    sums, pixels = sum_parts(parts), n * h * w
    norm_gradient_kernel[(triton.cdiv(pixels, PIXELS), triton.cdiv(c, CHANNELS))](
        dx, x, weight, bias, mean, var, sums, dx,
        pixels, eps, 0, 0, 0, 1.0,
        c, "none", False, batch_moments,
        PIXELS, CHANNELS,
    )  # fmt: skip
    return dx, dtaps, sums[1] / torch.sqrt(var + eps), sums[0].clone()


def depthwise_conv_backward(
    dy: Tensor, x: Tensor, weight: Tensor, *, stride: int = 1, dilation: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """The same without batch norm."""
    dy, x, wide = nhwc(dy), nhwc(x), weight.float().contiguous()
    dtaps, dbias = _taps_gradient(dy, x, None, 0.0, stride, dilation, "none")
    dx, _ = _map_gradient(dy, x, wide, None, 0.0, stride, dilation, "none")
    return dx, dtaps.to(weight.dtype), dbias.to(weight.dtype)


_Norm = tuple[Tensor, Tensor, Tensor, Tensor]


def _taps_gradient(
    dy: Tensor, x: Tensor, norm: _Norm | None, eps: float, stride: int, dilation: int, f: str
) -> tuple[Tensor, Tensor]:
    """The gradients of the taps, C x 1 x 3 x 3, and of a bias."""
    n, c, h, w = x.shape
    oh, ow = dy.shape[2:]
    grid = _grid(n, c, oh, ow)
    parts = torch.empty((n * grid[0], 10, c), dtype=torch.float32, device=x.device)
    taps_gradient_kernel[grid](
        dy, x, *(norm or [x] * 4), parts,
        h, w, oh, ow, eps,
        c, stride, dilation, f, norm is not None,
        ROWS, COLUMNS, BLOCK_C,
    )  # fmt: skip
    sums = sum_parts(parts)
    return sums[:9].t().reshape(c, 1, 3, 3).contiguous(), sums[9].clone()


def _map_gradient(
    dy: Tensor,
    x: Tensor,
    taps: Tensor,
    norm: _Norm | None,
    eps: float,
    stride: int,
    dilation: int,
    f: str,
) -> tuple[Tensor, Tensor]:
    """The gradient of u (of x where there is no norm), and its sums by tile, [tiles, 2, C]."""
    n, c, h, w = x.shape
    oh, ow = dy.shape[2:]
    grid = _grid(n, c, h, w)
    dx = empty_map(x, *x.shape[1:])
    tiles = n * grid[0] if norm else 0
    parts = torch.empty((tiles, 2, c), dtype=torch.float32, device=x.device)
    map_gradient_kernel[grid](
        dy, x, taps, *(norm or [x] * 4), dx, parts,
        h, w, oh, ow, eps,
        c, stride, dilation, f, norm is not None,
        ROWS, COLUMNS, BLOCK_C,
    )  # fmt: skip
    return dx, parts


def _grid(n: int, c: int, h: int, w: int) -> tuple[int, int, int]:
    return triton.cdiv(h, ROWS) * triton.cdiv(w, COLUMNS), triton.cdiv(c, BLOCK_C), n
