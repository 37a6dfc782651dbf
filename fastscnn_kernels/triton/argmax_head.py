"""Class scores to labels, confidence or probabilities at full size; no logits are ever stored.

v[n, p, k] = bilinear(scores)[n, k, p]
label = argmax_k v_k;  confidence = 1 / sum_k exp(v_k - max v)
probability_k = exp(v_k - max v) / sum_j exp(v_j - max v)

Equivalent to: F.interpolate(scores, size, mode="bilinear").max(1) and .softmax(1)
Reads the scores once (plus one row per output row, from L1), writes 1, 5 or 4 K bytes per pixel.
Scores may have any strides; planes (N x K x h x w contiguous) are read fastest.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastscnn_kernels.shapes import resize_scale
from fastscnn_kernels.triton import tiles
from fastscnn_kernels.triton.device import source


@triton.jit
def _lerp_rows(scores, upper, lower, column, valid, fraction):
    """One column of scores between two rows, in fp32."""
    a = tl.load(scores + upper + column, mask=valid, other=0.0).to(tl.float32)
    b = tl.load(scores + lower + column, mask=valid, other=0.0).to(tl.float32)
    return (1.0 - fraction) * a + fraction * b


@triton.jit
def _sample(scores, upper, lower, fy, z0, z1, z2, second, fx, valid, RUN: tl.constexpr):
    """[BLOCK, RUN] samples of one class. A run of pixels touches at most three columns of scores,
    and pixel `second` in it uses the latter two; two weights per pixel keep this monotone."""
    left = _lerp_rows(scores, upper, lower, z0, valid, fy)[:, None]
    right = _lerp_rows(scores, upper, lower, z1, valid, fy)[:, None]
    if RUN > 1:
        last = _lerp_rows(scores, upper, lower, z2, valid, fy)[:, None]
        left, right = tl.where(second, right, left), tl.where(second, last, right)
    return (1.0 - fx) * left + fx * right


@triton.jit
def _positions(
    H, W, OH, OW, scale_h, scale_w, row_stride, column_stride,
    ALIGN_CORNERS: tl.constexpr, RUN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """This program's ROWS x COLUMNS runs of RUN pixels: targets, sources and weights."""
    p = tl.arange(0, ROWS * COLUMNS)
    row = tl.program_id(1) * ROWS + p // COLUMNS
    first = (tl.program_id(0) * COLUMNS + p % COLUMNS) * RUN
    valid = (row < OH) & (first < OW)
    y0, y1, fy = source(row, H, scale_h, ALIGN_CORNERS)
    z0, _, _ = source(first, W, scale_w, ALIGN_CORNERS)
    column = first[:, None] + tl.arange(0, RUN)[None, :]  # [BLOCK, RUN]
    z, _, fx = source(column, W, scale_w, ALIGN_CORNERS)
    z1, z2 = tl.minimum(z0 + 1, W - 1), tl.minimum(z0 + 2, W - 1)
    target = row.to(tl.int64)[:, None] * OW + column
    inside = (row < OH)[:, None] & (column < OW)
    return (
        target, inside, valid, y0.to(tl.int64) * row_stride, y1.to(tl.int64) * row_stride, fy,
        z0 * column_stride, z1 * column_stride, z2 * column_stride, z > z0[:, None], fx,
    )  # fmt: skip


@triton.jit
def argmax_head_kernel(
    scores, labels, confidence,
    H, W, OH, OW, scale_h, scale_w,
    image_stride, class_stride, row_stride, column_stride,
    CLASSES: tl.constexpr, CONFIDENCE: tl.constexpr, ALIGN_CORNERS: tl.constexpr,
    RUN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(2).to(tl.int64)
    target, inside, valid, upper, lower, fy, z0, z1, z2, second, fx = _positions(
        H, W, OH, OW, scale_h, scale_w, row_stride, column_stride,
        ALIGN_CORNERS, RUN, ROWS, COLUMNS,
    )  # fmt: skip
    best = tl.full((ROWS * COLUMNS, RUN), -float("inf"), tl.float32)
    total = tl.zeros((ROWS * COLUMNS, RUN), tl.float32)
    label = tl.zeros((ROWS * COLUMNS, RUN), tl.int32)
    for k in range(CLASSES):
        plane = scores + image * image_stride + k * class_stride
        v = _sample(plane, upper, lower, fy, z0, z1, z2, second, fx, valid, RUN)
        better = v > best
        if CONFIDENCE:
            e = tl.exp(-tl.abs(v - best))
            total = tl.where(better, total * e + 1.0, total + e)
        best = tl.where(better, v, best)
        label = tl.where(better, k, label)
    target += image * OH * OW
    tl.store(labels + target, label.to(tl.uint8), mask=inside)
    if CONFIDENCE:
        tl.store(confidence + target, 1.0 / total, mask=inside)


@triton.jit
def softmax_head_kernel(
    scores, probabilities,
    H, W, OH, OW, scale_h, scale_w,
    image_stride, class_stride, row_stride, column_stride,
    CLASSES: tl.constexpr, ALIGN_CORNERS: tl.constexpr,
    RUN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(2).to(tl.int64)
    target, inside, valid, upper, lower, fy, z0, z1, z2, second, fx = _positions(
        H, W, OH, OW, scale_h, scale_w, row_stride, column_stride,
        ALIGN_CORNERS, RUN, ROWS, COLUMNS,
    )  # fmt: skip
    best = tl.full((ROWS * COLUMNS, RUN), -float("inf"), tl.float32)
    total = tl.zeros((ROWS * COLUMNS, RUN), tl.float32)
    for k in range(CLASSES):
        plane = scores + image * image_stride + k * class_stride
        v = _sample(plane, upper, lower, fy, z0, z1, z2, second, fx, valid, RUN)
        e = tl.exp(-tl.abs(v - best))
        total = tl.where(v > best, total * e + 1.0, total + e)
        best = tl.maximum(best, v)
    for k in range(CLASSES):
        plane = scores + image * image_stride + k * class_stride
        v = _sample(plane, upper, lower, fy, z0, z1, z2, second, fx, valid, RUN)
        out = probabilities + (image * CLASSES + k) * OH * OW + target
        tl.store(out, tl.exp(v - best) / total, mask=inside)


def argmax_head(
    scores: Tensor,
    size: tuple[int, int],
    *,
    align_corners: bool = False,
    confidence: bool = True,
) -> tuple[Tensor, Tensor]:
    """One program computes ROWS x COLUMNS runs of RUN pixels, all classes."""
    n, k = scores.shape[:2]
    labels = torch.empty((n, *size), dtype=torch.uint8, device=scores.device)
    sure = torch.empty(
        (n, *size) if confidence else (0,), dtype=torch.float32, device=scores.device
    )
    run, t, grid, sizes = _plan(scores, size, align_corners)
    argmax_head_kernel[grid](
        scores, labels, sure,
        *sizes, *_strides(scores),
        k, confidence, align_corners,
        run, t.rows, t.columns,
        num_warps=t.warps,
    )  # fmt: skip
    return labels, sure


def softmax_head(scores: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """One program computes ROWS x COLUMNS runs of RUN pixels, all classes."""
    n, k, _, _ = scores.shape
    y = torch.empty((n, k, *size), dtype=torch.float32, device=scores.device)
    run, t, grid, sizes = _plan(scores, size, align_corners)
    softmax_head_kernel[grid](
        scores, y,
        *sizes, *_strides(scores),
        k, align_corners,
        run, t.rows, t.columns,
        num_warps=t.warps,
    )  # fmt: skip
    return y


def run_length(scale: float) -> int:
    """Pixels per run such that a run spans less than one column of scores."""
    return 8 if scale <= 0.14 else 4 if scale <= 0.3 else 1


def _plan(
    scores: Tensor, size: tuple[int, int], align_corners: bool
) -> tuple[int, tiles.Tile, tuple[int, int, int], tuple[int | float, ...]]:
    n, k, h, w = scores.shape
    oh, ow = size
    scale_h, scale_w = resize_scale(h, oh, align_corners), resize_scale(w, ow, align_corners)
    run = run_length(scale_w)
    t = tiles.choose("argmax_head", scores, pixels=n * oh * ow, inner=run, outer=k)
    grid = (triton.cdiv(ow, t.columns * run), triton.cdiv(oh, t.rows), n)
    return run, t, grid, (h, w, oh, ow, scale_h, scale_w)


def _strides(scores: Tensor) -> tuple[int, int, int, int]:
    image, plane, row, column = scores.stride()
    return image, plane, row, column
