"""Softmax cross-entropy of upsampled class scores, and its gradient, without full-size logits.

v[p, k] = bilinear(scores)[k, p];  q = softmax(v);  t = label of p
loss_p = w_t (1 - s) (lse v - v_t) + s / K sum_k w_k (lse v - v_k)
dloss_p / dv_k = q_k ((1 - s) w_t + s / K sum w) - [k = t] (1 - s) w_t - s / K w_k

Equivalent to: F.cross_entropy(F.interpolate(scores, size, mode="bilinear"), target, weight, ...)
A program makes the pixels between two rows and some columns of scores, all classes at a time, and
what they add to the gradients of the scores at their corners: 4 floats per score, which are added
up in one order. Reads the scores and the labels once; 4 / 64 of the logits are written at x8.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastscnn_kernels.shapes import nhwc, resize_scale

#: Pixels of a cell's row that a program works on at a time, and elements of its tile: more spill.
COLUMNS, ELEMENTS = 8, 2048


@triton.jit
def _corner(scores, image, row, column, k, cells, H, W, K: tl.constexpr):
    """[cells, classes] of one corner of each cell."""
    at = ((image * H + row).to(tl.int64) * W + column)[:, None] * K + k[None, :]
    return tl.load(scores + at, mask=cells[:, None] & (k < K)[None, :], other=0.0).to(tl.float32)


@triton.jit
def cross_entropy_head_kernel(
    scores, target, weight, pixel_grad, row_first, column_first, losses, sums, corners,
    H, W, OH, OW, scale_h, scale_w, ignore, smoothing,
    K: tl.constexpr, WEIGHT: tl.constexpr, PIXEL_GRAD: tl.constexpr,
    LOSSES: tl.constexpr, GRADIENT: tl.constexpr, ALIGN_CORNERS: tl.constexpr,
    CELLS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row, image = tl.program_id(1), tl.program_id(2)
    column = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    k = tl.arange(0, BLOCK_K)
    cells, right, below = column < W, tl.minimum(column + 1, W - 1), tl.minimum(row + 1, H - 1)
    a = _corner(scores, image, row, column, k, cells, H, W, K)[:, None, :]
    b = _corner(scores, image, row, right, k, cells, H, W, K)[:, None, :]
    c = _corner(scores, image, below, column, k, cells, H, W, K)[:, None, :]
    d = _corner(scores, image, below, right, k, cells, H, W, K)[:, None, :]
    known = (k < K)[None, None, :]
    w = tl.where(k < K, 1.0, 0.0)
    if WEIGHT:
        w = tl.load(weight + k, mask=k < K, other=0.0)
    each, all_weights = smoothing / K, tl.sum(w, axis=0)
    first = tl.load(column_first + column, mask=cells, other=0)
    last = tl.load(column_first + column + 1, mask=cells, other=0)
    most = tl.max(last - first, axis=0)
    zeros = tl.zeros((CELLS, BLOCK_K), tl.float32)
    da, db, dc, dd = zeros, zeros, zeros, zeros
    loss_sum, weight_sum, wrong = 0.0, 0.0, 0.0
    for y in range(tl.load(row_first + row), tl.load(row_first + row + 1)):
        fy = _fraction(tl.full((), y, tl.int32), row, scale_h, ALIGN_CORNERS)
        for begin in range(0, most, COLUMNS):
            x = first[:, None] + begin + tl.arange(0, COLUMNS)[None, :]  # [CELLS, COLUMNS]
            inside = x < last[:, None]
            pixel = (image * OH + y).to(tl.int64) * OW + x
            label = tl.load(target + pixel, mask=inside, other=0)
            counts = inside & (label != ignore)
            valid = (label >= 0) & (label < K)
            wrong += tl.sum(tl.sum((counts & (valid == 0)).to(tl.float32), axis=1), axis=0)
            fx = _fraction(x, column[:, None], scale_w, ALIGN_CORNERS)[:, :, None]
            v = (1.0 - fy) * ((1.0 - fx) * a + fx * b) + fy * ((1.0 - fx) * c + fx * d)
            v = tl.where(known, v, -float("inf"))  # [CELLS, COLUMNS, BLOCK_K]
            best = tl.max(v, axis=2)[:, :, None]
            e = tl.exp(v - best)
            total = tl.sum(e, axis=2)[:, :, None]
            hit = known & (k[None, None, :] == label.to(tl.int32)[:, :, None])
            behind = tl.where(known, best + tl.log(total) - v, 0.0)
            labelled = tl.sum(tl.where(hit, w[None, None, :], 0.0), axis=2)
            at_label = tl.sum(tl.where(hit, behind, 0.0), axis=2)
            spread = tl.sum(behind * w[None, None, :], axis=2)
            loss = (1.0 - smoothing) * labelled * at_label + each * spread
            loss = tl.where(counts, loss, 0.0)
            if LOSSES:
                tl.store(losses + pixel, loss, mask=inside)
            loss_sum += tl.sum(tl.sum(loss, axis=1), axis=0)
            weight_sum += tl.sum(tl.sum(tl.where(counts, labelled, 0.0), axis=1), axis=0)
            if GRADIENT:
                out = tl.where(counts, 1.0, 0.0)
                if PIXEL_GRAD:
                    grad = tl.load(pixel_grad + pixel, mask=inside, other=0.0)
                    out = tl.where(counts, grad.to(tl.float32), 0.0)
                share = (1.0 - smoothing) * labelled * out
                g = e / total * (share + each * all_weights * out)[:, :, None]
                g -= tl.where(hit, share[:, :, None], 0.0)
                g -= (each * out)[:, :, None] * w[None, None, :]
                g = tl.where(counts[:, :, None], g, 0.0)
                g_left, g_right = tl.sum((1.0 - fx) * g, axis=1), tl.sum(fx * g, axis=1)
                da += (1.0 - fy) * g_left
                db += (1.0 - fy) * g_right
                dc += fy * g_left
                dd += fy * g_right
    program = (image * H + row) * tl.num_programs(0) + tl.program_id(0)
    tl.store(sums + program * 3, loss_sum)
    tl.store(sums + program * 3 + 1, weight_sum)
    tl.store(sums + program * 3 + 2, wrong)
    if GRADIENT:
        at = ((image * H + row).to(tl.int64) * W + column)[:, None] * 4 * K + k[None, :]
        mask = cells[:, None] & (k < K)[None, :]
        tl.store(corners + at, da, mask=mask)
        tl.store(corners + at + K, db, mask=mask)
        tl.store(corners + at + 2 * K, dc, mask=mask)
        tl.store(corners + at + 3 * K, dd, mask=mask)


@triton.jit
def _fraction(position, low, scale, ALIGN_CORNERS: tl.constexpr):
    """How far a target position lies behind source `low`."""
    if ALIGN_CORNERS:
        at = position.to(tl.float32) * scale
    else:
        at = tl.maximum((position.to(tl.float32) + 0.5) * scale - 0.5, 0.0)
    return at - low.to(tl.float32)


def cross_entropy_head_sums(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    align_corners: bool = False,
    gradient: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One launch, see the module; sums of programs and corners are added up in PyTorch."""
    sums, corners, _ = _run(
        scores, target, weight, ignore_index, label_smoothing, align_corners, gradient=gradient
    )
    loss, count = sums[:2]
    return loss, count, None if corners is None else _join(corners)


def cross_entropy_head_map(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    align_corners: bool = False,
) -> Tensor:
    """The same launch, which writes the pixels' losses."""
    options = (ignore_index, label_smoothing, align_corners)
    losses = _run(scores, target, weight, *options, losses=True)[2]
    assert losses is not None
    return losses


def cross_entropy_head_backward(
    pixel_grad: Tensor,
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    align_corners: bool = False,
) -> Tensor:
    """The same launch, which makes the gradient."""
    options = (ignore_index, label_smoothing, align_corners)
    corners = _run(scores, target, weight, *options, gradient=True, pixel_grad=pixel_grad)[1]
    assert corners is not None
    return _join(corners)


def _run(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
    *,
    gradient: bool = False,
    losses: bool = False,
    pixel_grad: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """[loss, weight, wrong labels]; gradients by corner, N x H x W x 4 x K; losses by pixel."""
    scores, target = nhwc(scores), target.contiguous()
    pixel_grad = None if pixel_grad is None else pixel_grad.contiguous()
    n, k, h, w = scores.shape
    oh, ow = target.shape[1:]
    scale_h, scale_w = resize_scale(h, oh, align_corners), resize_scale(w, ow, align_corners)
    block_k = max(16, triton.next_power_of_2(k))
    cells = max(1, ELEMENTS // COLUMNS // block_k)
    grid = (triton.cdiv(w, cells), h, n)
    device = scores.device
    sums = torch.empty((grid[0] * h * n, 3), dtype=torch.float32, device=device)
    shape = (n, h, w, 4, k) if gradient else (0,)
    corners = torch.empty(shape, dtype=torch.float32, device=device)
    per_pixel = torch.empty(target.shape if losses else (0,), dtype=torch.float32, device=device)
    cross_entropy_head_kernel[grid](
        scores, target, scores if weight is None else weight,
        per_pixel if pixel_grad is None else pixel_grad,
        _first(h, oh, scale_h, align_corners, device),
        _first(w, ow, scale_w, align_corners, device),
        per_pixel, sums, corners,
        h, w, oh, ow, scale_h, scale_w, ignore_index, label_smoothing,
        k, weight is not None, pixel_grad is not None, losses, gradient, align_corners,
        cells, COLUMNS, block_k,
        num_warps=4,
    )  # fmt: skip
    total = sums.sum(0)
    torch._assert_async(
        total[2] == 0,
        f"cross_entropy_head: target has a label beyond 0..{k - 1} that is not ignore_index="
        f"{ignore_index}",
    )
    return total, corners if gradient else None, per_pixel if losses else None


def _first(size: int, out: int, scale: float, align_corners: bool, device: torch.device) -> Tensor:
    """[size + 1]: the first of `out` positions that belongs to each source element."""
    position = torch.arange(out, dtype=torch.float32, device=device)
    at = position * scale if align_corners else ((position + 0.5) * scale - 0.5).clamp_min(0)
    low = at.to(torch.int32).clamp_max(size - 1)
    elements = torch.arange(size + 1, dtype=torch.int32, device=device)
    return torch.searchsorted(low, elements).to(torch.int32)


def _join(corners: Tensor) -> Tensor:
    """The gradient of the scores, N x K x H x W: at each the sum over the cells around it."""
    upper, lower = (_along(corners[..., i : i + 2, :], 2) for i in (0, 2))
    return _along(torch.stack((upper, lower), -2), 1).permute(0, 3, 1, 2)


def _along(pairs: Tensor, axis: int) -> Tensor:
    """Element i's own and what element i - 1 has for its next; the last is its own next."""
    own, following = pairs.unbind(-2)
    size = own.shape[axis]
    total = own.clone()
    total.narrow(axis, 1, size - 1).add_(following.narrow(axis, 0, size - 1))
    total.select(axis, size - 1).add_(following.select(axis, size - 1))
    return total
