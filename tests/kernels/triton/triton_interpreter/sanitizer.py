"""Watches Triton kernels under the interpreter: bounds, store races, bytes per program.

Every lane of every load and store must fall into a tensor that the launch was given. No address
may be stored twice in a launch. For each tensor the *distinct* bytes that each program touches are
summed: what a GPU moves if every program reads what it needs once.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from triton.language import bfloat16
from triton.runtime import interpreter


@dataclass
class Launch:
    """What one launch touched, by the names of the kernel's arguments."""

    kernel: str
    sizes: dict[str, int]
    touched: dict[str, int] = field(default_factory=dict)

    def ratio(self, *weights: str) -> float:
        """Bytes moved over bytes there are, of all tensors but `weights`, which stay in L2."""
        names = [n for n in self.sizes if n.split(".")[0] not in weights]
        return sum(self.touched.get(n, 0) for n in names) / sum(self.sizes[n] for n in names)


class Sanitizer:
    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self._program: Any = None

    def begin(self, kernel: str, tensors: dict[str, torch.Tensor]) -> None:
        """Tensors by name; a name for a second view of the same memory is left out."""
        spans = {}
        for name, t in tensors.items():
            last = sum((s - 1) * k for s, k in zip(t.shape, t.stride(), strict=True))
            span = (t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size())
            if t.numel() and span not in spans.values():
                spans[name] = span
        self._names = sorted(spans, key=lambda n: spans[n])
        self._low = np.array([spans[n][0] for n in self._names], np.uint64)
        self._high = np.array([spans[n][1] for n in self._names], np.uint64)
        sizes = {n: tensors[n].numel() * tensors[n].element_size() for n in self._names}
        self._launch = Launch(kernel, sizes)
        self._seen: list[tuple[np.ndarray, int]] = []
        self._stored: list[np.ndarray] = []
        self._program = None

    def access(self, kind: str, program: Any, pointers: Any, mask: Any) -> None:
        shape = np.broadcast_shapes(pointers.data.shape, mask.data.shape)
        lanes = np.broadcast_to(mask.data, shape).astype(bool)
        address = np.broadcast_to(pointers.data, shape)[lanes].astype(np.uint64)
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        if program != self._program:
            self._close_program()
            self._program = program
        if not address.size:
            return
        owner = np.searchsorted(self._low, address, side="right") - 1
        outside = (owner < 0) | (address + np.uint64(size) > self._high[np.maximum(owner, 0)])
        if outside.any():
            raise IndexError(
                f"{self._launch.kernel}: {kind} out of bounds in {int(outside.sum())} of "
                f"{address.size} lanes of program {program}"
            )
        self._seen.append((np.unique(address), size))
        if kind == "store":
            self._stored.append(address)

    def _close_program(self) -> None:
        for size in {s for _, s in self._seen}:
            unique = np.unique(np.concatenate([a for a, s in self._seen if s == size]))
            owner = np.searchsorted(self._low, unique, side="right") - 1
            for i, count in zip(*np.unique(owner, return_counts=True), strict=True):
                name = self._names[int(i)]
                touched = self._launch.touched
                touched[name] = touched.get(name, 0) + int(count) * size
        self._seen = []

    def end(self) -> None:
        self._close_program()
        stored = np.concatenate(self._stored) if self._stored else np.array([], np.uint64)
        if np.unique(stored).size != stored.size:
            raise RuntimeError(f"{self._launch.kernel}: an address is stored more than once")
        self.launches.append(self._launch)


def _tensors(arguments: dict[str, Any]) -> dict[str, torch.Tensor]:
    found = {}
    for name, value in arguments.items():
        values = value if isinstance(value, tuple) else (value,)
        for i, v in enumerate(values):
            if isinstance(v, torch.Tensor):
                found[f"{name}.{i}" if isinstance(value, tuple) else name] = v
    return found


@contextmanager
def sanitized() -> Iterator[Sanitizer]:
    """All interpreted kernels inside are watched; bf16 dots multiply numbers, not bit patterns."""
    watch = Sanitizer()
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, dot = builder.create_masked_load, builder.create_masked_store, builder.create_dot
    call = executor.__call__

    def watched_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        watch.access("load", self.grid_idx, pointers, mask)
        return load(self, pointers, mask, *rest)

    def watched_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        watch.access("store", self.grid_idx, pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def exact_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, _widened(a), _widened(b), *rest)

    def watched_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        known = {k: v for k, v in kwargs.items() if k in inspect.signature(self.fn).parameters}
        arguments = inspect.getcallargs(self.fn, *args, **known)
        watch.begin(self.fn.__name__, _tensors(arguments))
        call(self, *args, **kwargs)
        watch.end()

    builder.create_masked_load, builder.create_masked_store = watched_load, watched_store
    builder.create_dot, executor.__call__ = exact_dot, watched_call
    try:
        yield watch
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store
        builder.create_dot, executor.__call__ = dot, call


def _widened(handle: Any) -> Any:
    """A bf16 operand as fp32; the interpreter keeps bf16 as the bits in a uint16."""
    if handle.dtype.scalar != bfloat16:
        return handle
    data = (handle.data.astype(np.uint32) << 16).view(np.float32)
    return interpreter.TensorHandle(data, interpreter.tl.float32)
