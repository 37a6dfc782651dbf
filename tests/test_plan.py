"""The plan's rows against hand-computed sizes of the paper's network."""

from __future__ import annotations

import pytest
import torch

from fastscnn.config import PRESETS
from fastscnn.plan import plan, table

PAPER = PRESETS["paper"]


def test_paper_at_full_size() -> None:
    rows = plan(PAPER, 19, (1024, 2048))
    stem, last = rows[0], rows[-1]
    assert (stem.op, stem.output) == ("stem_conv", (1, 32, 512, 1024))
    assert stem.flops == 2 * 452_984_832  # 452.98 MMAC
    assert stem.bytes == 1024 * 2048 * 3 + 2 * (32 * 512 * 1024 + 864 + 32)
    assert (last.op, last.output) == ("argmax_head", (1, 1024, 2048))
    assert last.bytes == 2 * 19 * 128 * 256 + 1024 * 2048
    # 6.71 GMAC of convolutions; sampling, pooling and the head add under 4 %
    assert 13.42 < sum(r.gflop for r in rows) < 13.42 * 1.04
    assert len(rows) == 35


def test_floor_is_the_slower_of_bytes_and_flops() -> None:
    half, single = (plan(PAPER, 19, (512, 1024), dtype=d) for d in (torch.half, torch.float32))
    assert half[0].floor_us == pytest.approx(half[0].bytes / 3e6)
    expand = single[3]
    assert expand.op == "pointwise_conv"
    assert expand.floor_us == pytest.approx(expand.flops / 67e6)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_and_batch(preset: str) -> None:
    one = plan(PRESETS[preset], 11, (511, 1023))
    four = plan(PRESETS[preset], 11, (511, 1023), batch=4)
    assert sum(r.flops for r in four) == 4 * sum(r.flops for r in one)
    assert f"{len(one)} kernels" in table(one)
