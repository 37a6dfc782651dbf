"""The table of instructions, by name; `instructions.py` fills it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from machine import Block
from sass import Instruction

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


def active(b: Block, m: Mask) -> np.ndarray:
    return b.mask if m is None else m
