"""Tile sizes: one literal table by operation, element size and number of pixels.

Chosen by a model of occupancy and traffic, not measured yet; `bench/tune_triton.py` measures
candidates on a GPU and prints rows for this table. Every GPU family from sm_80 to sm_120 takes the
same tiles: they were compiled for each without spills and within its limits (74 kB of shared memory
at most), and the depthwise part of a fused DSConv is computed once on all of them (see device.py).
"""

from __future__ import annotations

from typing import NamedTuple

import triton
from torch import Tensor


class Tile(NamedTuple):
    """What one program computes, and with how many warps and pipeline stages."""

    rows: int  # output pixels
    columns: int  # output pixels, or runs of pixels in argmax_head
    inner: int  # channels summed per step
    outer: int  # output channels
    warps: int
    stages: int


ANY = 1 << 62

#: operation, element size class -> rows (largest number of output pixels, tile), smallest first.
#: Float tiles keep a dot below 64 pixels or at 16 summed channels: above both, Triton 3.7 takes
#: tf32 instructions on sm_100 in spite of input_precision="ieee".
TILES: dict[tuple[str, str], tuple[tuple[int, Tile], ...]] = {
    ("stem_conv", "half"): ((ANY, Tile(8, 16, 32, 32, 4, 1)),),
    ("stem_conv", "float"): ((ANY, Tile(4, 8, 32, 32, 4, 1)),),
    ("depthwise_conv", "half"): ((ANY, Tile(8, 8, 64, 64, 4, 1)),),
    ("depthwise_conv", "float"): ((ANY, Tile(8, 8, 32, 32, 4, 1)),),
    ("pointwise_conv", "half"): (
        (4096, Tile(1, 32, 64, 256, 4, 3)),
        (16384, Tile(1, 64, 64, 128, 4, 3)),
        (ANY, Tile(1, 128, 64, 128, 8, 3)),
    ),
    ("pointwise_conv", "float"): (
        (4096, Tile(1, 32, 16, 64, 4, 3)),
        (ANY, Tile(1, 64, 16, 64, 4, 3)),
    ),
    ("dsconv", "half"): ((ANY, Tile(8, 8, 32, 128, 4, 1)),),
    ("dsconv", "float"): ((ANY, Tile(8, 8, 16, 64, 4, 1)),),
    ("pool_rows", "half"): ((ANY, Tile(1, 1, 64, 64, 4, 2)),),
    ("pool_rows", "float"): ((ANY, Tile(1, 1, 16, 32, 4, 2)),),
    ("pool_branches", "half"): ((ANY, Tile(8, 1, 1, 1, 4, 1)),),
    ("pool_branches", "float"): ((ANY, Tile(8, 1, 1, 1, 4, 1)),),
    ("pool_join", "half"): ((ANY, Tile(4, 8, 64, 128, 4, 2)),),
    ("pool_join", "float"): ((ANY, Tile(4, 8, 16, 64, 4, 1)),),
    ("feature_fusion", "half"): ((ANY, Tile(8, 8, 32, 128, 4, 1)),),
    ("feature_fusion", "float"): ((ANY, Tile(8, 8, 16, 64, 4, 1)),),
    ("argmax_head", "half"): ((ANY, Tile(4, 32, 1, 1, 4, 1)),),
    ("argmax_head", "float"): ((ANY, Tile(4, 32, 1, 1, 4, 1)),),
}


def choose(op: str, x: Tensor, *, pixels: int, inner: int, outer: int) -> Tile:
    """The table's tile for `op` on `x`, cut down to `inner` and `outer` channels (16 at least)."""
    kind = "float" if x.element_size() == 4 else "half"
    tile = next(tile for most, tile in TILES[op, kind] if pixels <= most)
    return tile._replace(
        inner=min(tile.inner, max(16, triton.next_power_of_2(inner))),
        outer=min(tile.outer, max(16, triton.next_power_of_2(outer))),
    )
