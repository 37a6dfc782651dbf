"""Predicts what the kernels cost at 1024x2048 on an H100, from what their machine code issues.

python tests/kernels/cuda/cuda_budget.py [--write]

A few blocks of every launch of the network run instruction by instruction on the CPU (see
`machine.py`), which counts what their warps issue and how shared memory answers. The counts lie in
csrc/cuda/budget.json, BUDGET.md is made of them. Without --write the kernels are compared with that
file: one whose floor grew by more than 3 % is an error. Needs nvcc, and cuobjdump from Triton.
"""

from __future__ import annotations

import argparse
import json
import re
import struct
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent / "cuda_machine")]

from cuda_resources import LIMITS, REGISTERS, run
from machine import Counts
from machine_code import Recorded, missing, recording, registers

from fastscnn.inference.fold import fold
from fastscnn.inference.gpu_runtime import GpuRuntime
from fastscnn.network.model import FastSCNN
from fastscnn_kernels.composition import Composition, _Twins
from fastscnn_kernels.cuda import operations as cuda

FOLDER = ROOT / "csrc" / "cuda"
BASELINE, OUT = FOLDER / "budget.json", FOLDER / "BUDGET.md"
TARGET, CAPABILITY, MULTIPROCESSORS, MHZ = "90a", 90, 132, 1900
HEIGHT, WIDTH, CLASSES = 1024, 2048, 19
GOAL_US = 110
#: What a kernel's floor may grow by unless the baseline changes too.
GROWTH = 1.03

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

#: The stages of the network behind the launches of a kernel, in their order.
STAGES = {
    "inverted_residual": ("1.0", "1.1", "1.2", "2.0", "2.1", "2.2", "3.0", "3.1", "3.2"),
    "dsconv": ("classifier 1", "classifier 2 + scores"),
}


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
    counts = [launch.run(TARGET, (x // 2, row, z // 2)) for row in rows]

    def mean(values: Iterable[float]) -> float:
        return round(sum(values) / len(counts), 1)

    _, multiprocessor, threads = LIMITS[str(CAPABILITY)]
    per_thread = registers(TARGET)[launch.kernel]
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
    shapes = {"16816": 2048, "1688": 1024}
    return sum(
        n * next(size for shape, size in shapes.items() if shape in key)
        for key, n in c.issued.items()
        if key.startswith("HMMA")
    )


def network_costs() -> dict[str, Cost]:
    """Every launch of a frame through the paper's network, by kernel and stage."""
    found: dict[str, Cost] = {}
    seen: Counter[str] = Counter()

    def note(launch: Recorded) -> None:
        kernel = plain_name(launch.kernel)
        stages = STAGES.get(kernel, ())
        stage = stages[seen[kernel]] if seen[kernel] < len(stages) else str(seen[kernel] or "")
        seen[kernel] += 1
        if kernel != "argmax_head":  # depends on the scores, see below
            found[f"{kernel} {stage}".strip()] = cost(launch)

    torch.manual_seed(0)
    model = FastSCNN(CLASSES).eval()
    ops = Composition(_Twins(), "torch", tuple(cuda.TYPES))
    runtime = GpuRuntime(fold(model), model.config, CLASSES, torch.float16, ops=ops)
    frame = torch.randint(0, 256, (1, HEIGHT, WIDTH, 3), dtype=torch.uint8)
    with recording(note, CAPABILITY, MULTIPROCESSORS):
        runtime.scores(frame)
    for name, scores in (("20 % mixed", mostly_smooth()), ("noise", noise())):
        with recording(
            lambda launch, name=name: found.update({f"argmax_head, {name}": cost(launch)}),
            CAPABILITY, MULTIPROCESSORS,
        ):  # fmt: skip
            cuda.argmax_head(scores, (HEIGHT, WIDTH), confidence=False)
    return found


def plain_name(mangled: str) -> str:
    name = re.search(r"\d+([a-z_]+)_kernel", mangled)
    assert name is not None, mangled
    return name[1]


def noise() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, CLASSES, HEIGHT // 8, WIDTH // 8, generator=generator).half()


def mostly_smooth() -> torch.Tensor:
    """Scores of which a fifth of the cells lie between classes, as in frames of streets: squares of
    one class, 10 pixels wide."""
    generator = torch.Generator().manual_seed(0)
    h, w = ceil(HEIGHT / 80), ceil(WIDTH / 80)
    labels = torch.randint(0, CLASSES, (h, w), generator=generator)
    labels = labels.repeat_interleave(10, 0).repeat_interleave(10, 1)
    scores = torch.nn.functional.one_hot(labels[: HEIGHT // 8, : WIDTH // 8], CLASSES)
    return scores.permute(2, 0, 1)[None].half().contiguous()


def measured() -> dict[str, Any]:
    """What the sources at hand give, as it lies in the baseline."""
    version = re.search(r"release (\S+),", run("nvcc", "--version"))
    assert version is not None
    costs = network_costs()
    return {
        "target": f"sm_{TARGET}",
        "nvcc": version[1],
        "kernels": {name: asdict(c) for name, c in costs.items()},
    }


def costs_of(budget: dict[str, Any]) -> dict[str, Cost]:
    return {name: Cost(**fields) for name, fields in budget["kernels"].items()}


def grown(now: dict[str, Any], baseline: dict[str, Any]) -> list[str]:
    """One line for each kernel that costs more than the baseline allows, or is unknown there."""
    before, lines = costs_of(baseline), []
    for name, c in costs_of(now).items():
        if name not in before:
            lines.append(f"{name}: not in the baseline")
        elif c.floor > GROWTH * before[name].floor:
            lines.append(
                f"{name}: floor {before[name].floor:.2f} -> {c.floor:.2f} us, bound by {c.binds} "
                f"({before[name].instructions:.0f} -> {c.instructions:.0f} instructions a block)"
            )
    return lines


def report(budget: dict[str, Any]) -> str:
    costs = costs_of(budget)
    lines = [
        "# Budget of a frame",
        "",
        "**Counted, not measured.** Generated by `tests/kernels/cuda/cuda_budget.py` from",
        f"`budget.json` for {HEIGHT}x{WIDTH}, batch 1, fp16, {CLASSES} classes on an H100: blocks",
        f"of each kernel's machine code ({budget['target']}, nvcc {budget['nvcc']}) were run on",
        "the CPU, instruction by instruction. Columns are us that each resource needs at least, on",
        "the multiprocessor with most blocks; the floor is the largest, as if all overlapped and",
        "no latency showed. Launches, and what few warps leave idle, come on top.",
        "",
        f"Assumed: {MULTIPROCESSORS} multiprocessors at {MHZ} MHz; each clock of one issues",
        f"{ISSUE} instructions, of them {ALU} on the ALUs and {SPECIAL} on the special function",
        f"units, answers {SHARED} wavefront of shared memory and does {TENSOR} multiply-adds of",
        f"mma; {L2 / 1e12:g} TB/s from L2, {DEVICE / 1e12:g} TB/s copied.",
        "",
        "| kernel | blocks x warps | fit | instructions a block | "
        + " | ".join(TERMS)
        + " | bank conflicts | floor | bound by |",
        "|---|---|---|---|" + "---|" * len(TERMS) + "---|---|---|",
    ]
    for name, c in costs.items():
        cells = " | ".join(f"{c.us[term]:.1f}" for term in TERMS)
        share = c.conflicts / c.wavefronts if c.wavefronts else 0
        lines.append(
            f"| {name} | {c.blocks} x {c.warps} | {c.resident} | {c.instructions:.0f} | {cells} | "
            f"{share:.0%} | **{c.floor:.1f}** | {c.binds} |"
        )
    frame = {name: c for name, c in costs.items() if not name.endswith("noise")}
    total = sum(c.floor for c in frame.values())
    issue = sum(c.blocks * c.instructions / ISSUE / MULTIPROCESSORS / MHZ for c in frame.values())
    lines += [
        "",
        f"Sum without noise: **{total:.0f} us** (goal: {GOAL_US}); {issue:.0f} us of issue if all",
        f"multiprocessors had as much. {len(frame)} launches of {LAUNCH_US:g} us come on top, and",
        "what is not CUDA C++: pyramid pooling and feature fusion.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="new baseline and BUDGET.md")
    options = parser.parse_args()
    if reason := missing():
        print(f"not compared: {reason}")
        return
    now = measured()
    print(report(now))
    if options.write:
        BASELINE.write_text(json.dumps(now, indent=1) + "\n")
        OUT.write_text(report(now))
        return
    baseline = json.loads(BASELINE.read_text())
    if now["nvcc"] != baseline["nvcc"]:
        print(f"not compared: the baseline is of nvcc {baseline['nvcc']}, this is {now['nvcc']}")
    elif lines := grown(now, baseline):
        raise SystemExit("\n".join([*lines, f"meant so? {parser.prog} --write, and commit both"]))


if __name__ == "__main__":
    main()
