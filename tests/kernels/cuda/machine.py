"""Runs one block of a kernel's machine code on the CPU and counts what its warps issue.

All threads of the block advance together, those at the lowest address first, so that branches,
loops and barriers are taken as on a GPU and reconverge no later. Memory is the process's own.
Every instruction that a kernel uses must be known (see `instructions.py`); an unknown one raises.
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

WARP = 32
#: Numbers of registers in the state: R0.., UR0.. behind them, a zero, one that nobody reads.
UNIFORM, ZERO, SINK = 256, 512, 513
#: Predicates: P0.., UP0.., one that is true, one that nobody reads.
UNIFORM_PREDICATE, TRUE, NOWHERE = 8, 16, 17
#: Where an architecture's window of shared memory begins, as cuobjdump shows no symbols.
RESERVED_SHARED = 1024
#: Stretches without a branch after which a block is given up.
LONGEST = 1_000_000


@dataclass(frozen=True)
class Operand:
    """`kind`: "r" register, "p" predicate, "i" number, "c" constant bank, "m" memory, "s" other."""

    kind: str
    number: int = 0
    text: str = ""
    minus: bool = False
    absolute: bool = False
    inverse: bool = False  # ~R0, !P0
    half: str = ""  # H0_H0, H1_H1
    registers: tuple[int, ...] = ()  # of an address
    wide: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Instruction:
    address: int
    name: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Operand | None
    text: str


def parse(line: str) -> Instruction | None:
    """An instruction of cuobjdump's text, or None for any other line."""
    found = re.match(
        r"\s*/\*([0-9a-f]{4,6})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)(.*?);", line
    )
    if found is None:
        return None
    address, guard, opcode, rest = found.groups()
    name, *modifiers = opcode.split(".")
    text = f"{opcode}{rest}".strip()
    rest = re.sub(r"\b(R\d+) (0x)", r"\1, \2", rest)
    operands = tuple(operand(part) for part in re.split(r",\s*(?![^\[]*\])", rest.strip()) if part)
    return Instruction(
        int(address, 16), name, tuple(modifiers), operands, operand(guard) if guard else None, text
    )


def register(name: str) -> int:
    if name in ("RZ", "URZ"):
        return ZERO
    return UNIFORM + int(name[2:]) if name.startswith("UR") else int(name[1:])


def operand(text: str) -> Operand:
    text = text.strip().replace(".reuse", "")
    marks = re.match(r"[-~!|]*", text)
    assert marks is not None
    signs = {"minus": "-" in marks[0], "inverse": bool(set("~!") & set(marks[0])),
             "absolute": "|" in marks[0]}  # fmt: skip
    body = text[marks.end() :].replace("|", "")
    if re.fullmatch(r"U?P(\d|T)", body):
        uniform = UNIFORM_PREDICATE if body[0] == "U" else 0
        number = TRUE if body.endswith("T") else uniform + int(body[-1])
        return Operand("p", number, text, **signs)
    if found := re.fullmatch(r"(U?R(?:\d+|Z))(?:\.(\w+))?(?:\.(\w+))?", body):
        half = next((h for h in found.groups()[1:] if h and h.startswith(("H0", "H1"))), "")
        return Operand("r", register(found[1]), text, half=half, **signs)
    if found := re.fullmatch(r"c\[(0x[0-9a-f]+)\]\s*\[(.*)\](?:\.\w+)?", body):
        return address(found[2], Operand("c", 0, text, **signs))
    if found := re.fullmatch(r"(?:desc\[\S+?\])?\[(.*)\](?:\.\w+)?", body):
        return address(found[1], Operand("m", 0, text, **signs))
    if re.fullmatch(r"0x[0-9a-f]+", body):
        value = int(body, 16)
        return Operand("i", -value & 0xFFFFFFFF if signs["minus"] else value, text)
    try:
        value = float(body.replace("QNAN", "nan").replace("+INF", "inf").replace("INF", "inf"))
    except ValueError:
        return Operand("s", 0, body)
    bits = int(np.float32(-value if signs["minus"] else value).view(np.uint32))
    return Operand("i", bits, text, half="number")


def address(inside: str, made: Operand) -> Operand:
    registers, wide, offset = [], [], 0
    for term in re.findall(r"[^+]+", inside.replace("+-", "+~")):
        name = term.strip()
        if found := re.fullmatch(r"(U?R(?:\d+|Z))((?:\.\w+)*)", name):
            registers.append(register(found[1]))
            wide.append(".64" in found[2])
        elif name:
            value = int(name.lstrip("~-"), 16)
            offset += -value if name[0] in "~-" else value
    return Operand(
        made.kind, offset, made.text, made.minus, made.absolute, made.inverse,
        registers=tuple(registers), wide=tuple(wide),
    )  # fmt: skip


def functions(sass: str) -> dict[str, str]:
    """The text of each function in cuobjdump's."""
    parts = (part.partition("\n") for part in sass.split("Function : ")[1:])
    return {name.strip(): body for name, _, body in parts}


@functools.cache
def parsed(function: str) -> list[Instruction]:
    """The instructions of a function's text."""
    lines = (parse(line) for line in function.splitlines())
    return [i for i in lines if i is not None]


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
