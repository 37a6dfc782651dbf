"""The plan's rows against hand-computed sizes of the paper's network."""

from __future__ import annotations

import math

import pytest
import torch

from fastscnn.inference.plan import Row, plan, table
from fastscnn.network.config import PRESETS
from fastscnn_kernels import reference
from fastscnn_kernels.composition import Composition
from fastscnn_kernels.cuda import operations as cuda

PAPER = PRESETS["paper"]
TRITON = Composition(reference, "triton")
BOTH = Composition(reference, "triton", tuple(cuda.TYPES))


def test_paper_at_full_size() -> None:
    rows = plan(PAPER, 19, (1024, 2048), ops=TRITON)
    stem, last = rows[0], rows[-1]
    assert (stem.op, stem.output) == ("stem_conv", (1, 32, 512, 1024))
    assert stem.flops == 2 * 452_984_832  # 452.98 MMAC
    assert stem.bytes == 1024 * 2048 * 3 + 2 * (32 * 512 * 1024 + 864 + 32)
    assert (last.op, last.output) == ("argmax_head", (1, 1024, 2048))
    assert last.bytes == 2 * 19 * 128 * 256 + 1024 * 2048
    # 6.71 GMAC of convolutions; sampling, pooling and the head add under 4 %
    assert 13.42 < sum(r.gflop for r in rows) < 13.42 * 1.04
    assert len(rows) == 36


def test_floor_is_the_slower_of_bytes_and_flops() -> None:
    half, single = (
        plan(PAPER, 19, (512, 1024), dtype=d, ops=TRITON) for d in (torch.half, torch.float32)
    )
    assert half[0].floor_us == pytest.approx(half[0].bytes / 3e6)
    expand = single[3]
    assert expand.op == "pointwise_conv"
    assert expand.floor_us == pytest.approx(expand.flops / 67e6)


def test_a_residual_is_read_too() -> None:
    """The second bottleneck of a small frame: its projection adds the block's input."""
    rows = plan(PAPER, 19, (256, 512), ops=TRITON)
    project = rows[3 + 3 + 2]  # behind learning to downsample, one block, and two layers
    assert (project.op, project.input) == ("pointwise_conv", (1, 384, 16, 32))
    pixels = 16 * 32
    assert project.bytes == 2 * (384 * pixels + 384 * 64 + 64 + 2 * 64 * pixels)
    fused = plan(PAPER, 19, (1024, 2048), ops=TRITON)
    blocks = [r for r in fused if r.op == "dsconv" and r.output == (1, 64, 64, 128)]
    pixels, weights = 64 * 128, 9 * 384 + 384 + 384 * 64 + 64
    added = [r.bytes / 2 - weights - 64 * pixels - 384 * r.input[2] * r.input[3] for r in blocks]
    assert added == [0, 64 * pixels, 64 * pixels]


def test_a_strided_layer_computes_what_it_gives() -> None:
    layers = [r for r in plan(PAPER, 19, (256, 512), ops=TRITON) if r.op == "depthwise_conv"]
    assert any(r.input != r.output for r in layers)
    assert all(r.flops == 2 * 9 * math.prod(r.output) for r in layers)


def by_cuda(rows: list[Row]) -> list[str]:
    return [r.op for r in rows if r.implementation == "cuda"]


def test_with_cuda_a_frame_is_16_launches() -> None:
    """Every block in one kernel, the scores' 1x1 in the last of them."""
    alone, rows = (plan(PAPER, 19, (1024, 2048), ops=ops) for ops in (TRITON, BOTH))
    assert by_cuda(rows) == [
        "learning_to_downsample", *["inverted_residual"] * 9, "pool_rows", "pool_join",
        "feature_fusion", "dsconv", "dsconv", "argmax_head",
    ]  # fmt: skip
    assert len(rows) == len(by_cuda(rows)) == 16
    assert sum(r.flops for r in rows) == sum(r.flops for r in alone)
    moved = sum(r.bytes for r in rows)
    assert moved < sum(r.bytes for r in alone) / 4
    last = rows[-2]
    assert (last.input, last.output) == ((1, 128, 128, 256), (1, 19, 128, 256))
    weights = 9 * 128 + 128 + 128 * 128 + 128 + 19 * 128 + 19
    assert last.bytes == 2 * (147 * 128 * 256 + weights)


def test_what_cuda_does_not_take_is_shown() -> None:
    assert by_cuda(plan(PAPER, 19, (256, 512), dtype=torch.float32, ops=BOTH)) == []
    text = table(
        plan(PAPER, 19, (256, 512), dtype=torch.float32, ops=Composition(reference, "torch"))
    )
    assert "feature_fusion         torch" in text
    assert "pyramid_pool           torch" in text
    assert "PyTorch runs in several kernels" in text


@pytest.mark.parametrize("ops", [TRITON, BOTH], ids=str)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_and_batch(preset: str, ops: Composition) -> None:
    one = plan(PRESETS[preset], 11, (511, 1023), ops=ops)
    four = plan(PRESETS[preset], 11, (511, 1023), batch=4, ops=ops)
    assert sum(r.flops for r in four) == 4 * sum(r.flops for r in one)
    assert f"{len(one)} kernels" in table(one)
