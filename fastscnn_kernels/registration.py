"""Registers an operation with torch: C++ (or the twin) on the CPU, Triton on an NVIDIA GPU."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, cast

import torch
from packaging.version import Version
from torch import Tensor

from fastscnn_kernels import reference
from fastscnn_kernels.shapes import nhwc

MINIMUM_TRITON = Version("3.6")
MINIMUM_CAPABILITY = (8, 0)


def define(
    name: str, schema: str, fake: Callable[..., Any], cpu: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """The custom op fastscnn::`name`.

    `cpu` is for operations whose CPU form differs from the schema; the others return one map and
    have the twin's arguments.
    """

    def on_cpu(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return run_on_cpu(name, x, *args, **kwargs)

    def on_gpu(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.cuda.device(x.device):
            return getattr(triton_operations(x.device), name)(x, *args, **kwargs)

    op = torch.library.custom_op(
        f"fastscnn::{name}", cpu or on_cpu, mutates_args=(), device_types="cpu", schema=schema
    )
    op.register_kernel("cuda", on_gpu)
    op.register_fake(fake)
    return op


def run_on_cpu(name: str, *args: Any, **kwargs: Any) -> Tensor:
    """One map, channels_last, from the CPU's implementation of `name`."""
    return nhwc(cpu_implementation(name, *args)(*args, **kwargs))


def cpu_implementation(name: str, *args: Any) -> Callable[..., Any]:
    """C++ where all tensors are float32 (or uint8 frames), the twin for every other dtype."""
    dtypes = {a.dtype for a in args if isinstance(a, Tensor)}
    if dtypes <= {torch.float32, torch.uint8}:
        from fastscnn_kernels import cpu

        return cast(Callable[..., Any], getattr(cpu, name))
    return cast(Callable[..., Any], getattr(reference, name))


@functools.cache
def triton_operations(device: torch.device) -> ModuleType:
    """`fastscnn_kernels.triton`, or one error that says why it cannot run on `device`."""
    check_triton()
    capability = torch.cuda.get_device_capability(device)
    if capability < MINIMUM_CAPABILITY:
        raise RuntimeError(
            f"{torch.cuda.get_device_name(device)} has compute capability "
            f"{capability[0]}.{capability[1]}: the Triton kernels need 8.0 (Ampere) or newer. "
            "Build the CUDA C++ kernels, which serve 7.5 (FASTSCNN_CUDA=1 pip install "
            "--no-build-isolation .), or run on the CPU"
        )
    return importlib.import_module("fastscnn_kernels.triton")


def check_triton() -> None:
    """Raises RuntimeError, naming the fix, where Triton is missing or too old."""
    try:
        import triton
    except ImportError:
        raise RuntimeError(
            f"CUDA tensors need Triton {MINIMUM_TRITON} or newer, which is not installed: "
            f'pip install "triton>={MINIMUM_TRITON}"'
        ) from None
    if Version(triton.__version__) < MINIMUM_TRITON:
        raise RuntimeError(
            f"Triton {triton.__version__} is too old: the kernels need {MINIMUM_TRITON} or newer "
            f'(it comes with torch 2.10): pip install "triton>={MINIMUM_TRITON}"'
        )
