"""What a frame costs on a GPU: one row per kernel, from sizes alone; nothing is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastscnn.config import FastSCNNConfig
from fastscnn.fold import fold
from fastscnn.gpu_runtime import GpuRuntime
from fastscnn.model import FastSCNN
from fastscnn_kernels import shapes

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
    size: tuple[int, int],
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.float16,
) -> list[Row]:
    """The kernels that turn uint8 frames of `size` into labels, in order (Triton alone)."""
    with torch.device("meta"):
        model = FastSCNN(num_classes, config=config).eval()
        frame = torch.empty(batch, *size, 3, dtype=torch.uint8)
    recorder = _Recorder(dtype)
    GpuRuntime(fold(model), config, num_classes, dtype, ops=recorder).labels(frame)
    return recorder.rows


class _Recorder:
    """Stands for the operations: returns tensors without memory and notes what they would cost."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.rows: list[Row] = []

    def _note(self, op: str, inputs: Sequence[Tensor], y: Tensor, macs: int) -> Tensor:
        moved = sum(t.numel() * t.element_size() for t in (*inputs, y))
        shape = tuple(inputs[0].shape), tuple(y.shape)
        self.rows.append(Row(op, "triton", *shape, moved, 2 * macs, self.dtype))
        return y

    def pointwise_conv(
        self, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, **_: Any
    ) -> Tensor:
        y = shapes.empty_map(x, weight.shape[0], *x.shape[2:])
        skip = () if residual is None else (residual,)
        return self._note(
            "pointwise_conv", (x, weight, bias, *skip), y, _pixels(x) * weight.numel()
        )

    def depthwise_conv(self, x: Tensor, weight: Tensor, bias: Tensor, *, stride: int) -> Tensor:
        h, w = (shapes.convolved(s, stride) for s in x.shape[2:])
        y = shapes.empty_map(x, x.shape[1], h, w)
        return self._note("depthwise_conv", (x, weight, bias), y, 9 * y.numel())

    def dsconv(
        self, x: Tensor, *weights: Tensor, stride: int = 1, residual: Tensor | None = None, **_: Any
    ) -> Tensor:
        h, w = (shapes.convolved(s, stride) for s in x.shape[2:])
        y = shapes.empty_map(x, weights[2].shape[0], h, w)
        skip = () if residual is None else (residual,)
        macs = _pixels(y) * (weights[0].numel() + weights[2].numel())
        return self._note("dsconv", (x, *weights, *skip), y, macs)

    def learning_to_downsample(
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
        y = shapes.empty_map(frame, weight.shape[0], h, w, self.dtype)
        y = self._note("stem_conv", (frame, weight, bias), y, _pixels(y) * weight.numel())
        return self.dsconv(self.dsconv(y, *dsconv1, stride=2), *dsconv2, stride=2)

    def inverted_residual(
        self, x: Tensor, *weights: Tensor, stride: int, residual: bool, **_: Any
    ) -> Tensor:
        skip = x if residual else None
        hidden = self.pointwise_conv(x, weights[0], weights[1])
        h, w = (shapes.convolved(s, stride) for s in x.shape[2:])
        if x.shape[0] * h * w >= shapes.FUSED_PIXELS:
            return self.dsconv(hidden, *weights[2:], stride=stride, residual=skip)
        y = self.depthwise_conv(hidden, weights[2], weights[3], stride=stride)
        return self.pointwise_conv(y, weights[4], weights[5], skip)

    def pyramid_pool(
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
        sums = x.new_empty((n, h, sum(order), c), dtype=torch.float32)
        self._note("pool_rows", (x,), sums, x.numel() * len(branch_weights))
        cells = sum(b * b for b in order)
        maps = x.new_empty((n, cells, branch_weights[0].shape[0]))
        macs = n * cells * branch_weights[0].numel()
        self._note("pool_branches", (sums, *branch_weights, *branch_biases), maps, macs)
        y = shapes.empty_map(x, join_weight.shape[0], h, w)
        macs = _pixels(x) * join_weight.numel()
        return self._note("pool_join", (x, maps, join_weight, join_bias), y, macs)

    def feature_fusion(self, high: Tensor, low: Tensor, *weights: Tensor, **_: Any) -> Tensor:
        depthwise, low_weight, high_weight = weights[0], weights[2], weights[4]
        macs = low_weight.numel() + high_weight.numel() + 4 * low.shape[1]
        if depthwise.shape[-1] == 1:
            low = self.pointwise_conv(low, weights[0], weights[1])
        else:
            macs += 5 * depthwise.numel()  # each of nine taps is sampled from four pixels
        y = shapes.empty_map(high, low_weight.shape[0], *high.shape[2:])
        return self._note("feature_fusion", (high, low, *weights), y, macs * _pixels(high))

    def argmax_head(self, scores: Tensor, size: tuple[int, int], **_: Any) -> tuple[Tensor, Tensor]:
        labels = scores.new_empty((scores.shape[0], *size), dtype=torch.uint8)
        macs = 2 * scores.shape[1] * labels.numel()
        return self._note("argmax_head", (scores,), labels, macs), labels


def _pixels(x: Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text, with their sums."""
    lines = [f"{'op':<15} {'by':<7} {'input':<18} {'output':<18} {'MB':>7} {'GFLOP':>7} {'us':>6}"]
    for r in rows:
        shapes_ = "x".join(map(str, r.input)), "x".join(map(str, r.output))
        lines.append(
            f"{r.op:<15} {r.implementation:<7} {shapes_[0]:<18} {shapes_[1]:<18} "
            f"{r.bytes / 1e6:7.2f} {r.gflop:7.3f} {r.floor_us:6.2f}"
        )
    total = (sum(r.bytes for r in rows) / 1e6, sum(r.gflop for r in rows))
    us = sum(r.floor_us for r in rows)
    lines.append(f"{len(rows)} kernels {total[0]:59.2f} {total[1]:7.3f} {us:6.2f}")
    lines.append("us: predicted floor on an H100 without launch costs; nothing was measured")
    return "\n".join(lines)
