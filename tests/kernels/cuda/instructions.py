"""What each machine instruction does to a block's state (see `machine.py`).

Integers, addresses, predicates, fp32, fp16 conversions and mma are computed as on a GPU (sums of an
mma in another order), so that a kernel's results can be compared with the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from machine import WARP, ZERO, Block, Instruction, Operand

Mask = np.ndarray | None
Do = Callable[[Block, Instruction, Mask], None]
U32, U64, I64, F32, F64 = np.uint32, np.uint64, np.int64, np.float32, np.float64
LOW = U64(0xFFFFFFFF)
TABLE: dict[str, Do] = {}


def instruction(*names: str) -> Callable[[Do], Do]:
    """Registers what does the instructions of these names, on the uniform datapath too."""

    def register(do: Do) -> Do:
        for name in names:
            TABLE[name] = TABLE[f"U{name}"] = do
        return do

    return register


def do(block: Block, i: Instruction, mask: Mask) -> None:
    found = TABLE.get(i.name)
    if found is None:
        raise NotImplementedError(f"{i.address:#x}: {i.text}")
    found(block, i, mask)


@instruction(
    *("NOP", "DEPBAR", "LDGDEPBAR", "MEMBAR", "ERRBAR", "CGAERRBAR", "CCTL", "WARPSYNC", "YIELD"),
    *("ACQBULK", "PREEXIT", "FENCE", "CCTLL"),
)
def _nothing(b: Block, i: Instruction, m: Mask) -> None:
    pass


# --- integers -------------------------------------------------------------------------------------


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


# --- across lanes, special registers, constants ---------------------------------------------------


def active(b: Block, m: Mask) -> np.ndarray:
    return b.mask if m is None else m


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


@instruction("LDC", "LDCU")
def _constant(b: Block, i: Instruction, m: Mask) -> None:
    to, source = i.operands
    size = next((SIZES[x] for x in i.modifiers if x in SIZES), 4)
    store_registers(b, to.number, b.bank(source, size), i.modifiers, m)


# --- memory ---------------------------------------------------------------------------------------

SIZES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "32": 4, "64": 8, "128": 16}


def size_of(i: Instruction) -> int:
    return next((SIZES[x] for x in i.modifiers if x in SIZES), 4)


def store_registers(
    b: Block, to: int, values: np.ndarray, modifiers: tuple[str, ...], m: Mask
) -> None:
    """Bytes [threads, size] into registers from `to` on."""
    if to == ZERO:
        return
    size = values.shape[1]
    if size < 4:
        signed = "S8" in modifiers or "S16" in modifiers
        word = np.zeros((len(values), 4), np.uint8)
        word[:, :size] = values
        if signed:
            word[:, size:] = np.where(values[:, -1:] & 128, 255, 0)
        values, size = word, 4
    words = np.ascontiguousarray(values).view(U32)
    for n in range(size // 4):
        b.write(to + n, words[:, n], m)


def load_registers(b: Block, o: Operand, size: int) -> np.ndarray:
    """[threads, size] bytes of registers from `o` on."""
    words = [
        b.value(o) if n == 0 or o.number == ZERO else b.r[o.number + n]
        for n in range(-(-size // 4))
    ]
    return np.stack(words, 1).view(np.uint8)[:, :size]


def spread(b: Block, lanes: np.ndarray, values: np.ndarray) -> np.ndarray:
    whole = np.zeros((b.threads, values.shape[1]), np.uint8)
    whole[lanes] = values
    return whole


def shared_offsets(b: Block, o: Operand) -> np.ndarray:
    return (b.address(o) & U64(0xFFFFFF)).astype(np.int64)


def count_shared(b: Block, at: np.ndarray, lanes: np.ndarray, size: int) -> None:
    """Wavefronts of the warps: a bank gives one of its 4-byte words at a time.

    Accesses of 8 and 16 bytes go by half and quarter warps.
    """
    at, owner = at[lanes], lanes * max(size, 4) // (4 * WARP)
    words = np.unique(np.concatenate([
        owner * (1 << 24) + (at + offset) // 4 for offset in range(0, size, 4)
    ]))  # fmt: skip
    group, word = words >> 24, words & 0xFFFFFF
    pairs, repeats = np.unique(group * 32 + word % 32, return_counts=True)
    worst = np.zeros(int(group.max()) + 1, np.int64)
    np.maximum.at(worst, pairs // 32, repeats)
    b.counts.wavefronts += int(worst.sum())
    b.counts.ideal += int((worst > 0).sum())


def count_global(b: Block, at: np.ndarray, lanes: np.ndarray, *, cached: bool = False) -> None:
    """32-byte sectors of each warp; of cached ones, each once for the whole block."""
    sectors = np.unique(at[lanes] // U64(32) + (lanes // WARP).astype(U64) * U64(1 << 58))
    if cached:
        b.counts.cached.update((sectors % U64(1 << 58)).tolist())
    else:
        b.counts.sectors += len(sectors)


def copy_shared(b: Block, at: np.ndarray, values: np.ndarray) -> None:
    b.shared[at[:, None] + np.arange(values.shape[1])] = values


def read_shared(b: Block, at: np.ndarray, size: int) -> np.ndarray:
    values: np.ndarray = b.shared[at[:, None] + np.arange(size)]
    return values


@instruction("LDS")
def _load_shared(b: Block, i: Instruction, m: Mask) -> None:
    to, source = i.operands
    lanes, size = np.flatnonzero(active(b, m)), size_of(i)
    at = shared_offsets(b, source)
    count_shared(b, at, lanes, size)
    store_registers(b, to.number, spread(b, lanes, read_shared(b, at[lanes], size)), i.modifiers, m)


@instruction("STS")
def _store_shared(b: Block, i: Instruction, m: Mask) -> None:
    to, source = i.operands
    lanes, size = np.flatnonzero(active(b, m)), size_of(i)
    at = shared_offsets(b, to)
    count_shared(b, at, lanes, size)
    copy_shared(b, at[lanes], load_registers(b, source, size)[lanes])


@instruction("LDSM")
def _load_matrices(b: Block, i: Instruction, m: Mask) -> None:
    to, source = i.operands
    many = int(i.modifiers[-1]) if i.modifiers[-1] in "24" else 1
    at = shared_offsets(b, source)
    warps = np.flatnonzero(active(b, m).reshape(-1, WARP).any(1))
    for number in range(many):
        lanes = (warps[:, None] * WARP + number * 8 + np.arange(8)).ravel()
        count_shared(b, at, lanes, 16)
        rows = read_shared(b, at[lanes], 16).view(np.uint16).reshape(-1, 8, 8)
        if any("T" in x for x in i.modifiers):
            rows = rows.transpose(0, 2, 1)
        words = np.zeros((b.threads // WARP, WARP), U32)
        words[warps] = np.ascontiguousarray(rows).view(U32).reshape(-1, WARP)
        b.write(to.number + number, words.ravel(), m)


@instruction("LDG")
def _load_global(b: Block, i: Instruction, m: Mask) -> None:
    to, source = (o for o in i.operands if o.kind != "p")
    lanes, size = np.flatnonzero(active(b, m)), size_of(i)
    at = b.address(source)
    count_global(b, at, lanes, cached="STRONG" not in i.modifiers)
    values = b.launch.memory.load(at[lanes], size)
    store_registers(b, to.number, spread(b, lanes, values), i.modifiers, m)


@instruction("STG")
def _store_global(b: Block, i: Instruction, m: Mask) -> None:
    to, source = i.operands
    lanes, size = np.flatnonzero(active(b, m)), size_of(i)
    at = b.address(to)
    count_global(b, at, lanes)
    b.launch.memory.store(at[lanes], load_registers(b, source, size)[lanes])


@instruction("LDGSTS")
def _copy_async(b: Block, i: Instruction, m: Mask) -> None:
    to, source, *when = i.operands
    chosen = active(b, m)
    for o in when:  # zeros where the predicate does not hold
        raise NotImplementedError(i.text) if o.kind != "p" else None
    lanes, size = np.flatnonzero(chosen), size_of(i)
    at, places = b.address(source), shared_offsets(b, to)
    count_shared(b, places, lanes, size)
    filled = lanes[np.logical_and.reduce([b.predicate(o)[lanes] for o in when])] if when else lanes
    empty = np.setdiff1d(lanes, filled)
    if len(filled):
        count_global(b, at, filled)
        copy_shared(b, places[filled], b.launch.memory.load(at[filled], size))
    if len(empty):
        copy_shared(b, places[empty], np.zeros((len(empty), size), np.uint8))


@instruction("ATOMG", "ATOM", "RED", "REDG", "ATOMS")
def _atomic_add(b: Block, i: Instruction, m: Mask) -> None:
    assert "ADD" in i.modifiers, i.text
    operands = [o for o in i.operands if o.kind != "p"]
    to = operands[0].number if operands[0].kind == "r" else ZERO
    place, source = operands[-2:]
    shared = i.name == "ATOMS"
    at = shared_offsets(b, place) if shared else b.address(place)
    add, old = b.value(source), np.zeros(b.threads, U32)
    for lane in np.flatnonzero(active(b, m)):
        where = at[lane : lane + 1]
        now = (read_shared(b, where, 4) if shared else b.launch.memory.load(where, 4)).view(U32)
        old[lane] = now[0, 0]
        new = (now + add[lane]).view(np.uint8)
        copy_shared(b, where, new) if shared else b.launch.memory.store(where, new)
    b.write(to, old, m)


# --- real numbers ---------------------------------------------------------------------------------


def put_real(b: Block, o: Operand, value: Any, m: Mask) -> None:
    b.write(o.number, np.asarray(value, F32).view(U32), m)


@instruction("FADD")
def _add_real(b: Block, i: Instruction, m: Mask) -> None:
    put_real(b, i.operands[0], b.real(i.operands[1]) + b.real(i.operands[2]), m)


@instruction("FMUL")
def _multiply_real(b: Block, i: Instruction, m: Mask) -> None:
    put_real(b, i.operands[0], b.real(i.operands[1]) * b.real(i.operands[2]), m)


@instruction("FFMA")
def _multiply_add_real(b: Block, i: Instruction, m: Mask) -> None:
    x, y, z = (b.real(o).astype(F64) for o in i.operands[1:4])
    put_real(b, i.operands[0], (x * y + z).astype(F32), m)


@instruction("FMNMX")
def _extreme_real(b: Block, i: Instruction, m: Mask) -> None:
    to, x, y, least = i.operands
    low, high = (np.minimum, np.maximum) if "NAN" in i.modifiers else (np.fmin, np.fmax)
    a, c = b.real(x), b.real(y)
    put_real(b, to, np.where(b.predicate(least), low(a, c), high(a, c)), m)


@instruction("FSETP")
def _compare_real(b: Block, i: Instruction, m: Mask) -> None:
    _, _, x, y, last = i.operands
    a, c, how = b.real(x), b.real(y), i.modifiers[0]
    unordered = np.isnan(a) | np.isnan(c)
    if how in ("NAN", "NUM"):
        holds = unordered if how == "NAN" else ~unordered
    else:
        holds = COMPARE[how[:2]](a, c)
        holds = holds | unordered if how.endswith("U") else holds & ~unordered
    set_predicates(b, i, m, holds, last)


@instruction("FCHK")
def _needs_slow_division(b: Block, i: Instruction, m: Mask) -> None:
    b.write_predicate(i.operands[0].number, np.zeros(b.threads, bool), m)


@instruction("MUFU")
def _special_function(b: Block, i: Instruction, m: Mask) -> None:
    x = b.real(i.operands[1]).astype(F64)
    functions: dict[str, Callable[[Any], Any]] = {
        "RCP": np.reciprocal, "EX2": np.exp2, "LG2": np.log2, "SQRT": np.sqrt,
        "RSQ": lambda v: 1 / np.sqrt(v), "TANH": np.tanh,
    }  # fmt: skip
    put_real(b, i.operands[0], functions[i.modifiers[0]](x).astype(F32), m)


@instruction("I2F", "I2FP")
def _to_real(b: Block, i: Instruction, m: Mask) -> None:
    v = b.value(i.operands[1])
    exact = (v if "U32" in i.modifiers else v.view(np.int32)).astype(F64)
    near = exact.astype(F32)
    if "RP" in i.modifiers:
        near = np.where(near.astype(F64) < exact, np.nextafter(near, F32(np.inf)), near)
    put_real(b, i.operands[0], near, m)


@instruction("F2I")
def _to_integer(b: Block, i: Instruction, m: Mask) -> None:
    v = b.real(i.operands[1]).astype(F64)
    assert "TRUNC" in i.modifiers or "FLOOR" in i.modifiers, i.text
    v = np.nan_to_num(np.floor(v) if "FLOOR" in i.modifiers else np.trunc(v))
    low, high = (0, 2**32 - 1) if "U32" in i.modifiers else (-(2**31), 2**31 - 1)
    b.write(i.operands[0].number, np.clip(v, low, high).astype(I64).astype(U32), m)


def halves(b: Block, o: Operand) -> tuple[np.ndarray, np.ndarray]:
    """The two fp16 values of an operand, in fp32: low, high."""
    if o.kind == "i":  # a number as it is written
        v = np.full(b.threads, o.number, U32).view(F32) if o.half == "number" else None
        if v is not None:
            return v, v
    words = b.value(Operand(o.kind, o.number, o.text, registers=o.registers))
    low, high = ((words >> U32(s)).astype(np.uint16).view(np.float16).astype(F32) for s in (0, 16))
    if o.half:
        low = high = low if o.half == "H0_H0" else high
    if o.absolute:
        low, high = np.abs(low), np.abs(high)
    return (-low, -high) if o.minus else (low, high)


def put_halves(b: Block, o: Operand, low: np.ndarray, high: np.ndarray, m: Mask) -> None:
    bits = [np.asarray(v, F32).astype(np.float16).view(np.uint16).astype(U32) for v in (low, high)]
    b.write(o.number, bits[0] | bits[1] << U32(16), m)


@instruction("HADD2")
def _add_halves(b: Block, i: Instruction, m: Mask) -> None:
    to, x, y = i.operands[:3]
    a, c = halves(b, x), halves(b, y)
    if "F32" in i.modifiers:  # a conversion
        put_real(b, to, a[0] + c[0], m)
    else:
        put_halves(b, to, a[0] + c[0], a[1] + c[1], m)


@instruction("HMUL2")
def _multiply_halves(b: Block, i: Instruction, m: Mask) -> None:
    a, c = halves(b, i.operands[1]), halves(b, i.operands[2])
    put_halves(b, i.operands[0], a[0] * c[0], a[1] * c[1], m)


@instruction("HFMA2")
def _multiply_add_halves(b: Block, i: Instruction, m: Mask) -> None:
    to, x, y, *z = i.operands
    a, c = halves(b, x), halves(b, y)
    if len(z) == 2 and z[0].kind == z[1].kind == "i":  # two constants, the high one first
        high, low = (halves(b, o)[0] for o in z)
    else:
        low, high = halves(b, z[0])
    put_halves(b, to, a[0] * c[0] + low, a[1] * c[1] + high, m)


@instruction("F2FP")
def _pack(b: Block, i: Instruction, m: Mask) -> None:
    to, high, low = i.operands
    bits = []
    for o in (low, high):
        v = b.real(o)
        if "BF16" in i.modifiers:
            v = v.astype(F32)
            word = v.view(U32).astype(U64)
            rounded = (word + U64(0x7FFF) + (word >> U64(16) & U64(1))) >> U64(16)
            bits.append(np.where(np.isnan(v), U64(0x7FFF), rounded).astype(U32))
        else:
            bits.append(v.astype(np.float16).view(np.uint16).astype(U32))
    b.write(to.number, bits[0] | bits[1] << U32(16), m)


def fragment(words: list[np.ndarray], bf16: bool) -> list[np.ndarray]:
    """[warps, 8, 4, 2] of each register: row, pair of columns, which of the pair; in fp32."""
    found = []
    for w in words:
        pair = np.stack([w & U32(0xFFFF), w >> U32(16)], 1)
        if bf16:
            value = (pair << U32(16)).view(F32)
        else:
            value = pair.astype(np.uint16).view(np.float16).astype(F32)
        found.append(value.reshape(-1, 8, 4, 2))
    return found


@instruction("HMMA")
def _matrix_multiply_add(b: Block, i: Instruction, m: Mask) -> None:
    """D [16 x 8] = A [16 x 8 or 16] B + C; rows by lane / 4, pairs of columns by lane % 4."""
    to, x, y, z = (o.number for o in i.operands[:4])
    assert "F32" in i.modifiers, i.text
    steps = 2 if "16816" in i.modifiers else 1
    bf16 = "BF16" in i.modifiers
    a = fragment([b.r[x + n] for n in range(2 * steps)], bf16)
    w = fragment([b.r[y + n] for n in range(steps)], bf16)
    warps = b.threads // WARP
    sums = np.stack([b.r[z + n] if z != ZERO else b.r[ZERO] for n in range(4)]).view(F32)
    out = sums.reshape(2, 2, warps, 8, 4).transpose(2, 0, 3, 4, 1).reshape(warps, 2, 8, 8).copy()
    for k in range(steps):
        right = w[k].reshape(warps, 8, 8)  # column of B, its eight inputs
        for half in range(2):
            left = a[2 * k + half].reshape(warps, 8, 8)
            out[:, half] += np.matmul(left, right.transpose(0, 2, 1))
    back = out.reshape(warps, 2, 8, 4, 2).transpose(1, 4, 0, 2, 3).reshape(4, b.threads)
    for n in range(4):
        b.write(to + n, np.ascontiguousarray(back[n]).view(U32), m)
