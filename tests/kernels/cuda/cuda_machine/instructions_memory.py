"""Instructions on constant, shared and global memory; they count what the memories do."""

from __future__ import annotations

import numpy as np
from instruction_table import U32, U64, Mask, active, instruction
from machine import WARP, Block
from sass import ZERO, Instruction, Operand

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


@instruction("LDC", "LDCU")
def _constant(b: Block, i: Instruction, m: Mask) -> None:
    to, source = i.operands
    size = next((SIZES[x] for x in i.modifiers if x in SIZES), 4)
    store_registers(b, to.number, b.bank(source, size), i.modifiers, m)
