"""Frames to the working size inside an ONNX graph, value for value as `segment` resizes them."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from fastscnn.export.onnx_nodes import Graph


def resize_frame(g: Graph, frame: str, size: str, side: int) -> str:
    """Values 0..255, N x H x W x 3, to planes of that shorter side, whole numbers in float32.

    Equal to what torch makes of bytes on a CPU: columns first, then rows, each rounded. The size is
    that of `Segmenter.input_size`: size * side / shorter, rounded with ties to even, in integers.
    """
    shorter = g.node("ReduceMin", size, keepdims=1)
    double = g.node("Add", shorter, shorter)
    shifted = g.node("Add", g.node("Mul", size, g.integers(2 * side)), shorter)
    rounded = g.node("Div", shifted, double)
    tie = g.node("Equal", g.node("Mod", shifted, double), g.integers(0))
    odd = g.node("Mod", rounded, g.integers(2))
    excess = g.node("Mul", g.node("Cast", tie, to=TensorProto.INT64), odd)
    target = g.node("Sub", rounded, excess, name="working_size")
    columns, rows = (
        _taps(g, *(g.node("Gather", v, g.integers(axis)) for v in (size, target)))
        for axis in (1, 0)
    )
    values = []
    for index, _ in columns:  # of whole pixels, which is faster than of planes
        pixels = g.node("Gather", frame, index, axis=2)
        planes = g.node("Transpose", pixels, perm=[0, 3, 1, 2])
        values.append(g.node("Cast", planes, to=TensorProto.FLOAT))
    x = _blend(g, values, [weight for _, weight in columns])
    values = [g.node("Gather", x, index, axis=2) for index, _ in rows]
    return _blend(g, values, [g.node("Unsqueeze", weight, g.integers(1)) for _, weight in rows])


def _blend(g: Graph, values: list[str], weights: list[str]) -> str:
    """Weighted sum of two, rounded with ties up."""
    products = (g.node("Mul", v, w) for v, w in zip(values, weights, strict=True))
    half = g.constant(0.5, dtype=np.float32)
    return g.node("Floor", g.node("Add", g.node("Add", *products), half))


def _taps(g: Graph, size: str, target: str) -> list[tuple[str, str]]:
    """Both neighbours of every half-pixel sample of an axis: their indices, and their weights.

    torch rounds the weights of bytes to 15 bits, or to 14 where the largest would not fit.
    """
    zero, one, two = (g.integers(v) for v in (0, 1, 2))
    scalar = [g.node("Squeeze", v) for v in (zero, target, one)]
    odd = g.node("Add", g.node("Mul", g.node("Range", *scalar), two), one)
    place = g.node("Max", g.node("Sub", g.node("Mul", odd, size), target), zero)
    unit = g.node("Mul", target, two)  # place / unit is the position in the axis
    last = g.node("Sub", size, one)
    first = g.node("Div", place, unit)
    second = g.node("Min", g.node("Add", first, one), last)
    beyond = g.node("Sub", place, g.node("Mul", first, unit))
    inner = g.node("Cast", g.node("Less", first, last), to=TensorProto.INT64)
    shares = [g.node("Mul", beyond, inner)]
    shares.insert(0, g.node("Sub", unit, shares[0]))
    largest = g.node("ReduceMax", g.node("Max", *shares), keepdims=1)
    missing = g.node("Mul", g.node("Sub", unit, largest), g.integers(1 << 16))
    bits = g.node(
        "Where", g.node("Greater", missing, unit), *(g.integers(1 << b) for b in (15, 14))
    )
    scale = g.node("Cast", bits, to=TensorProto.FLOAT)
    weights = []
    for share in shares:
        doubled = g.node("Mul", g.node("Mul", share, two), bits)
        whole = g.node("Div", g.node("Add", doubled, unit), g.node("Mul", unit, two))
        weights.append(g.node("Div", g.node("Cast", whole, to=TensorProto.FLOAT), scale))
    return list(zip((first, second), weights, strict=True))
