"""Pyramid pooling in three kernels; neither the upsampled maps nor their concatenation exist.

1. pool_rows:     for each row of x the sums over every bin's columns (1 + 2 + 3 + 6 segments);
                  reads x once, writes 12 / W of it in fp32
2. pool_branches: for each of the 50 cells the mean, its branch's 1x1 and ReLU
3. pool_join:     relu(join([x, bilinear(branch maps)])), the samples made as operands of the dot

Equivalent to: relu(conv2d(cat([x] + [resize(relu(conv2d(adaptive_avg_pool2d(x, b))))]), join))
Reads x twice and the join's weights once per tile (from L2), writes y once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastscnn_kernels.shapes import empty_map, nhwc, resize_scale, taps_evenly_spaced
from fastscnn_kernels.triton import tiles
from fastscnn_kernels.triton.device import bilinear, pixel_offset, tile_pixels


@triton.jit
def pool_rows_kernel(
    x, sums,
    W,
    C: tl.constexpr, BINS: tl.constexpr, SEGMENTS: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    segment = tl.arange(0, BLOCK_S)
    start = tl.zeros((BLOCK_S,), tl.int32)
    end = tl.zeros((BLOCK_S,), tl.int32)
    first = 0
    for i in tl.static_range(len(BINS)):  # segment -> columns [start, end) of its bin
        mine = (segment >= first) & (segment < first + BINS[i])
        start = tl.where(mine, (segment - first) * W // BINS[i], start)
        end = tl.where(mine, ((segment - first + 1) * W + BINS[i] - 1) // BINS[i], end)
        first += BINS[i]
    acc = tl.zeros((BLOCK_S, BLOCK_C), tl.float32)
    for w0 in range(0, W, BLOCK_W):
        w = w0 + tl.arange(0, BLOCK_W)
        v = tl.load(
            x + (line * W + w)[:, None] * C + channel[None, :],
            mask=(w < W)[:, None] & (channel < C)[None, :],
            other=0.0,
        )
        member = (w[None, :] >= start[:, None]) & (w[None, :] < end[:, None])
        acc = tl.dot(tl.where(member, 1.0, 0.0).to(v.dtype), v, acc, input_precision="ieee")
    tl.store(
        sums + (line * SEGMENTS + segment)[:, None] * C + channel[None, :],
        acc,
        mask=(segment < SEGMENTS)[:, None] & (channel < C)[None, :],
    )


@triton.jit
def _mean_of_cell(
    sums, image, cell, channel,
    H, W,
    C: tl.constexpr, BIN: tl.constexpr, FIRST: tl.constexpr, SEGMENTS: tl.constexpr,
    BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Mean [channels] over one cell of a BIN x BIN grid, from the rows' sums."""
    top = cell // BIN * H // BIN
    bottom = ((cell // BIN + 1) * H + BIN - 1) // BIN
    left = cell % BIN * W // BIN
    right = ((cell % BIN + 1) * W + BIN - 1) // BIN
    total = tl.zeros((channel.shape[0],), tl.float32)
    for h0 in range(top, bottom, BLOCK_H):
        h = h0 + tl.arange(0, BLOCK_H)
        line = (image * H + h).to(tl.int64) * SEGMENTS + FIRST + cell % BIN
        v = tl.load(
            sums + line[:, None] * C + channel[None, :],
            mask=(h < bottom)[:, None] & (channel < C)[None, :],
            other=0.0,
        )
        total += tl.sum(v, axis=0)
    return total / ((bottom - top) * (right - left)).to(tl.float32)


@triton.jit
def pool_branches_kernel(
    sums, weights, biases, maps,
    H, W,
    C: tl.constexpr, CB: tl.constexpr, BINS: tl.constexpr,
    FIRST_CELL: tl.constexpr, FIRST_SEGMENT: tl.constexpr,
    CELLS: tl.constexpr, SEGMENTS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1)
    channel = tl.arange(0, BLOCK_C)
    out = tl.arange(0, BLOCK_B)
    for i in tl.static_range(len(BINS)):
        cell = tl.program_id(0) - FIRST_CELL[i]
        if (cell >= 0) & (cell < BINS[i] * BINS[i]):
            mean = _mean_of_cell(
                sums, image, cell, channel, H, W, C, BINS[i], FIRST_SEGMENT[i], SEGMENTS, BLOCK_H
            )
            w = tl.load(
                weights[i] + out[:, None] * C + channel[None, :],
                mask=(out < CB)[:, None] & (channel < C)[None, :],
                other=0.0,
            )
            y = tl.sum(w.to(tl.float32) * mean[None, :], axis=1)
            y += tl.load(biases[i] + out, mask=out < CB, other=0.0).to(tl.float32)
            y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
            at = maps + (image * CELLS + tl.program_id(0)) * CB + out
            tl.store(at, y.to(maps.dtype.element_ty), mask=out < CB)


@triton.jit
def _accumulate(acc, a, weight, channel, out, mask_in, weight_in, weight_out, CO: tl.constexpr):
    """acc + a @ (one tap of a convolution weight, its input channels `channel`)."""
    w = tl.load(
        weight + channel[:, None] * weight_in + out[None, :] * weight_out,
        mask=mask_in[:, None] & (out < CO)[None, :],
        other=0.0,
    )
    return tl.dot(a.to(w.dtype), w, acc, input_precision="ieee")


@triton.jit
def pool_join_kernel(
    x, maps, weight, bias, y,
    H, W, scales_h, scales_w,
    weight_out, weight_in, weight_tap,
    C: tl.constexpr, CB: tl.constexpr, CO: tl.constexpr, KERNEL: tl.constexpr,
    BINS: tl.constexpr, FIRST_CELL: tl.constexpr, CELLS: tl.constexpr,
    FIRST_X: tl.constexpr, FIRST_MAPS: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(CO, BLOCK_N)
    image = tl.program_id(2)
    row, column, inside = tile_pixels(tl.program_id(0) // blocks, H, W, ROWS, COLUMNS)
    out = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    branch = tl.arange(0, BLOCK_B)
    acc = tl.zeros((ROWS * COLUMNS, BLOCK_N), tl.float32)
    for t in range(KERNEL * KERNEL):
        y0 = row + t // KERNEL - KERNEL // 2
        x0 = column + t % KERNEL - KERNEL // 2
        valid = inside & (y0 >= 0) & (y0 < H) & (x0 >= 0) & (x0 < W)
        tap = weight + t * weight_tap
        line = x + pixel_offset(image, y0, x0, H, W, C)[:, None]
        for k0 in range(0, C, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            a = tl.load(line + k[None, :], mask=valid[:, None] & (k < C)[None, :], other=0.0)
            acc = _accumulate(acc, a, tap, FIRST_X + k, out, k < C, weight_in, weight_out, CO)
        for i in tl.static_range(len(BINS)):
            a = bilinear(
                maps + (image * CELLS + FIRST_CELL[i]) * CB, 0, y0, x0, valid, branch,
                BINS[i], BINS[i], scales_h[i], scales_w[i], CB, ALIGN_CORNERS,
            )  # fmt: skip
            acc = _accumulate(
                acc, a, tap, FIRST_MAPS[i] + branch, out, branch < CB, weight_in, weight_out, CO
            )
    acc += tl.load(bias + out, mask=out < CO, other=0.0).to(tl.float32)[None, :]
    tl.store(
        y + pixel_offset(image, row, column, H, W, CO)[:, None] + out[None, :],
        tl.maximum(acc, 0.0, propagate_nan=tl.PropagateNan.ALL).to(y.dtype.element_ty),
        mask=inside[:, None] & (out < CO)[None, :],
    )


def pyramid_pool(
    x: Tensor,
    branch_weights: Sequence[Tensor],
    branch_biases: Sequence[Tensor],
    join_weight: Tensor,
    join_bias: Tensor,
    *,
    order: Sequence[int] = (0, 1, 2, 3, 6),
    align_corners: bool = False,
) -> Tensor:
    """Three launches; see the module's docstring for what a program of each computes."""
    x = nhwc(x)
    maps = _pooled_branches(x, branch_weights, branch_biases, tuple(sorted(b for b in order if b)))
    return _join(x, maps, join_weight, join_bias, tuple(order), align_corners)


def _pooled_branches(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], bins: tuple[int, ...]
) -> Tensor:
    """The branches' outputs, N x cells x channels, the bins' cells one after another."""
    n, c, h, w = x.shape
    segments, cells, cb = sum(bins), sum(b * b for b in bins), weights[0].shape[0]
    sums = torch.empty((n, h, segments, c), dtype=torch.float32, device=x.device)
    t = tiles.choose("pool_rows", x, pixels=n * h, inner=w, outer=c)
    pool_rows_kernel[(n * h, triton.cdiv(c, t.outer))](
        x, sums,
        w,
        c, bins, segments,
        max(16, triton.next_power_of_2(segments)), t.inner, t.outer,
        num_warps=t.warps, num_stages=t.stages,
    )  # fmt: skip
    maps = torch.empty((n, cells, cb), dtype=x.dtype, device=x.device)
    t = tiles.choose("pool_branches", x, pixels=n * cells, inner=h, outer=c)
    pool_branches_kernel[(cells, n)](
        sums, tuple(v.contiguous() for v in weights), tuple(biases), maps,
        h, w,
        c, cb, bins, _starts(b * b for b in bins), _starts(bins), cells, segments,
        t.rows, triton.next_power_of_2(c), triton.next_power_of_2(cb),
        num_warps=t.warps,
    )  # fmt: skip
    return maps


def _join(
    x: Tensor,
    maps: Tensor,
    weight: Tensor,
    bias: Tensor,
    order: tuple[int, ...],
    align_corners: bool,
) -> Tensor:
    n, c, h, w = x.shape
    co, kernel, cb = weight.shape[0], weight.shape[-1], maps.shape[2]
    bins = tuple(sorted(b for b in order if b))
    first = dict(zip(order, _starts(cb if b else c for b in order), strict=True))
    weight = taps_evenly_spaced(weight)
    y = empty_map(x, co, h, w)
    t = tiles.choose("pool_join", x, pixels=n * h * w, inner=c, outer=co)
    grid = (triton.cdiv(w, t.columns) * triton.cdiv(co, t.outer), triton.cdiv(h, t.rows), n)
    pool_join_kernel[grid](
        x, maps, weight, bias, y,
        h, w,
        tuple(resize_scale(b, h, align_corners) for b in bins),
        tuple(resize_scale(b, w, align_corners) for b in bins),
        weight.stride(0), weight.stride(1), weight.stride(3),
        c, cb, co, kernel, bins, _starts(b * b for b in bins), maps.shape[1],
        first[0], tuple(first[b] for b in bins), align_corners,
        t.rows, t.columns, t.outer, t.inner, max(16, triton.next_power_of_2(cb)),
        num_warps=t.warps, num_stages=t.stages,
    )  # fmt: skip
    return y


def _starts(sizes: Iterable[int]) -> tuple[int, ...]:
    """Where each of the parts begins that lie one after another."""
    return tuple(itertools.accumulate(sizes, initial=0))[:-1]
