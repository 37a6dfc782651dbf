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
import sys
from collections import Counter
from dataclasses import asdict, replace
from math import ceil
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[3]))
sys.path.insert(0, str(Path(__file__).parent / "cuda_machine"))

from cost import (
    ALU,
    DEVICE,
    ISSUE,
    L2,
    LAUNCH_US,
    MHZ,
    MULTIPROCESSORS,
    SHARED,
    SPECIAL,
    TENSOR,
    TERMS,
    Cost,
    cost,
)
from cuda_resources import run
from machine_code import Recorded, missing, recording

from fastscnn.inference.fold import fold
from fastscnn.inference.gpu_runtime import GpuRuntime
from fastscnn.network.model import FastSCNN
from fastscnn_kernels.composition import Composition, _Twins
from fastscnn_kernels.cuda import operations as cuda

FOLDER = Path(__file__).parents[3] / "csrc" / "cuda"
BASELINE, OUT = FOLDER / "budget.json", FOLDER / "BUDGET.md"
TARGET = "90a"
HEIGHT, WIDTH, CLASSES = 1024, 2048, 19
GOAL_US = 110
#: What a kernel's floor may grow by unless the baseline changes too.
GROWTH = 1.03

#: Triton's kernels of operations that may have none in CUDA C++.
TRITON_OPERATIONS = {"pool_": "pyramid_pool", "feature_fusion": "feature_fusion"}
#: The stages of the network behind the launches of a kernel, in their order.
STAGES = {
    "inverted_residual": ("1.0", "1.1", "1.2", "2.0", "2.1", "2.2", "3.0", "3.1", "3.2"),
    "dsconv": ("classifier 1", "classifier 2 + scores"),
}


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
    with recording(note, TARGET, MULTIPROCESSORS):
        runtime.scores(frame)
    for name, scores in scores_by_name().items():
        with recording(
            lambda launch, name=name: found.update({f"argmax_head, {name}": cost(launch)}),
            TARGET, MULTIPROCESSORS,
        ):  # fmt: skip
            cuda.argmax_head(scores, (HEIGHT, WIDTH), confidence=False)
    return found


def triton_costs() -> dict[str, Cost]:
    """The same by Triton alone; launches of one kernel at one size are one entry."""
    from triton_code import label, recorded, triton_recording

    import fastscnn_kernels.triton as kernels

    torch.manual_seed(0)
    model = FastSCNN(CLASSES).eval()
    runtime = GpuRuntime(fold(model), model.config, CLASSES, torch.float16, ops=kernels)
    frame = torch.zeros(1, HEIGHT, WIDTH, 3, dtype=torch.uint8)
    found: dict[str, Cost] = {}
    known: dict[Any, str] = {}
    with triton_recording(TARGET) as launches:
        runtime.scores(frame)
        for launch in launches:
            key = (launch.cubin, launch.grid)
            if key not in known:
                alike = sum(name.startswith(label(launch)) for name in found)
                known[key] = f"{label(launch)}{f' ({alike + 1})' if alike else ''}"
                found[known[key]] = cost(recorded(launch, TARGET))
            else:
                before = found[known[key]]
                found[known[key]] = replace(before, launches=before.launches + 1)
        for name, scores in scores_by_name().items():
            launches.clear()
            kernels.argmax_head(scores, (HEIGHT, WIDTH), confidence=False)
            found[f"argmax_head, {name}"] = cost(recorded(launches[0], TARGET))
    return found


def scores_by_name() -> dict[str, torch.Tensor]:
    return {"20 % mixed": mostly_smooth(), "noise": noise()}


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


def counted() -> dict[str, Any]:
    """What the sources at hand give, as it lies in the baseline."""
    import triton

    version = re.search(r"release (\S+),", run("nvcc", "--version"))
    assert version is not None
    kernels = {"CUDA C++": network_costs(), "Triton": triton_costs()}
    return {
        "target": f"sm_{TARGET}",
        "versions": {"CUDA C++": version[1], "Triton": triton.__version__},
        "operations": list(cuda.OPERATIONS),
        "kernels": {
            language: {name: asdict(c) for name, c in found.items()}
            for language, found in kernels.items()
        },
    }


def costs_of(budget: dict[str, Any], language: str) -> dict[str, Cost]:
    return {name: Cost(**fields) for name, fields in budget["kernels"][language].items()}


def grown(now: dict[str, Any], baseline: dict[str, Any], language: str) -> list[str]:
    """One line for each kernel that costs more than the baseline allows, or is unknown there."""
    before, lines = costs_of(baseline, language), []
    for name, c in costs_of(now, language).items():
        where = f"{language}, {name}"
        if name not in before:
            lines.append(f"{where}: not in the baseline")
        elif c.floor * c.launches > GROWTH * before[name].floor * before[name].launches:
            lines.append(
                f"{where}: floor {before[name].floor:.2f} -> {c.floor:.2f} us, bound by {c.binds} "
                f"({before[name].instructions:.0f} -> {c.instructions:.0f} instructions a block)"
            )
    return lines


def table(costs: dict[str, Cost]) -> list[str]:
    lines = [
        "| kernel | launches | blocks x warps | fit | instructions a block | "
        + " | ".join(TERMS)
        + " | bank conflicts | floor | bound by |",
        "|---|---|---|---|---|" + "---|" * len(TERMS) + "---|---|---|",
    ]
    for name, c in costs.items():
        cells = " | ".join(f"{c.us[term]:.1f}" for term in TERMS)
        share = c.conflicts / c.wavefronts if c.wavefronts else 0
        lines.append(
            f"| {name} | {c.launches} | {c.blocks} x {c.warps} | {c.resident} | "
            f"{c.instructions:.0f} | {cells} | {share:.0%} | **{c.floor:.1f}** | {c.binds} |"
        )
    return lines


def total(costs: dict[str, Cost]) -> tuple[float, float, int]:
    """us of floors, us of issue spread over all multiprocessors, and launches, without noise."""
    frame = [c for name, c in costs.items() if not name.endswith("noise")]
    clocks = ISSUE * MULTIPROCESSORS * MHZ
    return (
        sum(c.launches * c.floor for c in frame),
        sum(c.launches * c.blocks * c.instructions / clocks for c in frame),
        sum(c.launches for c in frame),
    )


def rest_in_triton(budget: dict[str, Any]) -> dict[str, Cost]:
    """The kernels of Triton that the CUDA composition needs."""
    return {
        name: c
        for name, c in costs_of(budget, "Triton").items()
        for kernels, op in TRITON_OPERATIONS.items()
        if name.startswith(kernels) and op not in budget["operations"]
    }


def report(budget: dict[str, Any]) -> str:
    own, alone = costs_of(budget, "CUDA C++"), costs_of(budget, "Triton")
    rest = rest_in_triton(budget)
    versions = budget["versions"]
    lines = [
        "# Budget of a frame",
        "",
        "**Counted, not measured.** Generated by `tests/kernels/cuda/cuda_budget.py` from",
        f"`budget.json` for {HEIGHT}x{WIDTH}, batch 1, fp16, {CLASSES} classes on an H100: blocks",
        f"of each kernel's machine code ({budget['target']}, nvcc {versions['CUDA C++']}, Triton",
        f"{versions['Triton']}) were run on the CPU, instruction by instruction. Columns are us of",
        "one launch that each resource needs at least, on the multiprocessor with most blocks; the",
        "floor is the largest, as if all overlapped and no latency showed. Launches, and what few",
        "warps leave idle, come on top. `fit`: blocks that a multiprocessor holds at once.",
        "",
        f"Assumed: {MULTIPROCESSORS} multiprocessors at {MHZ} MHz; each clock of one issues",
        f"{ISSUE} instructions, of them {ALU} on the ALUs and {SPECIAL} on the special function",
        f"units, answers {SHARED} wavefront of shared memory and does {TENSOR} multiply-adds of",
        f"mma; {L2 / 1e12:g} TB/s from L2, {DEVICE / 1e12:g} TB/s copied. Sums are without noise.",
    ]
    for title, costs in (
        ("CUDA C++", own),
        ("What the CUDA composition leaves to Triton", rest),
        ("Triton alone", alone),
    ):
        if costs:
            us, issue, launches = total(costs)
            lines += [
                "", f"## {title}", "", *table(costs), "",
                f"Sum: **{us:.0f} us** in {launches} launches; {issue:.0f} us of issue, if all "
                "multiprocessors had as much.",
            ]  # fmt: skip
    us, issue, launches = (a + b for a, b in zip(total(own), total(rest), strict=True))
    lines += [
        "",
        f"**The CUDA composition: {us:.0f} us** (goal: {GOAL_US}) in {launches} launches of "
        f"{LAUNCH_US:g} us,",
        f"beside the copy of the frame into the graph and the counters' zeros; {issue:.0f} us of "
        "issue.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="new baseline and BUDGET.md")
    options = parser.parse_args()
    if reason := missing():
        print(f"not compared: {reason}")
        return
    now = counted()
    print(report(now))
    if options.write:
        BASELINE.write_text(json.dumps(now, indent=1) + "\n")
        OUT.write_text(report(now))
        return
    baseline = json.loads(BASELINE.read_text())
    lines = []
    for language, version in now["versions"].items():
        of = baseline["versions"][language]
        if version == of:
            lines += grown(now, baseline, language)
        else:
            print(f"{language} not compared: the baseline is of {of}, this is {version}")
    if lines:
        raise SystemExit("\n".join([*lines, f"meant so? {parser.prog} --write, and commit both"]))


if __name__ == "__main__":
    main()
