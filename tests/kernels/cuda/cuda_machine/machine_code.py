"""The kernels' machine code for a target, and the launches that operations make on it."""

from __future__ import annotations

import functools
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "cuda_host")]

import compiled
import instructions
from cuda_resources import OUT, cuobjdump, run, source_digest
from host import Span, running_on
from machine import Block, Counts, Launch, Memory
from sass import functions, parsed

#: Where parameters begin in constant bank 0, and the grid's sizes.
PARAMETERS = {7: 0x160, 8: 0x160, 9: 0x210, 10: 0x380, 11: 0x380, 12: 0x380}
GRID = {7: 0xC, 8: 0xC, 9: 0xC, 10: 0x370, 11: 0x370, 12: 0x370}


def missing() -> str:
    """Why there is no machine code to look at, or ""."""
    if shutil.which("nvcc") is None:
        return "needs nvcc"
    try:
        cuobjdump()
    except ImportError:
        return "needs cuobjdump, which comes with Triton"
    return ""


@functools.cache
def machine_code(target: str) -> dict[str, str]:
    """The text of every kernel's instructions by its mangled name."""
    found: dict[str, str] = {}
    for cubin in cubins(target):
        found |= functions(run(cuobjdump(), "-sass", str(cubin)))
    return found


@functools.cache
def registers(target: str) -> dict[str, int]:
    """Registers per thread of every kernel by its mangled name."""
    text = "".join(run(cuobjdump(), "-res-usage", str(cubin)) for cubin in cubins(target))
    return {name: int(count) for name, count in re.findall(r"Function (\S+):\s*REG:(\d+)", text)}


@functools.cache
def cubins(target: str) -> list[Path]:
    """Machine code of each source for one target, compiled once for its content."""
    OUT.mkdir(parents=True, exist_ok=True)
    made = []
    for source in compiled.SOURCES:
        if source.suffix == ".cu" and source.stem != "device":
            name = OUT / f"{source.stem}-{target}-{source_digest(source)}.cubin"
            if not name.exists():
                part = name.with_suffix(".part")
                command = ["nvcc", "-std=c++17", "-O3", "-lineinfo", f"-arch=sm_{target}", "-cubin"]
                subprocess.run([*command, "-o", str(part), str(source)], check=True)
                part.rename(name)
            made.append(name)
    return made


@functools.cache
def kernel_names(module: Path) -> dict[int, str]:
    """Mangled names of the host module by their offset in it."""
    rows = (line.split() for line in run("nm", str(module)).splitlines())
    return {int(row[0], 16): row[2] for row in rows if len(row) == 3 and "_kernel" in row[2]}


@dataclass(frozen=True)
class Recorded:
    """A launch that was not run on the host: its kernel's mangled name and what it was given."""

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared: int
    params: bytes
    memory: Memory

    def run(self, target: str, index: tuple[int, int, int]) -> Counts:
        """Runs one block's machine code."""
        major = int(target.rstrip("af")) // 10
        constants = bytearray(max(PARAMETERS.values()) + len(self.params) + 16)
        struct.pack_into("3I", constants, GRID[major] - 12, self.threads, 1, 1)
        struct.pack_into("3I", constants, GRID[major], *self.grid)
        start = PARAMETERS[major]
        constants[start : start + len(self.params)] = self.params
        launch = Launch(self.grid, self.threads, self.shared, bytes(constants), self.memory)
        code = parsed(machine_code(target)[self.kernel])
        return Block(code, launch, index).run(instructions.do)


@contextmanager
def recording(
    do: Callable[[Recorded], None], capability: int, multiprocessors: int | None = None
) -> Iterator[None]:
    """Inside, operations of `fastscnn_kernels.cuda` run nothing; `do` gets each of their launches
    while its memory stands."""
    module = compiled.load()
    assert module.__file__ is not None
    names = kernel_names(Path(module.__file__))

    def launched(spans: list[Span]) -> None:
        memory = Memory(spans)
        for function, grid, threads, shared, params in module.recorded():
            do(Recorded(names[function], grid, threads, shared, params, memory))

    module.record(True)
    try:
        with running_on(
            module, capability=capability, multiprocessors=multiprocessors, after=launched
        ):
            yield
    finally:
        module.record(False)
