"""What a frame costs on a GPU: one row per kernel, from sizes alone; nothing is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastscnn.inference.fold import fold
from fastscnn.inference.gpu_runtime import GpuRuntime
from fastscnn.network.config import FastSCNNConfig
from fastscnn.network.model import FastSCNN
from fastscnn_kernels import composition, shapes
from fastscnn_kernels.composition import Bound, Composition

Size = tuple[int, int]

#: Floors assume one H100: measured copy bandwidth and peak rates of the arithmetic units.
BYTES_PER_SECOND = 3.0e12
FLOPS_PER_SECOND = {torch.float16: 800e12, torch.bfloat16: 800e12, torch.float32: 67e12}


@dataclass(frozen=True)
class Row:
    """One kernel launch: activations and weights moved once, multiply-adds as two flops."""

    op: str
    implementation: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    bytes: int
    flops: int
    dtype: torch.dtype

    @property
    def gflop(self) -> float:
        return self.flops / 1e9

    @property
    def floor_us(self) -> float:
        """Predicted lower bound: the slower of moving the bytes and doing the arithmetic."""
        return 1e6 * max(self.bytes / BYTES_PER_SECOND, self.flops / FLOPS_PER_SECOND[self.dtype])


def plan(
    config: FastSCNNConfig,
    num_classes: int,
    size: Size,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.float16,
    ops: Composition | None = None,
) -> list[Row]:
    """The kernels that turn uint8 frames of `size` into labels, in order, as `ops` would run them
    (default: what this installation has for a GPU with Triton)."""
    with torch.device("meta"):
        model = FastSCNN(num_classes, config=config).eval()
        frame = torch.empty(batch, *size, 3, dtype=torch.uint8)
    recorder = _Recorder(ops or composition.assumed(), dtype)
    runtime = GpuRuntime(fold(model), config, num_classes, dtype, ops=recorder)
    runtime.outputs(frame, ("labels",), counters=frame)  # zeroed once, before any frame
    return recorder.rows


class _Recorder(Composition):
    """Stands for a composition: returns tensors without memory and notes what they would cost.

    A row is a launch of CUDA C++ or Triton; of PyTorch it is an operation, which may be several.
    """

    def __init__(self, ops: Composition, dtype: torch.dtype) -> None:
        self._ops = ops
        self._by = ""
        self._dtype = dtype
        self.rows: list[Row] = []

    def bind(self, op: str, *weights: Any, **options: Any) -> Bound:
        by = self._ops.bind(op, *weights, **options).implementation
        record = getattr(self, f"_{op}")

        def run(*maps: Tensor, **_: Any) -> Tensor:
            self._by = by
            y: Tensor = record(*maps, *weights, **options)
            return y

        return Bound(by, run)

    def argmax_head(self, scores: Tensor, size: Size, **_: Any) -> tuple[Tensor, Tensor]:
        self._by = self._ops.implementation("argmax_head", scores.dtype)
        labels = scores.new_empty((scores.shape[0], *size), dtype=torch.uint8)
        macs = 2 * scores.shape[1] * labels.numel()
        return self._note("argmax_head", (scores,), labels, macs), labels

    def _note(self, op: str, inputs: Sequence[Tensor], y: Tensor, macs: int) -> Tensor:
        moved = sum(t.nbytes for t in (*inputs, y))
        shape = tuple((inputs or (y,))[0].shape), tuple(y.shape)
        self.rows.append(Row(op, self._by, *shape, moved, 2 * macs, self._dtype))
        return y

    def _pointwise_conv(
        self, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None
    ) -> Tensor:
        y = shapes.empty_map(x, weight.shape[0], *x.shape[2:])
        skip = () if residual is None else (residual,)
        macs = _pixels(x) * weight.numel()
        return self._note("pointwise_conv", (x, weight, bias, *skip), y, macs)

    def _depthwise_conv(self, x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
        h, w = (shapes.convolved(s, stride) for s in x.shape[2:])
        y = shapes.empty_map(x, x.shape[1], h, w)
        return self._note("depthwise_conv", (x, weight, bias), y, 9 * y.numel())

    def _dsconv(
        self,
        x: Tensor,
        *weights: Tensor,
        stride: int = 1,
        residual: Tensor | None = None,
        head: Sequence[Tensor] | None = None,
        **_: Any,
    ) -> Tensor:
        h, w = (shapes.convolved(s, stride) for s in x.shape[2:])
        y = shapes.empty_map(x, weights[2].shape[0], h, w)
        macs = _pixels(y) * (weights[0].numel() + weights[2].numel())
        moved = (x, *weights, *(() if residual is None else (residual,)))
        if head is None:
            return self._note("dsconv", moved, y, macs)
        if self._by == "triton":
            return self._pointwise_conv(self._note("dsconv", moved, y, macs), *head)
        macs += _pixels(y) * head[0].numel()
        scores = y.new_empty((y.shape[0], head[0].shape[0], h, w))
        return self._note("dsconv", (*moved, *head), scores, macs)

    def _learning_to_downsample(
        self,
        frame: Tensor,
        weight: Tensor,
        bias: Tensor,
        dsconv1: Sequence[Tensor],
        dsconv2: Sequence[Tensor],
        *,
        padding: int | str,
        **_: Any,
    ) -> Tensor:
        h, w = shapes.stem_size(frame.shape[1], frame.shape[2], padding)
        y = shapes.empty_map(frame, weight.shape[0], h, w, self._dtype)
        macs = _pixels(y) * weight.numel()
        if self._by == "triton":
            y = self._note("stem_conv", (frame, weight, bias), y, macs)
            return self._dsconv(self._dsconv(y, *dsconv1, stride=2), *dsconv2, stride=2)
        for d in (dsconv1, dsconv2):
            h, w = (shapes.convolved(s, 2) for s in (h, w))
            y = shapes.empty_map(y, d[2].shape[0], h, w)
            macs += _pixels(y) * (d[0].numel() + d[2].numel())
        moved = (frame, weight, bias, *dsconv1, *dsconv2)
        return self._note("learning_to_downsample", moved, y, macs)

    def _inverted_residual(
        self, x: Tensor, *weights: Tensor, stride: int, residual: bool, **_: Any
    ) -> Tensor:
        skip = x if residual else None
        h, w = (shapes.convolved(s, stride) for s in x.shape[2:])
        if self._by != "triton":
            y = shapes.empty_map(x, weights[4].shape[0], h, w)
            macs = _pixels(x) * weights[0].numel()
            macs += _pixels(y) * (weights[2].numel() + weights[4].numel())
            return self._note("inverted_residual", (x, *weights), y, macs)
        hidden = self._pointwise_conv(x, weights[0], weights[1])
        if x.shape[0] * h * w >= shapes.FUSED_PIXELS:
            return self._dsconv(hidden, *weights[2:], stride=stride, residual=skip)
        y = self._depthwise_conv(hidden, weights[2], weights[3], stride=stride)
        return self._pointwise_conv(y, weights[4], weights[5], skip)

    def _pyramid_pool(
        self,
        x: Tensor,
        branch_weights: Sequence[Tensor],
        branch_biases: Sequence[Tensor],
        join_weight: Tensor,
        join_bias: Tensor,
        *,
        order: Sequence[int],
        **_: Any,
    ) -> Tensor:
        n, c, h, w = x.shape
        y = shapes.empty_map(x, join_weight.shape[0], h, w)
        pooling, joining = x.numel() * len(branch_weights), _pixels(x) * join_weight.numel()
        branches = (*branch_weights, *branch_biases)
        if self._by == "torch":
            moved = (x, *branches, join_weight, join_bias)
            return self._note("pyramid_pool", moved, y, joining + pooling)
        sums = x.new_empty((n, h, sum(order), c), dtype=torch.float32)
        self._note("pool_rows", (x,), sums, pooling)
        cells = sum(b * b for b in order)
        maps = x.new_empty((n, cells, branch_weights[0].shape[0]))
        macs = n * cells * branch_weights[0].numel()
        if self._by == "cuda":
            moved = (x, sums, *branches, join_weight, join_bias)
            return self._note("pool_join", moved, y, macs + joining)
        self._note("pool_branches", (sums, *branches), maps, macs)
        return self._note("pool_join", (x, maps, join_weight, join_bias), y, joining)

    def _feature_fusion(
        self, high: Tensor, low: Tensor, *weights: Tensor, dilation: int, align_corners: bool
    ) -> Tensor:
        depthwise, low_weight, high_weight = weights[0], weights[2], weights[4]
        (h, w), (lh, lw) = high.shape[2:], low.shape[2:]
        macs = low_weight.numel() + high_weight.numel() + 4 * low.shape[1]
        before = 0  # on the low map
        if depthwise.shape[-1] == 1:
            low = self._pointwise_conv(low, weights[0], weights[1])
        elif not shapes.fusion_commutes((h, w), (lh, lw), dilation, align_corners):
            macs += 5 * depthwise.numel()  # each of nine taps is sampled from four pixels
        elif self._by == "triton":
            low = self._depthwise_conv(low, weights[0], weights[1], stride=1)
        else:
            before = 9 * low.numel()
        y = shapes.empty_map(high, low_weight.shape[0], h, w)
        return self._note("feature_fusion", (high, low, *weights), y, before + macs * _pixels(high))


def _pixels(x: Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text, with their sums."""
    lines = [f"{'op':<22} {'by':<7} {'input':<18} {'output':<18} {'MB':>7} {'GFLOP':>7} {'us':>6}"]
    for r in rows:
        shapes_ = "x".join(map(str, r.input)), "x".join(map(str, r.output))
        lines.append(
            f"{r.op:<22} {r.implementation:<7} {shapes_[0]:<18} {shapes_[1]:<18} "
            f"{r.bytes / 1e6:7.2f} {r.gflop:7.3f} {r.floor_us:6.2f}"
        )
    total = (sum(r.bytes for r in rows) / 1e6, sum(r.gflop for r in rows))
    us = sum(r.floor_us for r in rows)
    lines.append(f"{len(rows)} kernels {total[0]:66.2f} {total[1]:7.3f} {us:6.2f}")
    if any(r.implementation == "torch" and r.flops for r in rows):
        lines.append("torch: one row per operation, which PyTorch runs in several kernels")
    lines.append("us: predicted floor on an H100 without launch costs; nothing was measured")
    return "\n".join(lines)
