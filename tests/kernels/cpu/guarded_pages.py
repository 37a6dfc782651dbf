"""Runs every C++ operation on inputs and outputs that end (or begin) at a page nobody may touch, so
that a read or write beside a tensor ends the process; test_cpu_ops.py starts it.

Prints each case before it runs.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import sys
from typing import Any

import torch
from op_cases import CASES
from torch import Tensor

from fastscnn_kernels import reference_int8
from fastscnn_kernels.cpu import int8, operations, pack
from fastscnn_kernels.extension import device_info

PAGE = mmap.PAGESIZE
_kept: list[mmap.mmap] = []
_libc = ctypes.CDLL(None, use_errno=True)


def guarded(x: Tensor, at_end: bool) -> Tensor:
    """A copy of a dense tensor between two pages without access, at one of them."""
    size = -(-x.nbytes // PAGE) * PAGE
    memory = mmap.mmap(-1, size + 2 * PAGE)
    _kept.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (start, start + PAGE + size):
        assert _libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0) == 0
    offset = PAGE + (size - x.nbytes if at_end else 0)
    view = torch.frombuffer(memory, dtype=x.dtype, count=x.numel(), offset=offset)
    return view.view(x.shape).copy_(x)


def moved(value: Any, at_end: bool) -> Any:
    """The same arguments with every map and frame guarded; weights are packed by the call."""
    if isinstance(value, Tensor) and value.dtype == torch.uint8:
        return guarded(value.contiguous(), at_end)
    if isinstance(value, Tensor) and value.dim() == 4 and min(value.shape[2:]) > 0:
        return guarded(value.permute(0, 2, 3, 1).contiguous(), at_end).permute(0, 3, 1, 2)
    return value


def run(name: str, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    print(name, flush=True)
    expected = call(*args, **kwargs)
    empty = pack.empty_nhwc
    for at_end in (True, False):
        inputs = [moved(a, at_end) for a in args]
        options = {k: moved(v, at_end) for k, v in kwargs.items()}

        def place(*shape: int, _at_end: bool = at_end) -> Tensor:
            n, channels, h, w = shape
            return guarded(torch.full((n, h, w, channels), torch.nan), _at_end).permute(0, 3, 1, 2)

        pack.empty_nhwc = place
        found = call(*inputs, **options)
        pack.empty_nhwc = empty
        for a, b in zip(_tuple(found), _tuple(expected), strict=True):
            assert torch.equal(a, b), name
    _kept.clear()


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def tensor(n: int, c: int, h: int, w: int) -> Tensor:
    return torch.randn(n, c, h, w).contiguous(memory_format=torch.channels_last)


def floats(isa: str) -> None:
    for case in CASES:
        args, kwargs = case.make(torch.float32)
        options = {**kwargs, "threads": 1, "isa": isa}
        run(f"{case.id} {isa}", getattr(operations, case.op), args, options)
    frame = torch.randint(0, 256, (2, 7, 13, 3), dtype=torch.uint8)
    labels, colors = torch.randint(0, 5, (2, 7, 13)).byte(), frame.reshape(-1, 3)[:5]
    options = {"threads": 1, "isa": isa}
    for size in ((10, 5), (7, 13)):
        for bgr in (False, True):
            how = {**options, "bgr": bgr}
            run(f"resize_frame {isa}", operations.resize_frame, (frame, size), how)
    run(f"overlay {isa}", operations.overlay, (frame, labels, colors), options)


def integers(isa: str) -> None:
    def dense(out: int, inputs: int) -> tuple[Tensor, Tensor]:
        return torch.randn(out, inputs, 1, 1) / inputs**0.5, torch.randn(out)

    def depthwise(channels: int) -> tuple[Tensor, Tensor]:
        return torch.randn(channels, 1, 3, 3) / 3, torch.randn(channels)

    # The others take bytes, which they copy into blocks.
    options: dict[str, Any] = {"threads": 1, "isa": isa}
    span, positive = (-1.0, 1.0), (0.0, 2.0)
    for c in (9, 64):
        weights = (dense(6 * c, c), depthwise(6 * c), dense(c, 6 * c))
        block = int8.InvertedResidual(
            reference_int8.inverted_residual_weights(*weights, (span, positive, positive))
        )
        x, residual = tensor(2, c, 7, 13), {**options, "residual": True}
        run(f"inverted_residual_int8 {c} {isa}", int8.inverted_residual, (x, block), residual)


if __name__ == "__main__":
    faulthandler.enable()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    info, done = device_info(), sys.argv[1:]
    for name in done or info["cpu_instruction_sets"] + info["cpu_bf16_instruction_sets"]:
        floats(name)
    for name in done or info["cpu_int8_instruction_sets"]:
        integers(name)
