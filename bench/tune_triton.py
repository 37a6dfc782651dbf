"""Measures candidate tiles on a GPU, layer by layer, and prints rows for triton/tiles.py.

    python bench/tune_triton.py [layer ...]      layers as in bench/test_gpu.py; default all

Every candidate is validated against the twin before it is timed.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Iterator
from typing import Any

import torch
from test_gpu import CALLS, LAYERS, GpuClock, on_gpu, op_cases

import fastscnn_kernels as k
from fastscnn_kernels.triton import tiles

ROUNDS = 5
#: Tried values of each field of a Tile.
PIXELS = ((1, 16), (1, 32), (1, 64), (1, 128), (4, 8), (8, 8), (8, 16), (4, 32))
INNER = (32, 64, 128)
OUTER = (32, 64, 128, 256)
WARPS = (4, 8)
STAGES = (1, 2, 3)


def candidates() -> Iterator[tiles.Tile]:
    for (rows, columns), *rest in itertools.product(PIXELS, INNER, OUTER, WARPS, STAGES):
        yield tiles.Tile(rows, columns, *rest)


def kernels_of(layer: str, inputs: op_cases.Inputs) -> list[tuple[str, int]]:
    """The (table entry, output pixels) pairs that a layer's launchers ask the table for."""
    asked: list[tuple[str, int]] = []
    choose = tiles.choose

    def noted(op: str, x: torch.Tensor, *, pixels: int, inner: int, outer: int) -> tiles.Tile:
        asked.append((op, pixels))
        return choose(op, x, pixels=pixels, inner=inner, outer=outer)

    tiles.choose = noted
    try:
        run(layer, inputs)
    finally:
        tiles.choose = choose
    return list(dict.fromkeys(asked))


def run(layer: str, inputs: op_cases.Inputs) -> Any:
    args, kwargs = inputs
    return getattr(k, LAYERS[layer][0])(*args, **kwargs)


def time_us(layer: str, inputs: op_cases.Inputs) -> float:
    """Microseconds per call, CALLS of them in one graph."""
    graph, clock, times = torch.cuda.CUDAGraph(), GpuClock(), []
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            run(layer, inputs)
    for _ in range(ROUNDS):
        clock()
        graph.replay()
        times.append(1e6 * clock() / CALLS)
    return statistics.median(times)


def tune(layer: str) -> None:
    """Varies the tile of one kernel at a time, the others as in the table."""
    op, make = LAYERS[layer]
    args, kwargs = make(torch.float16)
    inputs = tuple(on_gpu(a) for a in args), {n: on_gpu(v) for n, v in kwargs.items()}
    print(f"{layer}: {time_us(layer, inputs):.2f} us with the table")
    table = dict(tiles.TILES)
    for entry, pixels in kernels_of(layer, inputs):
        found: list[tuple[float, tiles.Tile]] = []
        for tile in candidates():
            tiles.TILES[entry, "half"] = ((tiles.ANY, tile),)
            try:
                got = run(layer, inputs)
                on_cpu = tuple(t.cpu() for t in got) if isinstance(got, tuple) else got.cpu()
                op_cases.check(op_cases.Case(op, layer, make), on_cpu, args, kwargs)
                found.append((time_us(layer, inputs), tile))
            except Exception as error:  # too much shared memory, or wrong: not a candidate
                print(f"  {entry} {tuple(tile)}: {str(error).splitlines()[0][:70]}")
        tiles.TILES.update(table)
        for us, tile in sorted(found)[:3]:
            print(f'  ("{entry}", "half"): ({pixels}, {tile}) {us:.2f} us')


if __name__ == "__main__":
    for name in sys.argv[1:] or LAYERS:
        tune(name)
