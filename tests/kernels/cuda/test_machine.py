"""The machine that counts instructions: control flow, bank conflicts, and results of kernels."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "cuda_machine"))

import instructions
import machine_code
from machine import Block, Counts, Launch, Memory
from op_cases import bottleneck, case, check, downsample, head, separable
from sass import parsed

from fastscnn_kernels.cuda import operations as cuda


def run(code: str, out: np.ndarray, *, threads: int = 64, shared: int = 4096) -> Counts:
    """`code`: a line per instruction, labels as `name:`; `out` is c[0x0][0x210]."""
    lines, labels = [], {}
    for line in map(str.strip, code.splitlines()):
        if line.endswith(":"):
            labels[line[:-1]] = f"0x{16 * len(lines):x}"
        elif line:
            lines.append(line)
    text = "\n".join(f"/*{16 * n:04x}*/ {line} ;" for n, line in enumerate(lines))
    for label, address in labels.items():
        text = text.replace(f"@{label}", address)
    constants = bytes(0x210) + int(out.ctypes.data).to_bytes(8, "little")
    memory = Memory([(out.ctypes.data, out.nbytes)])
    launch = Launch((1, 1, 1), threads, shared, constants, memory)
    return Block(parsed(text), launch, (0, 0, 0)).run(instructions.do)


STORE = """
    ULDC.64 UR4, c[0x0][0x208]
    LDC.64 R4, c[0x0][0x210]
    IMAD.WIDE R4, R0, 0x4, R4
    STG.E desc[UR4][R4.64], R1
    EXIT
"""


def test_lanes_that_diverge_meet_again() -> None:
    """Threads loop as often as their lane says; each pass is issued once for the warp."""
    out = np.zeros(64, np.uint32)
    counts = run(
        """
        S2R R0, SR_TID.X
        LOP3.LUT R2, R0, 0x1f, RZ, 0xc0, !PT
        IMAD.MOV.U32 R1, RZ, RZ, 0x64
        BSSY B0, @after
        ISETP.EQ.U32.AND P0, PT, R2, RZ, PT
        @P0 BRA @out
        again:
        VIADD R1, R1, 0x1
        VIADD R2, R2, 0xffffffff
        ISETP.NE.U32.AND P0, PT, R2, RZ, PT
        @P0 BRA @again
        out:
        BSYNC B0
        after:
        """
        + STORE,
        out,
    )
    assert (out == 100 + np.arange(64) % 32).all()
    loop = [n for address, n in sorted(counts.at.items())][6:10]
    assert loop == [2 * 31] * 4
    # Lanes that leave the loop early wait at BSYNC, which they reach one after the other.
    assert list(counts.at.values())[-5:] == [2] * 5


def test_threads_wait_at_a_barrier() -> None:
    """Each reads what the thread at the other end of the block has written."""
    out = np.zeros(64, np.uint32)
    run(
        """
        S2R R0, SR_TID.X
        IMAD.SHL.U32 R2, R0, 0x4, RZ
        STS [R2+0x400], R0
        BAR.SYNC.DEFER_BLOCKING 0x0
        IADD3 R3, -R2, 0xfc, RZ
        LDS R1, [R3+0x400]
        """
        + STORE,
        out,
    )
    assert (out == 63 - np.arange(64)).all()


@pytest.mark.parametrize(
    ("load", "step", "wavefronts", "ideal"),
    [
        ("LDS", 4, 1, 1), ("LDS", 8, 2, 1), ("LDS", 128, 32, 1), ("LDS", 0, 1, 1),
        ("LDS.64", 8, 2, 2), ("LDS.64", 16, 4, 2), ("LDS.128", 16, 4, 4), ("LDS.128", 32, 8, 4),
        ("LDSM.16.M88.4", 16, 4, 4), ("LDSM.16.M88.4", 80, 4, 4), ("LDSM.16.M88.4", 64, 16, 4),
    ],
)  # fmt: skip
def test_bank_conflicts(load: str, step: int, wavefronts: int, ideal: int) -> None:
    out = np.zeros(32, np.uint32)
    counts = run(
        f"S2R R0, SR_TID.X\nIMAD R2, R0, 0x{step:x}, RZ\n{load} R8, [R2+0x400]\nEXIT", out,
        threads=32,
    )  # fmt: skip
    assert (counts.wavefronts, counts.ideal) == (wavefronts, ideal)


def test_arithmetic() -> None:
    """Of each kind the case with the most to get wrong; R1 is the result's lowest word."""
    for code, expected in {
        # 64 bits: a carry through IADD3.X; -1 shifted left by 1 through LEA.HI.X.SX32.
        "IMAD.MOV.U32 R2, RZ, RZ, -0x1\nIADD3 R3, P0, R2, 0x1, RZ\n"
        "IADD3.X R1, RZ, RZ, RZ, P0, !PT": 1,
        "IMAD.MOV.U32 R2, RZ, RZ, 0x5\nIADD3 R3, P0, R2, -R2, RZ\n"
        "IADD3.X R1, RZ, RZ, RZ, P0, !PT": 1,
        "IMAD.MOV.U32 R2, RZ, RZ, -0x8\nLEA.HI.SX32 R1, R2, RZ, 0x1e": 2**32 - 2,
        "IMAD.MOV.U32 R2, RZ, RZ, -0x8\nSHF.R.S32.HI R1, RZ, 0x1, R2": 2**32 - 4,
        "IMAD.MOV.U32 R2, RZ, RZ, -0x8\nSHF.R.U32.HI R1, RZ, 0x1c, R2": 15,
        "IMAD.MOV.U32 R2, RZ, RZ, -0x9\nIMAD.HI R1, R2, 0x55555556, RZ": 2**32 - 4,
        "IMAD.MOV.U32 R2, RZ, RZ, 0x9\nIMAD.HI.U32 R1, R2, 0x55555556, RZ": 3,
        "IMAD.MOV.U32 R2, RZ, RZ, 0x12345678\nPRMT R1, R2, 0x4321, RZ": 0x00123456,
        "PLOP3.LUT P0, PT, PT, PT, PT, 0x8, 0x0\nSEL R1, RZ, 0x7, P0": 7,
        "IMAD.MOV.U32 R2, RZ, RZ, 0x3c004000\nHADD2.F32 R1, -RZ, R2.H1_H1": 0x3F800000,
        "IMAD.MOV.U32 R2, RZ, RZ, 0x40400000\nF2FP.F16.F32.PACK_AB R1, RZ, R2": 0x4200,
        "IMAD.MOV.U32 R2, RZ, RZ, 0x7\nI2F.U32.RP R1, R2": 0x40E00000,
    }.items():
        out = np.zeros(64, np.uint32)
        run(f"S2R R0, SR_TID.X\n{code}\n{STORE}", out)
        assert (out == expected).all(), (code, hex(out[0]), hex(expected))


def test_unknown_instructions_raise() -> None:
    with pytest.raises(NotImplementedError, match="TELEPORT"):
        run("TELEPORT R0, R1\nEXIT", np.zeros(1, np.uint32))


def test_accesses_outside_every_buffer_raise() -> None:
    with pytest.raises(IndexError, match="outside every buffer"):
        run(f"S2R R0, SR_TID.X\n{STORE}", np.zeros(63, np.uint32))


CASES = [
    case("dsconv", "dense", separable, (1, 64, 13, 18), 24),
    case("dsconv", "stride 2", separable, (1, 40, 13, 18), 72, stride=2),
    case("inverted_residual", "split", bottleneck, (1, 32, 9, 9), 96, stride=2),
    case("inverted_residual", "residual", bottleneck, (1, 16, 9, 9), 16, residual=True),
    case("learning_to_downsample", "frame", downsample, (1, 67, 90), 1),
    case("argmax_head", "labels", head, (1, 19, 8, 16), (64, 128), False),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_machine_code_computes_the_operation(case: object) -> None:
    """Every block of the sm_90a code, run instruction by instruction, against the twin."""
    if reason := machine_code.missing():
        pytest.skip(reason)
    torch.manual_seed(0)
    args, kwargs = case.make(torch.float16)  # type: ignore[attr-defined]

    def whole(launch: machine_code.Recorded) -> None:
        for index in itertools.product(*(range(n) for n in reversed(launch.grid))):
            launch.run("90a", (index[2], index[1], index[0]))

    with machine_code.recording(whole, 90):
        got = getattr(cuda, case.op)(*args, **kwargs)  # type: ignore[attr-defined]
    check(case, got, args, kwargs)  # type: ignore[arg-type]
