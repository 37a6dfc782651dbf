"""The operations with the CUDA extension: CUDA C++ for the cases it takes, Triton for the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

import fastscnn_kernels
from fastscnn_kernels import cuda


class WithCuda:
    """Operations under the names of their twins, for a runtime that calls them with fixed weights.

    float16 and bfloat16 with channel counts that fit run in CUDA C++; everything else goes to
    `rest`. Weights are packed at their first use and kept as long as this object.
    """

    def __init__(self, rest: Any = fastscnn_kernels) -> None:
        self._rest = rest
        self._packs: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rest, name)

    def argmax_head(
        self, scores: Tensor, size: tuple[int, int], **options: Any
    ) -> tuple[Tensor, Tensor]:
        ops = cuda if scores.dtype in cuda.TYPES else self._rest
        labels, top = ops.argmax_head(scores, size, **options)
        return labels, top

    def dsconv(self, x: Tensor, *weights: Tensor, **options: Any) -> Tensor:
        packed = self._packed(cuda.pack_dsconv, weights)
        y: Tensor = (
            self._rest.dsconv(x, *weights, **options)
            if packed is None
            else cuda.run_dsconv(x, packed, **options)
        )
        return y

    def inverted_residual(self, x: Tensor, *weights: Tensor, **options: Any) -> Tensor:
        packed = self._packed(cuda.pack_inverted_residual, weights)
        y: Tensor = (
            self._rest.inverted_residual(x, *weights, **options)
            if packed is None
            else cuda.run_inverted_residual(x, packed, **options)
        )
        return y

    def learning_to_downsample(
        self,
        frame: Tensor,
        stem_weight: Tensor,
        stem_bias: Tensor,
        dsconv1: Sequence[Tensor],
        dsconv2: Sequence[Tensor],
        **options: Any,
    ) -> Tensor:
        weights = (stem_weight, stem_bias, tuple(dsconv1), tuple(dsconv2))
        packed = self._packed(cuda.pack_learning_to_downsample, weights)
        y: Tensor = (
            self._rest.learning_to_downsample(frame, *weights, **options)
            if packed is None
            else cuda.run_learning_to_downsample(frame, packed, **options)
        )
        return y

    def _packed(self, pack: Callable[..., Any], weights: tuple[Any, ...]) -> Any:
        """`pack(*weights)` from the first call on; None where the kernels do not take them."""
        tensors = [t for w in weights for t in (w if isinstance(w, tuple) else (w,))]
        key = tuple(map(id, tensors))
        if key not in self._packs:
            packed = None
            if tensors[0].dtype in cuda.TYPES:
                try:
                    packed = pack(*weights)
                except ValueError:  # a channel count that these kernels do not take
                    packed = None
            self._packs[key] = tensors, packed  # the tensors keep their ids from being used again
        return self._packs[key][1]
