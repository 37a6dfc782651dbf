"""What a launch costs on an H100 at the least, by what an average block of it does."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from cuda_resources import LIMITS, REGISTERS
from machine import Counts
from machine_code import Recorded

MULTIPROCESSORS, MHZ = 132, 1900
#: Assumptions. Per clock and multiprocessor: instructions, of those that only the ALUs do, of those
#: that only the special function units do (16 lanes), wavefronts of shared memory, multiply-adds of
#: mma.sync (half of what wgmma does). Bytes a second from L2 and of a device copy. A graph's node.
ISSUE, ALU, SPECIAL, SHARED, TENSOR = 4, 2, 0.5, 1, 1024
L2, DEVICE, LAUNCH_US = 5.5e12, 3.0e12, 2.0
ALU_NAMES = (
    *("IADD3", "VIADD", "VIADDMNMX", "VIMNMX", "IABS", "LEA", "LOP3", "PLOP3", "SHF", "PRMT"),
    *("ISETP", "FSETP", "SEL", "FSEL", "FMNMX", "F2FP"),
)
SPECIAL_NAMES = ("MUFU", "I2F", "F2I", "POPC", "FLO", "FCHK")
TERMS = ("issue", "alu", "special", "shared", "tensor", "L2", "device")


@dataclass(frozen=True)
class Cost:
    """A launch; numbers are of an average block."""

    blocks: int
    warps: int
    resident: int  # blocks that fit a multiprocessor
    registers: int
    instructions: float
    alu: float
    special: float
    wavefronts: float
    conflicts: float  # of those wavefronts, what bank conflicts added
    macs: float
    l2_bytes: float
    device_bytes: float  # of the whole launch: every buffer once
    launches: int = 1  # of this kernel in a frame

    @property
    def us(self) -> dict[str, float]:
        """Microseconds by term; what a block does is done by the multiprocessor with most."""
        most = ceil(self.blocks / MULTIPROCESSORS)
        clocks = {
            "issue": self.instructions / min(ISSUE, self.warps * min(most, self.resident)),
            "alu": self.alu / ALU,
            "special": self.special / SPECIAL,
            "shared": self.wavefronts / SHARED,
            "tensor": self.macs / TENSOR,
        }
        times = {name: most * c / MHZ for name, c in clocks.items()}
        times["L2"] = 1e6 * self.blocks * self.l2_bytes / L2
        times["device"] = 1e6 * self.device_bytes / DEVICE
        return times

    @property
    def floor(self) -> float:
        return max(self.us.values())

    @property
    def binds(self) -> str:
        return max(self.us, key=lambda term: self.us[term])


def cost(launch: Recorded) -> Cost:
    """Runs blocks from the middle of the grid: all along a short axis y, whose blocks differ."""
    x, y, z = launch.grid
    rows = range(y) if y <= 8 else [y // 2]
    counts = [launch.run((x // 2, row, z // 2)) for row in rows]

    def mean(values: Iterable[float]) -> float:
        return round(sum(values) / len(counts), 1)

    _, multiprocessor, threads = LIMITS[launch.target.rstrip("af")]
    per_thread = launch.registers
    resident = min(
        REGISTERS // (ceil(per_thread / 8) * 8 * launch.threads),
        threads // launch.threads,
        multiprocessor * 1024 // (launch.shared + 1024),
    )
    named = set(struct.unpack_from(f"{len(launch.params) // 8}Q", launch.params))
    return Cost(
        blocks=x * y * z,
        warps=launch.threads // 32,
        resident=resident,
        registers=per_thread,
        instructions=mean(c.instructions for c in counts),
        alu=mean(c.of(*ALU_NAMES) for c in counts),
        special=mean(c.of(*SPECIAL_NAMES) for c in counts),
        wavefronts=mean(c.wavefronts for c in counts),
        conflicts=mean(c.wavefronts - c.ideal for c in counts),
        macs=mean(multiply_adds(c) for c in counts),
        l2_bytes=mean(32 * (c.sectors + len(c.cached)) for c in counts),
        device_bytes=sum(size for begin, size in launch.memory.spans if begin in named),
    )


def multiply_adds(c: Counts) -> int:
    """On tensor cores, as of mma: each of a group's four warps does a quarter of wgmma's, which
    run twice as fast."""
    done = 0
    for key, n in c.issued.items():
        name, *modifiers = key.split(".")
        if name == "HMMA":
            done += n * {"16816": 2048, "1688": 1024}[modifiers[0]]
        elif name == "HGMMA":
            rows, columns, depth = map(int, modifiers[0].split("x"))
            done += n * rows * columns * depth // 8
    return done
