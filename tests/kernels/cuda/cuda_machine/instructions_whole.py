"""Instructions on integers, bits, predicates and whole warps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from instruction_table import F64, I64, LOW, U32, U64, Mask, active, instruction
from machine import WARP, Block
from sass import ZERO, Instruction, Operand


def split(i: Instruction) -> tuple[list[int], int, list[Operand]]:
    """(predicates written, register written, sources): `R1, P0, a, b` or `P0, R1, a`."""
    predicates, destination = [], ZERO
    for n, o in enumerate(i.operands):
        if o.kind == "p":
            predicates.append(o.number)
        elif destination == ZERO and o.kind == "r" and n == len(predicates):
            destination = o.number
            if n:
                return predicates, destination, list(i.operands[n + 1 :])
            rest = 1
            while rest < len(i.operands) and i.operands[rest].kind == "p":
                predicates.append(i.operands[rest].number)
                rest += 1
            return predicates, destination, list(i.operands[rest:])
        else:
            break
    return predicates, destination, list(i.operands[len(predicates) :])


def addend(b: Block, o: Operand) -> np.ndarray:
    """A summand with its carry: -x is ~x + 1, which overflows where x is 0."""
    if o.minus and o.kind != "i":
        plain = b.value(Operand(o.kind, o.number, o.text, registers=o.registers)).astype(U64)
        return (~plain & LOW) + U64(1)
    return b.value(o).astype(U64)


def carries(b: Block, sources: list[Operand]) -> tuple[list[Operand], Any]:
    """The sources without the predicates behind them, and what those add."""
    plain = [o for o in sources if o.kind != "p"]
    carry = sum((b.predicate(o).astype(U64) for o in sources if o.kind == "p"), U64(0))
    return plain, carry


def put(b: Block, i: Instruction, m: Mask, predicates: list[int], to: int, total: Any) -> None:
    b.write(to, (total & LOW).astype(U32), m)
    for n, p in enumerate(predicates):
        b.write_predicate(p, (total >> U64(32)) > U64(n), m)


@instruction("IADD3", "IADD", "VIADD")
def _add(b: Block, i: Instruction, m: Mask) -> None:
    predicates, to, sources = split(i)
    plain, carry = carries(b, sources)
    if "64" in i.modifiers:
        total = sum((wide_value(b, o) for o in plain), U64(0))
        put_wide(b, to, total, m)
        return
    put(b, i, m, predicates, to, sum((addend(b, o) for o in plain), U64(0)) + carry)


def wide_value(b: Block, o: Operand) -> np.ndarray:
    if o.kind == "r":
        v = b.wide(o.number)
        return U64(0) - v if o.minus else v
    if o.kind == "c":
        return b.bank(o, 8).copy().view(U64)[:, 0]
    return np.full(b.threads, o.number, np.uint32).astype(np.int32).astype(I64).view(U64)


def put_wide(b: Block, to: int, total: np.ndarray, m: Mask) -> None:
    if to != ZERO:
        b.write(to, (total & LOW).astype(U32), m)
        b.write(to + 1, (total >> U64(32)).astype(U32), m)


@instruction("IMAD")
def _multiply_add(b: Block, i: Instruction, m: Mask) -> None:
    predicates, to, sources = split(i)
    (x, y, z), carry = carries(b, sources)
    if "WIDE" in i.modifiers or "HI" in i.modifiers:
        signed = "U32" not in i.modifiers
        read = (lambda o: b.value(o).view(np.int32).astype(I64).view(U64)) if signed else (
            lambda o: b.value(o).astype(U64))  # fmt: skip
        total = read(x) * read(y) + wide_value(b, z) + carry
        if "HI" in i.modifiers:
            b.write(to, (total >> U64(32)).astype(U32), m)
        else:
            put_wide(b, to, total, m)
            for p in predicates:
                b.write_predicate(p, total < wide_value(b, z), m)
        return
    product = b.value(x).astype(U64) * b.value(y).astype(U64) & LOW
    put(b, i, m, predicates, to, product + addend(b, z) + carry)


@instruction("LEA")
def _load_effective_address(b: Block, i: Instruction, m: Mask) -> None:
    predicates, to, sources = split(i)
    plain, carry = carries(b, sources)
    shift = plain[-1].number & 31
    a = b.value(plain[0]).astype(U64)
    if "HI" in i.modifiers:
        if "SX32" in i.modifiers:
            wide = a.astype(U32).view(np.int32).astype(I64).view(U64)
        else:
            c = b.value(plain[2]).astype(U64) if len(plain) > 3 else U64(0)
            wide = a | c << U64(32)
        a = wide >> U64(32 - shift) if shift else wide >> U64(32)
        if "SX32" in i.modifiers:
            a = (wide.view(I64) >> I64(32 - shift)).view(U64)
    else:
        a = a << U64(shift)
    put(b, i, m, predicates, to, (a & LOW) + addend(b, plain[1]) + carry)


@instruction("SHF")
def _shift(b: Block, i: Instruction, m: Mask) -> None:
    _, to, (low, by, high) = split(i)
    left, signed = "L" in i.modifiers, any(x in i.modifiers for x in ("S32", "S64"))
    whole = b.value(low).astype(U64) | b.value(high).astype(U64) << U64(32)
    s = b.value(by).astype(U64)
    s = (
        s & U64(31)
        if "W" in i.modifiers
        else np.minimum(s, U64(63 if "64" in str(i.modifiers) else 32))
    )
    if left:
        moved = whole << s
    elif signed:
        moved = (whole.view(I64) >> s.view(I64)).view(U64)
    else:
        moved = whole >> s
    b.write(to, (moved >> U64(32) if "HI" in i.modifiers else moved & LOW).astype(U32), m)


def table3(bits: int, x: Any, y: Any, z: Any) -> Any:
    """A function of three bits by its table: x is 0xf0, y 0xcc, z 0xaa."""
    found = x & ~x
    for row in range(8):
        if bits >> row & 1:
            found = found | (
                (x if row & 4 else ~x) & (y if row & 2 else ~y) & (z if row & 1 else ~z)
            )
    return found


@instruction("LOP3")
def _logic(b: Block, i: Instruction, m: Mask) -> None:
    predicates, to, sources = split(i)
    x, y, z, table = sources[:4]
    value = table3(table.number, b.value(x), b.value(y), b.value(z))
    b.write(to, value, m)
    also = b.predicate(sources[4]) if len(sources) > 4 else False
    for p in predicates[:1]:
        b.write_predicate(p, (value != 0) | also, m)


@instruction("PLOP3")
def _predicate_logic(b: Block, i: Instruction, m: Mask) -> None:
    to, second, *sources = i.operands
    x, y, z = (b.predicate(o) for o in sources[:3])
    results = [table3(o.number, x, y, z) for o in sources[3:5]]
    for o, v in zip((to, second), results, strict=False):
        b.write_predicate(o.number, v, m)


@instruction("PRMT")
def _permute(b: Block, i: Instruction, m: Mask) -> None:
    _, to, (x, chosen, y) = split(i)
    assert not i.modifiers, i.text
    whole = b.value(x).astype(U64) | b.value(y).astype(U64) << U64(32)
    nibbles = b.value(chosen).astype(U64)
    found = np.zeros(b.threads, U64)
    for n in range(4):
        nibble = nibbles >> U64(4 * n) & U64(15)
        byte = whole >> (nibble & U64(7)) * U64(8) & U64(255)
        byte = np.where(nibble & U64(8), np.where(byte & U64(128), U64(255), U64(0)), byte)
        found |= byte << U64(8 * n)
    b.write(to, found.astype(U32), m)


COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "EQ": np.equal, "NE": np.not_equal, "LT": np.less, "LE": np.less_equal,
    "GT": np.greater, "GE": np.greater_equal,
}  # fmt: skip
COMBINE: dict[str, Callable[[Any, Any], Any]] = {
    "AND": np.logical_and, "OR": np.logical_or, "XOR": np.logical_xor,
}  # fmt: skip


def set_predicates(b: Block, i: Instruction, m: Mask, holds: np.ndarray, last: Operand) -> None:
    combine = COMBINE[next(x for x in i.modifiers if x in COMBINE)]
    before = b.predicate(last)
    results = combine(holds, before), combine(~holds, before)
    for o, v in zip(i.operands[:2], results, strict=False):
        b.write_predicate(o.number, v, m)


@instruction("ISETP")
def _compare_integers(b: Block, i: Instruction, m: Mask) -> None:
    _, _, x, y, *last = i.operands
    a, c = b.value(x), b.value(y)
    if "U32" not in i.modifiers:
        a, c = a.view(np.int32), c.view(np.int32)
    holds = COMPARE[i.modifiers[0]](a, c)
    if "EX" in i.modifiers:
        low = b.predicate(last[1])
        strict = {"GE": np.greater, "LE": np.less}.get(i.modifiers[0], COMPARE[i.modifiers[0]])
        holds = holds | low if i.modifiers[0] == "NE" else strict(a, c) | ((a == c) & low)
        if i.modifiers[0] == "EQ":
            holds = (a == c) & low
    set_predicates(b, i, m, holds, last[0])


@instruction("VIMNMX", "IMNMX")
def _extreme_integer(b: Block, i: Instruction, m: Mask) -> None:
    _, to, (x, y, least) = split(i)
    a, c = b.value(x), b.value(y)
    if "U32" not in i.modifiers:
        a, c = a.view(np.int32), c.view(np.int32)
    found = np.where(b.predicate(least), np.minimum(a, c), np.maximum(a, c))
    b.write(to, found.view(U32), m)


@instruction("VIADDMNMX")
def _extreme_sum(b: Block, i: Instruction, m: Mask) -> None:
    _, to, (x, y, z, least) = split(i)
    a, c = b.value(x) + b.value(y), b.value(z)
    if "U32" not in i.modifiers:
        a, c = a.view(np.int32), c.view(np.int32)
    found = np.where(b.predicate(least), np.minimum(a, c), np.maximum(a, c))
    b.write(to, found.view(U32), m)


@instruction("IABS")
def _absolute(b: Block, i: Instruction, m: Mask) -> None:
    b.write(i.operands[0].number, np.abs(b.value(i.operands[1]).view(np.int32)).view(U32), m)


@instruction("MOV")
def _move(b: Block, i: Instruction, m: Mask) -> None:
    if "64" in i.modifiers:
        put_wide(b, i.operands[0].number, wide_value(b, i.operands[1]), m)
    else:
        b.write(i.operands[0].number, b.value(i.operands[1]), m)


@instruction("SEL", "FSEL")
def _select(b: Block, i: Instruction, m: Mask) -> None:
    _, to, (x, y, which) = split(i)
    if i.name == "FSEL":
        found = np.where(b.predicate(which), b.real(x), b.real(y)).view(U32)
    else:
        found = np.where(b.predicate(which), b.value(x), b.value(y))
    b.write(to, found, m)


@instruction("POPC")
def _count_bits(b: Block, i: Instruction, m: Mask) -> None:
    v = b.value(i.operands[1])
    b.write(i.operands[0].number, sum((v >> U32(n)) & U32(1) for n in range(32)), m)


@instruction("FLO")
def _first_bit(b: Block, i: Instruction, m: Mask) -> None:
    v = b.value(i.operands[1])
    found = np.where(v > 0, np.floor(np.log2(np.maximum(v, 1).astype(F64))), 0xFFFFFFFF)
    b.write(i.operands[0].number, found.astype(U64).astype(U32), m)


@instruction("P2R")
def _predicates_to_register(b: Block, i: Instruction, m: Mask) -> None:
    to, _, rest, chosen = i.operands
    bits = sum(b.p[n].astype(U32) << U32(n) for n in range(7))
    b.write(to.number, (bits & U32(chosen.number)) | (b.value(rest) & ~U32(chosen.number)), m)


@instruction("R2P")
def _register_to_predicates(b: Block, i: Instruction, m: Mask) -> None:
    _, source, chosen = i.operands
    v = b.value(source)
    for n in range(7):
        if chosen.number >> n & 1:
            b.write_predicate(n, (v >> U32(n) & U32(1)).astype(bool), m)


@instruction("R2UR")
def _to_uniform(b: Block, i: Instruction, m: Mask) -> None:
    to, source = (o for o in i.operands if o.kind != "p")
    first = active(b, m).reshape(-1, WARP).argmax(1)
    lanes = b.value(source).reshape(-1, WARP)
    b.write(to.number, np.repeat(lanes[np.arange(len(lanes)), first], WARP), m)


@instruction("VOTE", "VOTEU")
def _vote(b: Block, i: Instruction, m: Mask) -> None:
    _, to, _ = split(i)
    condition = next(o for o in reversed(i.operands) if o.kind == "p")
    holds = (b.predicate(condition) & active(b, m)).reshape(-1, WARP)
    bits = (holds.astype(U64) << np.arange(WARP, dtype=U64)).sum(1, dtype=U64).astype(U32)
    if to != ZERO:
        b.write(to, np.repeat(bits, WARP), m)
    every = (holds | ~active(b, m).reshape(-1, WARP)).all(1)
    result = every if "ALL" in i.modifiers else holds.any(1)
    for o in i.operands[:-1]:
        if o.kind == "p":
            b.write_predicate(o.number, np.repeat(result, WARP), m)


@instruction("SHFL")
def _shuffle(b: Block, i: Instruction, m: Mask) -> None:
    first, to, source, by, clamp = i.operands
    lane = b.thread % U32(WARP)
    offset, limit = b.value(by) & U32(31), b.value(clamp)
    segment = limit >> U32(8) & U32(31)
    last = (lane & segment) | (limit & U32(31) & ~segment)
    mode = i.modifiers[0]
    if mode == "IDX":
        wanted = (lane & segment) | (offset & ~segment)
    elif mode == "BFLY":
        wanted = lane ^ offset
    elif mode == "DOWN":
        wanted = lane + offset
    else:
        wanted = lane - offset
    good = (wanted.view(np.int32) >= last.view(np.int32)) if mode == "UP" else wanted <= last
    wanted = np.where(good, wanted, lane)
    values = b.value(source)[b.thread // U32(WARP) * U32(WARP) + wanted]
    b.write(to.number, values, m)
    b.write_predicate(first.number, good, m)


@instruction("S2R", "S2UR", "CS2R")
def _special(b: Block, i: Instruction, m: Mask) -> None:
    to, which = i.operands
    name = which.text
    lane = b.thread % U32(WARP)
    zeros = ("SR_TID.Y", "SR_TID.Z", "SRZ", "SR_CgaCtaId")
    value = {
        "SR_TID.X": b.thread, "SR_LANEID": lane, "SR_LTMASK": (U32(1) << lane) - U32(1),
        "SR_CTAID.X": b.index[0], "SR_CTAID.Y": b.index[1], "SR_CTAID.Z": b.index[2],
        **dict.fromkeys(zeros, 0),
    }[name]  # fmt: skip
    b.write(to.number, value, m)
    if i.name == "CS2R" and "32" not in i.modifiers:
        b.write(to.number + 1, 0, m)


@instruction("SGXT")
def _extend_sign(b: Block, i: Instruction, m: Mask) -> None:
    _, to, (x, bits) = split(i)
    v, shift = b.value(x), U32(32) - np.minimum(b.value(bits), U32(32))
    shift = np.minimum(shift, U32(31))
    if "U32" in i.modifiers:
        b.write(to, v << shift >> shift, m)
    else:
        b.write(to, ((v << shift).view(np.int32) >> shift.view(np.int32)).view(U32), m)
