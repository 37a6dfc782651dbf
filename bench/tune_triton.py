"""Finds the fastest tiles on the GPU at hand and prints (or writes) the table of triton/tiles.py.

    python bench/tune_triton.py [--dtype float32] [--seconds 420] [--write] [LAYER ...]

Layers as in gpu_groups.py; default all. For every kernel and number of output pixels that the
layers ask the table for, one field of the tile is varied after the other, from the table's own tile
on, until nothing gets faster. A candidate is timed only if its results keep to the tolerance rule.
After `--seconds` the best of what was tried so far stands.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_clock import CALLS, Clock
from gpu_groups import Layer, layers, op_cases
from gpu_layers import laid_out, moved, queued, tensors
from torch import Tensor

import fastscnn_kernels
from fastscnn_kernels import composition, reference
from fastscnn_kernels.triton import tiles
from fastscnn_kernels.triton.tiles import Tile

Table = dict[tuple[str, str], tuple[tuple[int, Tile], ...]]
#: A kernel's entry in the table and its output pixels.
Use = tuple[str, int]
ROUNDS = 5
#: Tried values of the fields of a Tile, in the order they are varied.
VALUES: dict[tuple[str, ...], tuple[tuple[int, ...], ...]] = {
    ("rows", "columns"): ((1, 16), (1, 32), (1, 64), (1, 128), (4, 8), (8, 8), (8, 16), (4, 32)),
    ("outer",): ((32,), (64,), (128,), (256,)),
    ("inner",): ((16,), (32,), (64,), (128,)),
    ("warps",): ((4,), (8,)),
    ("stages",): ((1,), (2,), (3,), (4,)),
}
#: What a candidate must gain to be taken: less is noise.
GAIN = 0.98


class Case:
    """A layer's inputs on the device and what its results must be."""

    def __init__(self, layer: Layer, dtype: torch.dtype, device: torch.device) -> None:
        self.layer = layer
        torch.manual_seed(0)
        args, kwargs = layer.make(dtype)
        self._inputs = laid_out(moved((args, kwargs), device))
        self._device = device
        self._ops = composition.on(device, "triton") if device.type == "cuda" else fastscnn_kernels
        double = (
            tuple(op_cases.to_double(a) for a in args),
            {n: op_cases.to_double(v) for n, v in kwargs.items()},
        )
        twin = getattr(reference, layer.op)
        self._exact = tensors(twin(*double[0], **double[1]))
        self._peer = tensors(twin(*args, **kwargs))

    def run(self) -> Any:
        args, kwargs = self._inputs
        return getattr(self._ops, self.layer.op)(*args, **kwargs)

    def check(self) -> None:
        """Raises AssertionError where the results are wrong. Labels may differ from the float64
        twin's where it is all but undecided."""
        results = zip(tensors(self.run()), self._exact, self._peer, strict=False)
        for got, exact, peer in results:  # confidence, which nobody asks for, comes last
            if got.dtype == torch.uint8:
                wrong = (got.cpu() != exact).double().mean().item()
                assert wrong < 1e-3, f"{wrong:.3%} of the labels differ"
            else:
                op_cases.assert_close(got, exact, peer.to(got.dtype))

    def us(self) -> float:
        """Microseconds per call."""
        call, clock, times = queued([self.run] * CALLS, self._device), Clock(self._device), []
        for _ in range(ROUNDS):
            start = clock.mark()
            call(0)
            times += clock.between([start, clock.mark()])
        return 1e6 * statistics.median(times) / CALLS


def uses_of(case: Case) -> list[Use]:
    """What the layer's launchers ask the table for."""
    asked: list[Use] = []
    choose = tiles.choose

    def noted(op: str, x: Tensor, *, pixels: int, inner: int, outer: int) -> Tile:
        asked.append((op, pixels))
        return choose(op, x, pixels=pixels, inner=inner, outer=outer)

    tiles.choose = noted
    try:
        case.run()
    finally:
        tiles.choose = choose
    return list(dict.fromkeys(asked))


def candidates(best: Tile) -> Iterator[list[Tile]]:
    """For each field (or pair of fields), the tiles that differ from `best` there only."""
    for fields, values in VALUES.items():
        changed = [best._replace(**dict(zip(fields, v, strict=True))) for v in values]
        yield [tile for tile in changed if tile != best]


def descend(start: Tile, cost: Callable[[Tile], float], in_time: Callable[[], bool]) -> Tile:
    """The best tile found by varying one field after the other, until a whole round gains nothing.

    `cost` is infinite for a tile that does not work.
    """
    known = {start: cost(start)}
    best, before = start, None
    while best != before and in_time():
        before = best
        for index in range(len(VALUES)):
            for tile in list(candidates(best))[index]:
                if tile not in known and in_time():
                    known[tile] = cost(tile)
            fastest = min(known, key=lambda tile: known[tile])
            if known[fastest] < GAIN * known[best]:
                best = fastest
    return best


def with_tile(table: Table, entry: tuple[str, str], pixels: int, tile: Tile) -> Table:
    """The table with `tile` for that number of pixels, and for all above if it has no larger."""
    rows = dict(table[entry])
    if pixels >= max((p for p in rows if p != tiles.ANY), default=0):
        rows[tiles.ANY] = tile
    rows[pixels] = tile
    return {**table, entry: tuple(sorted(rows.items()))}


def merged(table: Table) -> Table:
    """The same without rows that the next one repeats."""
    return {
        entry: tuple(
            row
            for row, following in zip(rows, (*rows[1:], None), strict=True)
            if following is None or row[1] != following[1]
        )
        for entry, rows in table.items()
    }


def tune(cases: list[Case], kind: str, in_time: Callable[[], bool]) -> Table:
    """The table with the tiles of everything that `cases` use tuned, one at a time."""
    users: dict[Use, list[Case]] = defaultdict(list)
    for case in cases:
        for use in uses_of(case):
            users[use].append(case)
    for (op, pixels), of in sorted(users.items(), key=lambda item: (item[0][0], -item[0][1])):
        entry, table = (op, kind), dict(tiles.TILES)
        start = next(tile for most, tile in table[entry] if pixels <= most)

        def cost(
            tile: Tile, entry: Any = entry, pixels: int = pixels, of: Any = of, table: Any = table
        ) -> float:
            tiles.TILES.update(with_tile(table, entry, pixels, tile))
            try:
                for case in of:
                    case.check()
                return sum(case.us() for case in of)
            except Exception as error:  # too much shared memory, or wrong: not a candidate
                print(f"  {tuple(tile)}: {(str(error) or repr(error)).splitlines()[0][:80]}")
                return float("inf")

        if in_time():
            before, best = cost(start), descend(start, cost, in_time)
            after = cost(best)
            print(f"{op}, {pixels} pixels: {before:.2f} -> {after:.2f} us with {tuple(best)}")
            tiles.TILES.update(with_tile(table, entry, pixels, best))
        else:
            print(f"{op}, {pixels} pixels: no time left")
    return merged(tiles.TILES)


def literal(table: Table) -> str:
    """The dictionary as it stands in tiles.py."""
    lines = ["{"]
    for (op, kind), rows in table.items():
        made = [
            f"({'ANY' if most == tiles.ANY else most}, Tile{tuple(tile)})" for most, tile in rows
        ]
        if len(made) == 1:
            lines.append(f'    ("{op}", "{kind}"): ({made[0]},),')
        else:
            lines += [f'    ("{op}", "{kind}"): (', *(f"        {row}," for row in made), "    ),"]
    return "\n".join([*lines, "}"])


def replaced(source: str, table: Table) -> str:
    """The source of tiles.py with this table in it."""
    found = re.search(r"^TILES: [^=]*= (\{.*?^\})", source, re.M | re.S)
    assert found, "tiles.py has no literal TILES"
    return source[: found.start(1)] + literal(table) + source[found.end(1) :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("layers", nargs="*")
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16", "float32"))
    parser.add_argument("--seconds", type=float, default=420.0)
    parser.add_argument(
        "--write", action="store_true", help="into fastscnn_kernels/triton/tiles.py"
    )
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    chosen = [x for x in layers(1) if x.name in (options.layers or [y.name for y in layers(1)])]
    dtype = getattr(torch, options.dtype)
    torch.backends.cudnn.allow_tf32 = False
    cases = [Case(layer, dtype, torch.device("cuda")) for layer in chosen]
    kind = "float" if options.dtype == "float32" else "half"
    with torch.no_grad():
        table = tune(cases, kind, lambda: time.monotonic() < end)
    print(literal(table))
    if options.write:
        path = Path(tiles.__file__)
        path.write_text(replaced(path.read_text(), table))
        print(f"written to {path}: run the tests that compile it for every GPU next")


if __name__ == "__main__":
    main()
