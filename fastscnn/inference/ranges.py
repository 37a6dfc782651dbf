"""Ranges of a network's maps: what its trunk needs to run in int8 on a CPU."""

from __future__ import annotations

from collections.abc import Mapping

from fastscnn.network.config import FastSCNNConfig
from fastscnn_kernels import extension

#: Lowest and highest value of the input of a convolution, by the convolution's name.
Ranges = Mapping[str, tuple[float, float]]


def int8_inputs(config: FastSCNNConfig) -> list[str]:
    """Names of the convolutions whose inputs are bytes in int8, in the order of a frame's way."""
    names: list[str] = extension.load().int8_inputs(config.to_dict())
    return names


def check_ranges(ranges: Ranges, config: FastSCNNConfig) -> None:
    """Raises ValueError where a network of that config cannot run in int8 with these ranges."""
    for name in int8_inputs(config):
        if name not in ranges:
            raise ValueError(
                f"its int8 ranges lack {name}: calibrate the checkpoint anew (fastscnn quantize)"
            )
