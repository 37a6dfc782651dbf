"""Machine instructions from the text of cuobjdump."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import numpy as np

#: Numbers of registers in the state: R0.., UR0.. behind them, a zero, one that nobody reads.
UNIFORM, ZERO, SINK = 256, 512, 513
#: Predicates: P0.., UP0.., one that is true, one that nobody reads.
UNIFORM_PREDICATE, TRUE, NOWHERE = 8, 16, 17


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
