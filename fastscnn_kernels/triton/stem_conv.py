"""Normalisation, 3x3 stride-2 convolution, bias and activation of an RGB frame in one kernel.

y[n, h, w, o] = f(b[o] + sum_{i, j, c} w[o, c, i, j] z[n, 2 h + i - top, 2 w + j - left, c])
z = (frame / 255 - mean) / std for uint8 frames, the input itself for floats, 0 outside

Equivalent to: f(F.conv2d(F.pad(normalize(frame), pads), weight, bias, stride=2))
An implicit matrix product with K = 27 padded to 32. Zero padding is zero in *normalised* space, so
mean and std act on the loaded bytes, not on the weights. Reads the frame once plus one row and
column per tile, writes y once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastscnn_kernels.reference import stem_padding
from fastscnn_kernels.shapes import empty_map, stem_size, taps_evenly_spaced
from fastscnn_kernels.triton import tiles
from fastscnn_kernels.triton.device import activate, pixel_offset, tile_pixels


@triton.jit
def _per_colour(c, red, green, blue):
    return tl.where(c == 0, red, tl.where(c == 1, green, blue))


@triton.jit
def stem_conv_kernel(
    frame, weight, bias, y,
    H, W, OH, OW, top, left,
    scale_r, scale_g, scale_b, shift_r, shift_g, shift_b,
    frame_image, frame_row, frame_column, frame_colour, weight_out, weight_colour, weight_tap,
    CO: tl.constexpr, BYTES: tl.constexpr, ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(CO, BLOCK_N)
    image = tl.program_id(2)
    row, column, inside = tile_pixels(tl.program_id(0) // blocks, OH, OW, ROWS, COLUMNS)
    out = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, 32)  # tap-major, colours innermost: a row of three taps is 9 bytes in a frame
    tap = k // 3
    colour = k % 3
    y0 = row[:, None] * 2 - top + (tap // 3)[None, :]
    x0 = column[:, None] * 2 - left + (tap % 3)[None, :]
    valid = inside[:, None] & (k < 27)[None, :] & (y0 >= 0) & (y0 < H) & (x0 >= 0) & (x0 < W)
    start = frame + image.to(tl.int64) * frame_image
    offset = y0.to(tl.int64) * frame_row + x0 * frame_column + (colour * frame_colour)[None, :]
    z = tl.load(start + offset, mask=valid, other=0).to(tl.float32)  # [pixels, 32]
    if BYTES:
        scale = _per_colour(colour, scale_r, scale_g, scale_b)[None, :]
        shift = _per_colour(colour, shift_r, shift_g, shift_b)[None, :]
        z = tl.where(valid, z * scale + shift, 0.0)
    w = tl.load(
        weight + (colour * weight_colour + tap * weight_tap)[:, None] + out[None, :] * weight_out,
        mask=(k < 27)[:, None] & (out < CO)[None, :],
        other=0.0,
    )
    acc = tl.dot(z.to(w.dtype), w, input_precision="ieee")
    acc += tl.load(bias + out, mask=out < CO, other=0.0).to(tl.float32)[None, :]
    tl.store(
        y + pixel_offset(image, row, column, OH, OW, CO)[:, None] + out[None, :],
        activate(acc, ACTIVATION).to(y.dtype.element_ty),
        mask=inside[:, None] & (out < CO)[None, :],
    )


def stem_conv(
    frame: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    padding: int | str = 1,
    activation: str = "relu",
) -> Tensor:
    """One program computes ROWS x COLUMNS pixels and BLOCK_N output channels."""
    is_bytes = frame.dtype == torch.uint8
    x = frame.permute(0, 3, 1, 2) if is_bytes else frame  # N x 3 x H x W, any strides
    weight = taps_evenly_spaced(weight)
    n, _, h, w = x.shape
    co = weight.shape[0]
    left, _, top, _ = stem_padding(h, w, padding)
    oh, ow = stem_size(h, w, padding)
    y = empty_map(x, co, oh, ow, weight.dtype)
    t = tiles.choose("stem_conv", y, pixels=n * oh * ow, inner=32, outer=co)
    grid = (triton.cdiv(ow, t.columns) * triton.cdiv(co, t.outer), triton.cdiv(oh, t.rows), n)
    stem_conv_kernel[grid](
        x, weight, bias, y,
        h, w, oh, ow, top, left,
        *(1 / (255 * s) for s in std), *(-m / s for m, s in zip(mean, std, strict=True)),
        x.stride(0), x.stride(2), x.stride(3), x.stride(1),
        weight.stride(0), weight.stride(1), weight.stride(3),
        co, is_bytes, activation,
        t.rows, t.columns, t.outer,
        num_warps=t.warps,
    )  # fmt: skip
    return y
