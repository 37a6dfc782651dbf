"""Registers an operation with torch: C++ (or the twin) on the CPU, `composition` on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from fastscnn_kernels import composition, reference
from fastscnn_kernels.shapes import nhwc

#: An implementation with the twin's signature.
Implementation = Callable[..., Any]


def one_map(implementation: Implementation, *args: Any, **options: Any) -> Tensor:
    """For schemas that have the twin's arguments: one map, channels_last."""
    return nhwc(implementation(*args, **options))


def with_padding(
    implementation: Implementation, *args: Any, padding: str, **options: Any
) -> Tensor:
    """For schemas that hold the twin's `padding` as a string."""
    decoded = padding if padding == "same" else int(padding)
    return one_map(implementation, *args, padding=decoded, **options)


def define(
    name: str,
    schema: str,
    fake: Callable[..., Any],
    adapt: Callable[..., Any] = one_map,
    gradient: tuple[Callable[..., None], Callable[..., Any]] | None = None,
    halves: bool = False,
) -> Callable[..., Any]:
    """The custom op fastscnn::`name`.

    `adapt` calls an implementation, which has the twin's signature, with the schema's arguments and
    returns what the schema promises. `gradient` is what autograd saves of a call, and what it does
    with that: `setup_context` and `backward` of `torch.library.register_autograd`. With `halves`
    the C++ takes bfloat16 as well.
    """

    def on_cpu(*args: Any, **options: Any) -> Any:
        return adapt(cpu_implementation(name, *args, halves=halves), *args, **options)

    def on_gpu(*args: Any, **options: Any) -> Any:
        device = args[0].device
        with torch.cuda.device(device):
            return adapt(getattr(composition.on(device), name), *args, **options)

    op = torch.library.custom_op(
        f"fastscnn::{name}", on_cpu, mutates_args=(), device_types="cpu", schema=schema
    )
    op.register_kernel("cuda", on_gpu)
    op.register_fake(fake)
    if gradient is not None:
        setup, backward = gradient
        op.register_autograd(backward, setup_context=setup)
    return op


def cpu_implementation(name: str, *args: Any, halves: bool = False) -> Implementation:
    """C++ where all tensors are float32 (or bytes and labels), the twin for every other dtype."""
    dtypes = {a.dtype for a in args if isinstance(a, Tensor)}
    if dtypes <= {torch.float32, torch.uint8, torch.int64, *[torch.bfloat16] * halves}:
        from fastscnn_kernels.cpu import operations as cpu

        return cast(Implementation, getattr(cpu, name))
    return cast(Implementation, getattr(reference, name))
