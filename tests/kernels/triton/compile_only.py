"""A Triton driver that compiles every launch for a chosen GPU and runs nothing.

The launchers' own host code decides grids, tiles and specialisations on CPU tensors, whose memory
is never read; what they compile is measured with the tools that come with Triton.
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

#: Largest shared memory of a block in bytes, by compute capability.
SHARED_LIMIT = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 120: 99}
SHARED_LIMIT = {cc: kib * 1024 for cc, kib in SHARED_LIMIT.items()}
TARGETS = tuple(SHARED_LIMIT)
REGISTERS = 65536


@dataclass
class Launch:
    """One kernel launch: what the launcher asked for and what the compiler made of it."""

    name: str
    grid: tuple[int, int, int]
    metadata: Any
    constants: dict[str, Any]
    ptx: str
    cubin: bytes
    params: bytes  # as the kernel reads them
    tensors: list[torch.Tensor]  # what they point to

    @property
    def threads(self) -> int:
        return int(self.metadata.num_warps) * 32

    @property
    def tensor_core(self) -> bool:
        """Whether any tensor-core instruction was generated."""
        return bool(re.search(r"wgmma\.mma_async|(?<!\.)mma\.sync|tcgen05\.mma\b", self.ptx))

    @property
    def fma(self) -> int:
        """fp32 multiply-adds per thread, as written in the PTX (rolled loops counted once)."""
        single = len(re.findall(r"\bfma\.rn(?:\.ftz)?\.f32\b", self.ptx))
        return single + 2 * len(re.findall(r"\bfma\.rn(?:\.ftz)?\.f32x2\b", self.ptx))

    @cached_property
    def usage(self) -> dict[str, int]:
        """Registers per thread (REG), bytes of stack (STACK) and of local memory (LOCAL)."""
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.cubin)
            file.flush()
            command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return {k: int(v) for k, v in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}

    @cached_property
    def spill_bytes(self) -> int:
        """Bytes that ptxas stores to and loads from local memory."""
        target = re.search(r"\.target (sm_\w+)", self.ptx)
        assert target
        newest = int(self.metadata.target.arch) >= 100
        ptxas = (knobs.nvidia.ptxas_blackwell if newest else knobs.nvidia.ptxas).path
        with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
            file.write(self.ptx)
            file.flush()
            command = [ptxas, "-v", f"--gpu-name={target[1]}", file.name, "-o", "/dev/null"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = re.findall(r"(\d+) bytes spill (?:stores|loads)", done.stderr)
        assert found, done.stderr
        return sum(map(int, found))


class _Utils:
    """What Triton asks of a driver's C part."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": SHARED_LIMIT[self.capability],
            "multiprocessor_count": 100,
            "warpSize": 32,
            "max_num_regs": REGISTERS,
        }

    def load_binary(self, *_: Any) -> tuple[int, int, int, int, int]:
        return 1, 1, 0, 0, 1024  # module, function, registers, spills, largest block

    def unload_module(self, module: int) -> None:
        pass


class _Launcher:
    """Compiled kernels keep their launcher, so it asks for the driver of the moment."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.constants = {source.fn.arg_names[path[0]]: v for path, v in source.constants.items()}
        self._types = tuple(source.signature.values())

    def __call__(self, *args: Any) -> None:
        kernel = args[6]  # what `launch_metadata` returned, see below
        passed = list(_flat(self._types, args[9:]))
        driver._active.launches.append(
            Launch(
                kernel.metadata.name, args[:3], kernel.metadata, self.constants,
                kernel.asm["ptx"], kernel.asm["cubin"], _packed(passed),
                [v for _, v in passed if isinstance(v, torch.Tensor)],
            )
        )  # fmt: skip


def _flat(types: Sequence[Any], values: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """(type, value) of every argument that is no constant, members of tuples one by one."""
    for kind, value in zip(types, values, strict=True):
        if isinstance(kind, tuple):
            yield from _flat(kind, value)
        elif kind != "constexpr":
            yield kind, value


def _packed(arguments: list[tuple[str, Any]]) -> bytes:
    """Arguments at their alignment, and two pointers to scratch memory, which there is none of."""
    made = b""
    for kind, value in [*arguments, ("*", 0), ("*", 0)]:
        code = "Q" if kind.startswith("*") else {"i32": "i", "i64": "q", "fp32": "f"}[kind]
        made += b"\0" * (-len(made) % struct.calcsize(code))
        made += struct.pack(code, value.data_ptr() if isinstance(value, torch.Tensor) else value)
    return made


class CompileOnlyDriver(DriverBase):
    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.utils = _Utils(capability)
        self.launches: list[Launch] = []
        self.launcher_cls = _Launcher

    @staticmethod
    def is_active() -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # kernels are cached by device: one cache per capability

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_capability(self, device: int) -> tuple[int, int]:
        return divmod(self.capability, 10)

    def get_active_torch_device(self) -> Any:
        raise NotImplementedError

    def get_benchmarker(self) -> Any:
        raise NotImplementedError


@contextmanager
def compile_only(capability: int) -> Iterator[list[Launch]]:
    """All Triton launches inside compile for `capability` and are listed in what this yields."""
    from triton.compiler import CompiledKernel

    original = CompiledKernel.launch_metadata
    before = driver._active
    active = CompileOnlyDriver(capability)
    driver.set_active(active)
    CompiledKernel.launch_metadata = lambda self, *_: self
    try:
        yield active.launches
    finally:
        CompiledKernel.launch_metadata = original
        driver._active = before
