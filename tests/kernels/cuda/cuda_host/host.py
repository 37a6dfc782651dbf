"""`fastscnn_kernels.cuda` on CPU tensors: its own packing and checks, kernels on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fastscnn_kernels.cuda import operations as cuda

#: Shared memory of a block in KiB, multiprocessors: Turing, Ada, Hopper.
DEVICES = {75: (64, 40), 89: (99, 58), 90: (227, 132)}
#: Address and bytes of a buffer.
Span = tuple[int, int]


class _Clearing:
    """The module's functions; after each the buffers that were named for it are forgotten."""

    def __init__(self, module: ModuleType, after: Callable[[], None]) -> None:
        self._module = module
        self._after = after

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            try:
                result = getattr(self._module, name)(*arguments)
                self._after()
                return result
            finally:
                self._module.clear_buffers()

        return call


@contextmanager
def running_on(
    module: ModuleType,
    *,
    capability: int = 90,
    seed: int = 0,
    multiprocessors: int | None = None,
    after: Callable[[list[Span]], None] = lambda spans: None,
) -> Iterator[None]:
    """Inside, the operations of `fastscnn_kernels.cuda` run in `module` on a pretended GPU.

    Only memory that an operation names may be touched; what it allocates starts as NaN or 255.
    `after` is called after each with all memory that was named, which stands until the end.
    """
    shared, processors = DEVICES[capability]
    module.set(seed, capability, multiprocessors or processors, shared * 1024)
    kept: list[Tensor] = []
    spans: list[Span] = []
    address, empty = cuda._address, cuda._empty

    def registered(t: Tensor | None, alignment: int = 16) -> int:
        if t is not None:
            kept.append(t)
            span = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) + 1
            spans.append((t.data_ptr(), span * t.element_size() if t.numel() else 0))
            module.add_buffer(*spans[-1])
        return address(t, alignment)

    def poisoned(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        t = empty(shape, like, dtype)
        return t.fill_(float("nan") if t.is_floating_point() else 255)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "_address", registered)
        patch.setattr(cuda, "_empty", poisoned)
        patch.setattr(cuda, "_extension", lambda: _Clearing(module, lambda: after(spans)))
        patch.setattr(cuda, "_on_device", lambda *_: nullcontext())
        patch.setattr(cuda, "_stream", lambda: 0)
        try:
            yield
        finally:
            module.clear_buffers()
