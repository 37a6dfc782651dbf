"""Instructions on fp32, fp16, bf16 and matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from instruction_table import F32, F64, I64, U32, U64, Mask, instruction
from instructions_whole import COMPARE, set_predicates
from machine import WARP, Block
from sass import ZERO, Instruction, Operand


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


@instruction("HMNMX2")
def _extreme_of_halves(b: Block, i: Instruction, m: Mask) -> None:
    """-0 lies below +0."""
    to, *operands, least = i.operands
    assert "NAN" in i.modifiers, i.text
    bf16, low = any("BF16" in x for x in i.modifiers), b.predicate(least)
    x, y = pairs(b, operands[:1], bf16), pairs(b, operands[1:], bf16)
    found = []
    for u, v in zip(x, y, strict=True):
        less = (u < v) | ((u == v) & np.signbit(u))
        found.append(np.where(np.isnan(u + v), F32(np.nan), np.where(less == low, u, v)))
    if bf16:
        bits = [np.asarray(v, F32).view(U32) >> U32(16) for v in found]
        b.write(to.number, bits[0] | bits[1] << U32(16), m)
    else:
        put_halves(b, to, *found, m)


def pairs(b: Block, operands: list[Operand], bf16: bool) -> tuple[np.ndarray, np.ndarray]:
    """The two values of a word, or two constants, of which the high one is written first."""
    if len(operands) == 2:
        high, low = (halves(b, o)[0] for o in operands)
        return low, high
    if not bf16:
        return halves(b, operands[0])
    word = b.value(operands[0])
    return (word << U32(16)).view(F32), (word & U32(0xFFFF0000)).view(F32)


@instruction("HMUL2")
def _multiply_halves(b: Block, i: Instruction, m: Mask) -> None:
    a, c = halves(b, i.operands[1]), halves(b, i.operands[2])
    put_halves(b, i.operands[0], a[0] * c[0], a[1] * c[1], m)


@instruction("HFMA2")
def _multiply_add_halves(b: Block, i: Instruction, m: Mask) -> None:
    to, x, y, *z = i.operands
    a, c = halves(b, x), halves(b, y)
    low, high = pairs(b, z, False) if len(z) == 2 and z[1].kind == "i" else halves(b, z[0])
    put_halves(b, to, a[0] * c[0] + low, a[1] * c[1] + high, m)


@instruction("F2FP")
def _pack(b: Block, i: Instruction, m: Mask) -> None:
    to, high, low = i.operands
    bits = []
    for o in (low, high):
        v = b.real(o)
        v = np.maximum(v, F32(0)) if "RELU" in i.modifiers else v
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


@instruction("HGMMA")
def _group_multiply_add(b: Block, i: Instruction, m: Mask) -> None:
    """Counted only: its operands are descriptors of shared memory, its results stay as they were,
    and no kernel branches on them."""
