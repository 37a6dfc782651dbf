"""Runs one block of a kernel's machine code on the CPU and counts what its warps issue.

All threads of the block advance together, those at the lowest address first, so that branches,
loops and barriers are taken as on a GPU and reconverge no later. Memory is the process's own.
Every instruction that a kernel uses must be known (see `instructions.py`); an unknown one raises.
"""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sass import (
    NOWHERE,
    SINK,
    TRUE,
    UNIFORM,
    UNIFORM_PREDICATE,
    ZERO,
    Instruction,
    Operand,
)

WARP = 32
#: Where an architecture's window of shared memory begins, as cuobjdump shows no symbols.
RESERVED_SHARED = 1024
#: Stretches without a branch after which a block is given up.
LONGEST = 1_000_000


class Memory:
    """The buffers of this process that a kernel may touch; anything else raises."""

    def __init__(self, buffers: Iterable[tuple[int, int]]) -> None:
        self.spans = [(begin, size) for begin, size in dict.fromkeys(buffers) if size]
        spans = sorted((begin, begin + size) for begin, size in self.spans)
        self._begins = np.array([begin for begin, _ in spans], np.uint64)
        self._ends = np.array([end for _, end in spans], np.uint64)
        self._bytes = [
            np.frombuffer((ctypes.c_uint8 * (e - b)).from_address(b), np.uint8) for b, e in spans
        ]

    def _parts(self, at: np.ndarray, size: int) -> Iterable[tuple[np.ndarray, np.ndarray, Any]]:
        which = np.searchsorted(self._begins, at, "right").astype(np.int64) - 1
        for i in np.unique(which):
            lanes = np.flatnonzero(which == i)
            if i < 0 or (at[lanes] + np.uint64(size) > self._ends[i]).any():
                raise IndexError("a global access outside every buffer")
            yield lanes, (at[lanes] - self._begins[i]).astype(np.int64), self._bytes[i]

    def load(self, at: np.ndarray, size: int) -> np.ndarray:
        """[len(at), size] bytes."""
        found = np.empty((len(at), size), np.uint8)
        for lanes, offsets, data in self._parts(at, size):
            found[lanes] = data[offsets[:, None] + np.arange(size)]
        return found

    def store(self, at: np.ndarray, values: np.ndarray) -> None:
        for lanes, offsets, data in self._parts(at, values.shape[1]):
            data[offsets[:, None] + np.arange(values.shape[1])] = values[lanes]


@dataclass
class Counts:
    """What the warps of the block did."""

    issued: Counter[str] = field(default_factory=Counter)  # instructions, by name and modifiers
    at: dict[int, int] = field(default_factory=dict)  # by address
    wavefronts: int = 0  # of shared memory, 128 bytes each
    ideal: int = 0  # of them, were there no bank conflicts
    sectors: int = 0  # of 32 bytes, copied past L1 or written
    cached: set[int] = field(default_factory=set)  # sectors read through L1

    @property
    def instructions(self) -> int:
        return sum(self.issued.values())

    def of(self, *names: str) -> int:
        """How many instructions of these names were issued."""
        return sum(n for key, n in self.issued.items() if key.split(".")[0] in names)


@dataclass(frozen=True)
class Launch:
    """What a block needs to know; `constants` is bank 0 from its first byte."""

    grid: tuple[int, int, int]
    threads: int
    shared: int
    constants: bytes
    memory: Memory


class Block:
    """The state of one block: registers [number, thread], predicates, shared memory."""

    def __init__(self, code: list[Instruction], launch: Launch, index: tuple[int, int, int]):
        self.launch, self.index = launch, index
        self.threads = -(-launch.threads // WARP) * WARP
        self.thread = np.arange(self.threads, dtype=np.uint32)
        self.r = np.zeros((SINK + 1, self.threads), np.uint32)
        self.p = np.zeros((NOWHERE + 1, self.threads), bool)
        self.p[TRUE] = True
        self.shared = np.zeros(RESERVED_SHARED + launch.shared + 16, np.uint8)
        self.constants = np.frombuffer(launch.constants, np.uint8)
        self.counts = Counts()
        self.mask = np.ones(self.threads, bool)
        self.whole = True
        self.code = code
        self._index = {i.address: n for n, i in enumerate(code)}
        self._pc = np.zeros(self.threads, np.int64)
        self._alive = self.thread < launch.threads
        self._waiting = np.full(self.threads, -1)  # barrier register, or BAR
        self._groups = np.full((32, self.threads), -1, np.int64)
        self._tokens = self._stretches = 0

    BAR = 99

    # --- registers ------------------------------------------------------------------------------

    def write(self, number: int, value: Any, mask: np.ndarray | None) -> None:
        """To a register; a uniform one changes for the whole warp."""
        if number == ZERO:
            return
        if mask is None:
            self.r[number][:] = value
            return
        if number >= UNIFORM:
            mask = np.repeat(mask.reshape(-1, WARP).any(1), WARP)
        np.copyto(self.r[number], value, where=mask, casting="unsafe")

    def write_predicate(self, number: int, value: Any, mask: np.ndarray | None) -> None:
        if number == TRUE:
            return
        if mask is None:
            self.p[number][:] = value
            return
        if number >= UNIFORM_PREDICATE:
            mask = np.repeat(mask.reshape(-1, WARP).any(1), WARP)
        np.copyto(self.p[number], value, where=mask)

    def wide(self, number: int) -> np.ndarray:
        """A pair of registers as 64 bits."""
        low = self.r[number].astype(np.uint64)
        if number == ZERO:
            return low
        return low | self.r[number + 1].astype(np.uint64) << np.uint64(32)

    def predicate(self, o: Operand) -> np.ndarray:
        value: np.ndarray = self.p[o.number]
        return ~value if o.inverse else value

    def bank(self, o: Operand, size: int) -> np.ndarray:
        """[threads, size] bytes of the constant bank."""
        at = np.full(self.threads, o.number, np.int64)
        for number in o.registers:
            at += self.r[number].astype(np.int32)
        return self.constants[np.clip(at, 0, len(self.constants) - size)[:, None] + np.arange(size)]

    def value(self, o: Operand) -> np.ndarray:
        """32 bits of an operand, as an unsigned integer."""
        if o.kind == "r":
            v = self.r[o.number]
        elif o.kind == "i":
            return np.full(self.threads, o.number, np.uint32)
        elif o.kind == "c":
            v = self.bank(o, 4).copy().view(np.uint32)[:, 0]
        else:
            raise NotImplementedError(f"operand {o.text}")
        if o.inverse:
            v = ~v
        return (~v + np.uint32(1)) if o.minus else v

    def real(self, o: Operand) -> np.ndarray:
        """An operand as float32."""
        if o.kind == "i":
            return np.full(self.threads, o.number, np.uint32).view(np.float32)
        v = self.value(Operand(o.kind, o.number, o.text, registers=o.registers)).view(np.float32)
        if o.absolute:
            v = np.abs(v)
        return -v if o.minus else v

    def address(self, o: Operand) -> np.ndarray:
        """64 bits; of shared memory without the window's upper part."""
        at = np.full(self.threads, o.number, np.int64).view(np.uint64)
        for number, is_wide in zip(o.registers, o.wide, strict=True):
            if is_wide or (number >= UNIFORM and any(o.wide)):
                at = at + self.wide(number)
            else:
                at = at + self.r[number].astype(np.int32).astype(np.int64).view(np.uint64)
        return at

    # --- control --------------------------------------------------------------------------------

    def run(self, do: Callable[[Block, Instruction, np.ndarray | None], str | None]) -> Counts:
        """Until every thread has left; `do` does an instruction that is no branch."""
        with np.errstate(all="ignore"):
            while self._alive.any():
                ready = self._alive & (self._waiting < 0)
                if not ready.any():
                    self._open_barrier()
                    continue
                first = int(self._pc[ready].min())
                self.mask = ready & (self._pc == first)
                others = self._pc[ready & ~self.mask]
                self._straight(first, int(others.min()) if len(others) else len(self.code), do)
                self._stretches += 1
                if self._stretches > LONGEST:
                    raise RuntimeError("no end in sight")
        return self.counts

    def _straight(self, first: int, limit: int, do: Callable[..., Any]) -> None:
        """Runs `mask` from instruction `first` on, to a branch or to where others stand."""
        self.whole = bool(self.mask.all())
        warps = int(self.mask.reshape(-1, WARP).any(1).sum())
        n = first
        while n < limit:
            i = self.code[n]
            key = ".".join((i.name, *i.modifiers))
            self.counts.issued[key] += warps
            self.counts.at[i.address] = self.counts.at.get(i.address, 0) + warps
            n += 1
            mask = None if self.whole else self.mask
            if i.guard is not None:
                mask = self.mask & self.predicate(i.guard)
                if not mask.any():
                    continue
            if i.name in CONTROL:
                self._pc[self.mask] = n
                self._control(i, self.mask if mask is None else mask)
                return
            do(self, i, mask)
        self._pc[self.mask] = n

    def _control(self, i: Instruction, mask: np.ndarray) -> None:
        if i.name == "EXIT":
            self._alive &= ~mask
            self._release()
        elif i.name == "BRA":
            if "DIV" in i.modifiers:
                return
            for o in i.operands:
                if o.kind == "p":
                    mask = mask & self.predicate(o)
            self._pc[mask] = self._index[i.operands[-1].number]
        elif i.name == "BSSY":
            number = self._barrier(i)
            warps = np.repeat(np.arange(self.threads // WARP), WARP)
            self._groups[number][mask] = (self._tokens + warps)[mask]
            self._tokens += self.threads // WARP
        elif i.name == "BSYNC":
            self._waiting[mask] = self._barrier(i)
            self._release()
        elif i.name == "BREAK":
            self._groups[self._barrier(i)][mask] = -1
            self._release()
        elif i.name == "BAR":
            self._waiting[mask] = self.BAR
        else:
            raise NotImplementedError(i.text)

    @staticmethod
    def _barrier(i: Instruction) -> int:
        return next(int(o.text[1:]) for o in i.operands if re.fullmatch(r"B\d+", o.text))

    def _release(self) -> None:
        """Threads whose companions have all come, or left, go on."""
        for number in np.unique(self._waiting[(self._waiting >= 0) & (self._waiting != self.BAR)]):
            waiting = self._waiting == number
            token = self._groups[number]
            late = token[self._alive & ~waiting]
            self._waiting[waiting & ~np.isin(token, late)] = -1

    def _open_barrier(self) -> None:
        if (self._waiting[self._alive] != self.BAR).any():
            raise RuntimeError("threads wait for each other")
        self._waiting[:] = -1


CONTROL = {"EXIT", "BRA", "BSSY", "BSYNC", "BREAK", "BAR", "CALL", "RET", "BRX", "JMP", "BMOV"}
