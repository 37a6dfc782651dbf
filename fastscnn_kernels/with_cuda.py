"""The former name of `composition`, until the benchmarks no longer use it."""

from __future__ import annotations

from fastscnn_kernels import cuda
from fastscnn_kernels.composition import Composition


def WithCuda() -> Composition:
    """CUDA C++ for what it takes, the registered operations for the rest."""
    import fastscnn_kernels

    return Composition(fastscnn_kernels, "triton", tuple(cuda.TYPES))
