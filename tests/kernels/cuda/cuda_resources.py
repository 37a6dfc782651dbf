"""Builds every CUDA kernel for every target, checks its resources, writes csrc/cuda/RESOURCES.md.

python tests/kernels/cuda/cuda_resources.py [--check]
needs nvcc and cuobjdump (it comes with Triton)
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "cuda_host"))

import compiled

TARGETS = ("75", "80", "86", "87", "89", "90a", "100f", "110", "120f")
#: KiB of shared memory of a block and of a multiprocessor, threads of a multiprocessor.
LIMITS = {
    "75": (64, 64, 1024),
    "80": (163, 164, 2048),
    "86": (99, 100, 1536),
    "87": (163, 164, 1536),
    "89": (99, 100, 1536),
    "90": (227, 228, 2048),
    "100": (227, 228, 2048),
    "110": (227, 228, 1536),
    "120": (99, 100, 1536),
}
REGISTERS = 65536
#: Layouts for large shared memory only; the launchers choose others on the targets in the set.
NOT_ON = {
    "dsconv<128, false>": {"75"},
    "inverted_residual<8 x 8, stride 1, 96>": {"75"},
    "inverted_residual<8 x 8, stride 1, 128>": {"75"},
    "inverted_residual<4 x 8, stride 2, 128>": {"75"},
    "learning_to_downsample<4 x 8>": {"75"},
}
OUT = compiled.ROOT / "build" / "cuda_resources"
TABLE = compiled.CUDA / "RESOURCES.md"


@dataclass(frozen=True)
class Usage:
    target: str
    type: str  # F16 or BF16
    registers: int
    stack: int
    tensor_core: int  # instructions in the machine code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with RESOURCES.md, no write")
    options = parser.parse_args()
    text = report(layouts(), usages(build()))
    if options.check and TABLE.read_text() != text:
        raise SystemExit(f"{TABLE} differs from what the sources give: run {sys.argv[0]}")
    TABLE.write_text(text)


def build() -> list[Path]:
    """One fat binary per source; a warning (spills, local memory, doubles) is an error."""
    OUT.mkdir(parents=True, exist_ok=True)
    codes = [f"-gencode=arch=compute_{t},code=sm_{t}" for t in TARGETS]
    flags = ["-std=c++17", "-O3", "-lineinfo", "--threads=2", "-Werror=all-warnings", *codes]
    flags.append("-Xptxas=-warn-spills,-warn-lmem-usage,-warn-double-usage,-Werror")
    binaries = []
    for source in compiled.SOURCES:
        if source.suffix == ".cu" and source.stem != "device":  # device.cu computes nothing
            name = OUT / f"{source.stem}-{source_digest(source)}.fatbin"
            if not name.exists():
                command = ["nvcc", *flags, "-fatbin", "-o", str(name), str(source)]
                subprocess.run(command, check=True)
            binaries.append(name)
    return binaries


def source_digest(source: Path) -> str:
    headers = [p for p in sorted(compiled.CUDA.glob("*.*h")) if p.suffix in {".h", ".cuh"}]
    return compiled.content_digest(source, *headers)


def layouts() -> dict[str, tuple[int, int]]:
    """Threads and bytes of shared memory by kernel, as the sources compute them."""
    program = OUT / "layouts"
    OUT.mkdir(parents=True, exist_ok=True)
    objects = [
        compiled.compile_object(compiled.HERE / n) for n in ("layouts.cpp", "cuda_on_host.cpp")
    ]
    subprocess.run(["g++", "-o", program, *objects, "-pthread"], check=True)
    lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    rows = [line.split("\t") for line in lines.splitlines()]
    return {name: (int(threads), int(shared)) for name, threads, shared in rows}


def usages(binaries: list[Path]) -> dict[str, list[Usage]]:
    tool = cuobjdump()
    found: dict[str, list[Usage]] = defaultdict(list)
    for binary in binaries:
        for target in TARGETS:
            arch = ["-arch", f"sm_{target}", str(binary)]
            usage, code = (
                subprocess.run(
                    [tool, flag, *arch], check=True, capture_output=True, text=True
                ).stdout
                for flag in ("-res-usage", "-sass")
            )
            instructions = {
                part.split("\n", 1)[0].strip(): len(re.findall(r"\b[HQ]MMA\b|\bHMMA\.", part))
                for part in code.split("Function : ")[1:]
            }
            for mangled, registers, stack in re.findall(
                r"Function (\S+):\s*REG:(\d+) STACK:(\d+)", usage
            ):
                name, kind = kernel_name(mangled)
                found[name].append(
                    Usage(target, kind, int(registers), int(stack), instructions[mangled])
                )
    return found


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def kernel_name(mangled: str) -> tuple[str, str]:
    """("dsconv<64, true>", "F16") of a mangled kernel."""
    name = re.search(r"\d+([a-z_]+)_kernel", mangled)
    kind = re.search(r"\d+(B?F16)E", mangled)
    assert name is not None, mangled
    assert kind is not None, mangled
    values = re.findall(r"L([ib])(\d+)E", mangled)
    if not values:
        return name[1], kind[1]
    words = [("false", "true")[int(v)] if t == "b" else v for t, v in values]
    if name[1] == "inverted_residual":
        return f"{name[1]}<{words[0]} x 8, stride {words[1]}, {words[2]}>", kind[1]
    separator = " x " if name[1] == "learning_to_downsample" else ", "
    return f"{name[1]}<{separator.join(words)}>", kind[1]


def report(kernels: dict[str, tuple[int, int]], used: dict[str, list[Usage]]) -> str:
    """The table; raises where a kernel does not fit a target."""
    assert kernels.keys() == used.keys(), kernels.keys() ^ used.keys()
    lines = [
        "# Resources of the CUDA kernels",
        "",
        "Generated by `tests/kernels/cuda/cuda_resources.py` from the machine code",
        "of every target; do not edit. fp16: registers per thread / blocks that fit a",
        "multiprocessor (by registers, threads and shared memory); `-` where the launcher takes",
        "another layout or refuses. No",
        "kernel spills or uses local memory.",
        "",
        "| kernel | threads | shared kB | " + " | ".join(f"sm_{t}" for t in TARGETS) + " |",
        "|---|---|---|" + "---|" * len(TARGETS),
    ]
    for name, (threads, shared) in kernels.items():
        cells = []
        for target in TARGETS:
            number = re.match(r"\d+", target)
            assert number is not None
            block, multiprocessor, most = LIMITS[number[0]]
            for u in used[name]:
                if u.target != target or (target == "75" and u.type == "BF16"):
                    continue
                where = f"{name} {u.type} sm_{target}"
                assert u.stack == 0, f"{where}: {u.stack} bytes of stack"
                assert u.registers * threads <= REGISTERS, f"{where}: {u.registers} registers"
                wanted = not name.startswith("argmax_head")
                assert (u.tensor_core > 0) == wanted, f"{where}: {u.tensor_core} HMMA"
            if target in NOT_ON.get(name, ()):
                cells.append("-")
                continue
            assert shared <= block * 1024, f"{name} sm_{target}: {shared} bytes of shared memory"
            half = next(u for u in used[name] if u.target == target and u.type == "F16")
            granular = -(-half.registers // 8) * 8
            reserved = 0 if target == "75" else 1024
            blocks = min(
                REGISTERS // (granular * threads),
                most // threads,
                multiprocessor * 1024 // (shared + reserved),
            )
            cells.append(f"{half.registers} / {blocks}")
        lines.append(f"| `{name}` | {threads} | {shared / 1024:.1f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cuobjdump() -> str:
    found = shutil.which("cuobjdump")
    if found:
        return found
    from triton import knobs

    return str(knobs.nvidia.cuobjdump.path)


if __name__ == "__main__":
    main()
