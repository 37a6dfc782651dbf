"""Device functions that several kernels share: activations, tile coordinates, sampling."""

import triton
import triton.language as tl


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """ "none", "relu" or "relu6"; NaN stays NaN as in torch."""
    if ACTIVATION != "none":
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if ACTIVATION == "relu6":
        x = tl.minimum(x, 6.0, propagate_nan=tl.PropagateNan.ALL)
    return x


@triton.jit
def tile_pixels(tile_column, H, W, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(row, column, inside) of the ROWS x COLUMNS pixels of this program's tile, flattened."""
    p = tl.arange(0, ROWS * COLUMNS)
    row = tl.program_id(1) * ROWS + p // COLUMNS
    column = tile_column * COLUMNS + p % COLUMNS
    return row, column, (row < H) & (column < W)


@triton.jit
def pixel_offset(image, row, column, H, W, C: tl.constexpr):
    """Offset of channel 0 of an NHWC pixel, in 64 bits."""
    return ((image * H + row).to(tl.int64) * W + column) * C


@triton.jit
def depthwise_sum(
    x, weight, bias,
    image, row, column, inside, channel,
    H, W,
    weight_channel, weight_tap,
    C: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr,
):  # fmt: skip
    """3x3 depthwise convolution with bias of [pixels] x [channels], in fp32.

    The loop over rows stays rolled on purpose: unrolled, the compiler moves the whole sum into the
    operand layout of a following dot, where on mma.sync targets every warp computes it again.
    """
    known = channel < C
    b = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)
    acc = tl.zeros((row.shape[0], channel.shape[0]), tl.float32) + b[None, :]
    for kh in range(3):
        y = row * STRIDE + (kh - 1) * DILATION
        in_rows = inside & (y >= 0) & (y < H)
        for kw in tl.static_range(3):
            z = column * STRIDE + (kw - 1) * DILATION
            valid = in_rows & (z >= 0) & (z < W)
            v = tl.load(
                x + pixel_offset(image, y, z, H, W, C)[:, None] + channel[None, :],
                mask=valid[:, None] & known[None, :],
                other=0.0,
            )
            tap = weight + channel * weight_channel + (kh * 3 + kw) * weight_tap
            w = tl.load(tap, mask=known, other=0.0)
            acc += v.to(tl.float32) * w.to(tl.float32)[None, :]
    return acc


@triton.jit
def source(position, size, scale, ALIGN_CORNERS: tl.constexpr):
    """(low, high, fraction) of bilinear sampling along one axis, as torch computes them."""
    if ALIGN_CORNERS:
        at = position.to(tl.float32) * scale
    else:
        at = tl.maximum((position.to(tl.float32) + 0.5) * scale - 0.5, 0.0)
    low = tl.minimum(at.to(tl.int32), size - 1)
    return low, tl.minimum(low + 1, size - 1), at - low.to(tl.float32)


@triton.jit
def bilinear(
    x,
    image, row, column, valid, channel,
    H, W, scale_h, scale_w,
    C: tl.constexpr, ALIGN_CORNERS: tl.constexpr,
):  # fmt: skip
    """Bilinear samples [pixels, channels] of an NHWC map at target rows and columns, in fp32."""
    known = channel < C
    y0, y1, fy = source(row, H, scale_h, ALIGN_CORNERS)
    x0, x1, fx = source(column, W, scale_w, ALIGN_CORNERS)
    acc = tl.zeros((row.shape[0], channel.shape[0]), tl.float32)
    for dy in tl.static_range(2):
        y = y1 if dy else y0
        wy = fy if dy else 1.0 - fy
        for dx in tl.static_range(2):
            z = x1 if dx else x0
            wx = fx if dx else 1.0 - fx
            v = tl.load(
                x + pixel_offset(image, y, z, H, W, C)[:, None] + channel[None, :],
                mask=valid[:, None] & known[None, :],
                other=0.0,
            )
            acc += (wy * wx)[:, None] * v.to(tl.float32)
    return acc
