"""Loads the compiled extension `fastscnn_kernels._C` on first use."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

BUILD_COMMAND = "pip install -e . --no-build-isolation"


@functools.cache
def load() -> ModuleType:
    """The extension; ImportError names the command that builds it."""
    try:
        return importlib.import_module("fastscnn_kernels._C")
    except ImportError as error:
        raise ImportError(
            "the compiled kernels (fastscnn_kernels._C) cannot be loaded: "
            f"{error}. Build them in the source folder with: {BUILD_COMMAND}"
        ) from error


def device_info() -> dict[str, Any]:
    """What the build contains and the machine offers.

    Keys: cpu_instruction_sets (available, best first), cpu_instruction_set (chosen), cpu_lanes
    (floats in a vector), cpu_bf16_instruction_sets and cpu_int8_instruction_sets (likewise; of
    bfloat16 there may be none), cpu_threads, cuda_built,
    cuda_runtime_version, cuda_driver_version, cuda_devices (0 without a driver).
    """
    info: dict[str, Any] = load().device_info()
    return info
