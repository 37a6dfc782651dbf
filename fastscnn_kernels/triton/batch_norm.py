"""Batch norm with activation and dropout in training: moments, normalisation, gradients.

u = (x - mean) / sqrt(var + eps) * weight + bias;  y = drop(f(u));  g = dL/du
dx = scale (g - sum g / P - (x - mean) sum(g (x - mean)) / ((var + eps) P)),  scale = weight / std

Equivalent to: f(F.batch_norm(x, None, None, weight, bias, training=True, eps=eps))
`moments` reads x once; `batch_norm` reads x and writes y; the gradients read x and dy twice and
write dx. Sums go over runs of pixels first, then over the runs in order: no atomics, the same bits
always.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastscnn_kernels.shapes import empty_map, nhwc
from fastscnn_kernels.triton.device import activate

#: Pixels and channels of a tile, and pixels whose sums one program makes.
PIXELS, CHANNELS, RUN = 32, 64, 256
#: Arguments of which no value has kernels of its own.
SEED = ("below", "seed_low", "seed_high")


@triton.jit
def is_open(u, ACTIVATION: tl.constexpr):
    """Where the activation passes gradients on."""
    if ACTIVATION == "relu":
        return u > 0.0
    if ACTIVATION == "relu6":
        return (u > 0.0) & (u < 6.0)
    return u == u


@triton.jit
def affine(weight, bias, mean, var, channel, eps, C: tl.constexpr):
    """(scale, shift, mean) of u = x * scale + shift."""
    known = channel < C
    m = tl.load(mean + channel, mask=known, other=0.0)
    std = tl.sqrt_rn(tl.load(var + channel, mask=known, other=1.0) + eps)
    scale = tl.div_rn(tl.load(weight + channel, mask=known, other=0.0), std)
    return scale, tl.load(bias + channel, mask=known, other=0.0) - m * scale, m


@triton.jit
def dropped(v, offset, below, seed_low, seed_high, rest, DROP: tl.constexpr):
    """As `reference.dropped`, by the hash of each element's offset in the map modulo 2^32."""
    if DROP:
        h = offset.to(tl.uint32) * 0x9E3779B1 + seed_low.to(tl.uint32, bitcast=True)
        h = (h ^ (h >> 16)) * 0x7FEB352D
        h = (h ^ (h >> 15) ^ seed_high.to(tl.uint32, bitcast=True)) * 0x846CA68B
        h = h ^ (h >> 16)
        v = tl.where(h >= below.to(tl.uint32, bitcast=True), v * rest, 0.0 * v)
    return v


@triton.jit
def pixel_tile(i, channel, pixels, C: tl.constexpr, PIXELS: tl.constexpr):
    """(offsets, mask) of tile i of PIXELS pixels."""
    pixel = i.to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    inside = (pixel < pixels)[:, None] & (channel < C)[None, :]
    return pixel[:, None] * C + channel[None, :], inside


@triton.jit
def moments_kernel(
    x, counts, parts,
    pixels,
    C: tl.constexpr, RUN: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program: the moments of RUN pixels, relative to the first of them."""
    run = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    at = run.to(tl.int64) * RUN * C + channel
    first = tl.load(x + at, mask=channel < C, other=0.0).to(tl.float32)
    total = tl.zeros((CHANNELS,), tl.float32)
    square = tl.zeros((CHANNELS,), tl.float32)
    for i in range(RUN // PIXELS):
        offset, inside = pixel_tile(run * (RUN // PIXELS) + i, channel, pixels, C, PIXELS)
        v = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32) - first[None, :]
        v = tl.where(inside, v, 0.0)
        total += tl.sum(v, axis=0)
        square += tl.sum(v * v, axis=0)
    count = tl.minimum(pixels - run * RUN, RUN).to(tl.float32)
    store_moments(counts, parts, run, channel, count, first, total, square, C)


@triton.jit
def store_moments(counts, parts, part, channel, count, first, total, square, C: tl.constexpr):
    """Mean and sum of squares around it, from sums relative to `first`; [parts, 2, C]."""
    mean = tl.div_rn(total, tl.zeros_like(total) + count)
    to = parts + part.to(tl.int64) * 2 * C + channel
    tl.store(to, first + mean, mask=channel < C)
    tl.store(to + C, tl.maximum(square - total * mean, 0.0), mask=channel < C)
    tl.store(counts + part, count, mask=tl.program_id(1) == 0)


@triton.jit
def join_moments_kernel(
    counts, parts, mean, var,
    count,
    C: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program: mean and variance of some channels, from those of all parts."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    first = tl.load(parts + channel, mask=channel < C, other=0.0)
    pixels = tl.zeros((CHANNELS,), tl.float32)
    total = tl.zeros((CHANNELS,), tl.float32)
    square = tl.zeros((CHANNELS,), tl.float32)
    for begin in range(0, count, BLOCK):
        part = begin + tl.arange(0, BLOCK)
        inside = (part < count)[:, None] & (channel < C)[None, :]
        n = tl.load(counts + part, mask=part < count, other=0.0)[:, None]
        at = parts + part.to(tl.int64)[:, None] * 2 * C + channel[None, :]
        away = tl.where(inside, tl.load(at, mask=inside, other=0.0) - first[None, :], 0.0)
        pixels += tl.sum(n, axis=0)
        total += tl.sum(n * away, axis=0)
        square += tl.sum(tl.load(at + C, mask=inside, other=0.0) + n * away * away, axis=0)
    m = tl.div_rn(total, pixels)
    tl.store(mean + channel, first + m, mask=channel < C)
    v = tl.div_rn(tl.maximum(square - total * m, 0.0), pixels)
    tl.store(var + channel, v, mask=channel < C)


@triton.jit
def sum_parts_kernel(
    parts, sums,
    count, floats,
    BLOCK: tl.constexpr, FLOATS: tl.constexpr,
):  # fmt: skip
    """One program: some of the sums over all parts, in their order."""
    i = tl.program_id(0) * FLOATS + tl.arange(0, FLOATS)
    total = tl.zeros((FLOATS,), tl.float32)
    for begin in range(0, count, BLOCK):
        part = begin + tl.arange(0, BLOCK)
        inside = (part < count)[:, None] & (i < floats)[None, :]
        at = parts + part.to(tl.int64)[:, None] * floats + i[None, :]
        total += tl.sum(tl.load(at, mask=inside, other=0.0), axis=0)
    tl.store(sums + i, total, mask=i < floats)


@triton.jit(do_not_specialize=SEED)
def batch_norm_kernel(
    x, weight, bias, mean, var, y,
    pixels, eps, below, seed_low, seed_high, rest,
    C: tl.constexpr, ACTIVATION: tl.constexpr, DROP: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    offset, inside = pixel_tile(tl.program_id(0), channel, pixels, C, PIXELS)
    scale, shift, _ = affine(weight, bias, mean, var, channel, eps, C)
    u = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32) * scale[None, :]
    v = activate(u + shift[None, :], ACTIVATION)
    v = dropped(v, offset, below, seed_low, seed_high, rest, DROP)
    tl.store(y + offset, v.to(y.dtype.element_ty), mask=inside)


@triton.jit
def behind(
    dy, x, scale, shift, m, offset, inside, below, seed_low, seed_high, rest,
    ACTIVATION: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """The gradient of u, and x - mean."""
    v = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(dy + offset, mask=inside, other=0.0).to(tl.float32)
    g = dropped(g, offset, below, seed_low, seed_high, rest, DROP)
    g = tl.where(inside & is_open(v * scale[None, :] + shift[None, :], ACTIVATION), g, 0.0)
    return g, tl.where(inside, v - m[None, :], 0.0)


@triton.jit(do_not_specialize=SEED)
def norm_sums_kernel(
    dy, x, weight, bias, mean, var, parts,
    pixels, eps, below, seed_low, seed_high, rest,
    C: tl.constexpr, ACTIVATION: tl.constexpr, DROP: tl.constexpr,
    RUN: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program: the sums of g and of g (x - mean) over RUN pixels; [parts, 2, C]."""
    run = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    scale, shift, m = affine(weight, bias, mean, var, channel, eps, C)
    total = tl.zeros((CHANNELS,), tl.float32)
    product = tl.zeros((CHANNELS,), tl.float32)
    for i in range(RUN // PIXELS):
        offset, inside = pixel_tile(run * (RUN // PIXELS) + i, channel, pixels, C, PIXELS)
        g, away = behind(
            dy, x, scale, shift, m, offset, inside, below, seed_low, seed_high, rest,
            ACTIVATION, DROP,
        )  # fmt: skip
        total += tl.sum(g, axis=0)
        product += tl.sum(g * away, axis=0)
    to = parts + run.to(tl.int64) * 2 * C + channel
    tl.store(to, total, mask=channel < C)
    tl.store(to + C, product, mask=channel < C)


@triton.jit(do_not_specialize=SEED)
def norm_gradient_kernel(
    dy, x, weight, bias, mean, var, sums, dx,
    pixels, eps, below, seed_low, seed_high, rest,
    C: tl.constexpr, ACTIVATION: tl.constexpr, DROP: tl.constexpr, BATCH: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    offset, inside = pixel_tile(tl.program_id(0), channel, pixels, C, PIXELS)
    scale, shift, m = affine(weight, bias, mean, var, channel, eps, C)
    g, away = behind(
        dy, x, scale, shift, m, offset, inside, below, seed_low, seed_high, rest, ACTIVATION, DROP
    )
    if BATCH:
        known = channel < C
        total = tl.load(sums + channel, mask=known, other=0.0)
        product = tl.load(sums + C + channel, mask=known, other=0.0)
        product /= tl.load(var + channel, mask=known, other=1.0) + eps
        g -= (total[None, :] + product[None, :] * away) / pixels
    tl.store(dx + offset, (g * scale[None, :]).to(dx.dtype.element_ty), mask=inside)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two launches: a program for RUN pixels and CHANNELS channels; one for CHANNELS channels."""
    x = nhwc(x)
    c, pixels = x.shape[1], x.numel() // x.shape[1]
    runs = triton.cdiv(pixels, RUN)
    counts = torch.empty(runs, dtype=torch.float32, device=x.device)
    parts = torch.empty((runs, 2, c), dtype=torch.float32, device=x.device)
    moments_kernel[(runs, triton.cdiv(c, CHANNELS))](
        x, counts, parts,
        pixels,
        c, RUN, PIXELS, CHANNELS,
    )  # fmt: skip
    return join_moments(counts, parts)


def join_moments(counts: Tensor, parts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance, from the counts and [count, 2, C] of the parts."""
    count, _, c = parts.shape
    mean, var = (torch.empty(c, dtype=torch.float32, device=parts.device) for _ in range(2))
    join_moments_kernel[(triton.cdiv(c, 16),)](counts, parts, mean, var, count, c, 64, 16)
    return mean, var


def sum_parts(parts: Tensor) -> Tensor:
    """The sum over the first axis."""
    sums = torch.empty(parts.shape[1:], dtype=torch.float32, device=parts.device)
    floats = sums.numel()
    sum_parts_kernel[(triton.cdiv(floats, 16),)](parts, sums, parts.shape[0], floats, 64, 16)
    return sums


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    eps: float,
    batch_moments: bool,
    activation: str = "none",
    dropout: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """One program: PIXELS pixels and CHANNELS channels."""
    x = nhwc(x)
    c, pixels = x.shape[1], x.numel() // x.shape[1]
    y = empty_map(x, *x.shape[1:])
    batch_norm_kernel[(triton.cdiv(pixels, PIXELS), triton.cdiv(c, CHANNELS))](
        x, weight, bias, mean, var, y,
        pixels, eps, *_dropout(dropout, seed),
        c, activation, dropout > 0,
        PIXELS, CHANNELS,
    )  # fmt: skip
    return y


def batch_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    eps: float,
    batch_moments: bool,
    activation: str = "none",
    dropout: float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Three launches: sums of runs, their sums, dx."""
    dy, x = nhwc(dy), nhwc(x)
    c, pixels = x.shape[1], x.numel() // x.shape[1]
    blocks, runs = triton.cdiv(c, CHANNELS), triton.cdiv(pixels, RUN)
    parts = torch.empty((runs, 2, c), dtype=torch.float32, device=x.device)
    drop: tuple[Any, ...] = _dropout(dropout, seed)
    norm_sums_kernel[(runs, blocks)](
        dy, x, weight, bias, mean, var, parts,
        pixels, eps, *drop,
        c, activation, dropout > 0,
        RUN, PIXELS, CHANNELS,
    )  # fmt: skip
    sums = sum_parts(parts)
    dx = empty_map(x, *x.shape[1:])
    norm_gradient_kernel[(triton.cdiv(pixels, PIXELS), blocks)](
        dy, x, weight, bias, mean, var, sums, dx,
        pixels, eps, *drop,
        c, activation, dropout > 0, batch_moments,
        PIXELS, CHANNELS,
    )  # fmt: skip
    return dx, sums[1] / torch.sqrt(var + eps), sums[0].clone()


def _dropout(share: float, seed: int) -> tuple[int, int, int, float]:
    """Threshold of the hash and halves of the seed as int32 bits; the factor of kept elements."""
    words = int(share * 2**32), seed & 0xFFFFFFFF, seed >> 32
    low, first, second = (w - 2**32 if w >= 2**31 else w for w in words)
    return low, first, second, 1 / (1 - share)
