"""What is installed and what runs where; asking is the only thing here that touches a GPU."""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from fastscnn.arguments import positive, size
from fastscnn.checkpoints.shipped import shipped_weights


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


__version__ = _version("fastscnn")


def info() -> list[str]:
    """Lines for a person: versions, devices, the implementation that each device uses."""
    lines = [
        f"fastscnn {__version__}",
        f"python {platform.python_version()}, torch {torch.__version__}, "
        f"triton {_version('triton')}",
        *_cpu(),
        *_gpu(),
        f"shipped weights: {', '.join(shipped_weights()) or 'none'}",
    ]
    return lines


def _cpu() -> list[str]:
    from fastscnn_kernels.cpu.int8 import pays
    from fastscnn_kernels.extension import device_info

    d = device_info()
    return [
        f"cpu: {d['cpu_instruction_set']} (of {', '.join(d['cpu_instruction_sets'])}), "
        f"{torch.get_num_threads()} threads",
        "  float32 inference and training: C++ kernels; float16: the reference in PyTorch",
        "  bfloat16 inference: "
        + (", ".join(d["cpu_bf16_instruction_sets"]) or "in float32, for want of AVX512-BF16"),
        "  int8 checkpoints: "
        + (f"int8 ({d['cpu_int8_instruction_sets'][0]})" if pays() else "float32, faster here"),
    ]


def _gpu() -> list[str]:
    from fastscnn_kernels import composition
    from fastscnn_kernels.cuda import operations as cuda

    if not torch.cuda.is_available():
        built = "built with CUDA" if cuda.built() else "built without CUDA"
        return [f"gpu: 0 devices usable by torch; extension {built}"]
    lines = []
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        lines.append(f"cuda:{i}: {p.name}, sm_{p.major}{p.minor}, {p.total_memory / 2**30:.0f} GiB")
        device = torch.device("cuda", i)
        try:
            lines.append(f"  inference in one graph: {composition.on(device)}")
        except RuntimeError as error:
            lines.append(f"  no inference: {error}")
        if missing := cuda.missing(device):
            lines.append(f"  without CUDA C++: {missing}")
    return lines


def add_info_parser(commands: Any) -> None:
    """Adds `info`; its `run(args)` returns the exit code."""
    p = commands.add_parser("info", help="version, devices, and what runs where")
    p.add_argument("--plan", type=size, metavar="HxW", help="kernels that a frame of HxW costs")
    p.add_argument("--batch", type=positive, default=1, help="frames at once, for --plan")
    p.add_argument("--weights", default="camvid", help="whose network, for --plan")
    p.set_defaults(run=_info)


def _info(args: argparse.Namespace) -> int:
    if args.plan is None:
        print("\n".join(info()))
    else:
        from fastscnn.inference.plan import table
        from fastscnn.load import load

        model: Any = load(args.weights, device="cpu")
        print(table(model.plan(args.plan, batch=args.batch)))
    return 0
