"""Compiles the unchanged sources of csrc/cuda with g++ into a module that runs them on the CPU."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CUDA = ROOT / "csrc" / "cuda"
CACHE = ROOT / "build" / "cuda_host"
FLAGS = (
    *("-std=c++17", "-O1", "-march=native", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique"),
    *("-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
    "-DFASTSCNN_CUDA_ON_HOST",
)
HOST = (HERE / "cuda_on_host.cpp", HERE / "module.cpp")


def load(cuda: Path = CUDA) -> ModuleType:
    """The operations of the kernel sources in `cuda`, as module `cuda_on_host`."""
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda s: compile_object(s, cuda), sources(cuda)))
    path = CACHE / f"cuda_on_host-{digest(*objects)}.so"
    if not path.exists():
        part = path.with_suffix(".part")
        command = ["g++", "-shared", *map(str, objects), "-o", str(part), "-pthread"]
        subprocess.run(command, check=True)
        part.rename(path)
    spec = importlib.util.spec_from_file_location("cuda_on_host", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digest(*paths: Path) -> str:
    return hashlib.sha256(" ".join(p.name for p in paths).encode()).hexdigest()[:20]


def sources(cuda: Path) -> list[Path]:
    kernels = [p for p in sorted(cuda.glob("*.cu")) if p.name != "device.cu"]
    return [*kernels, cuda / "bindings.cpp", *HOST]


def compile_object(source: Path, cuda: Path, flags: tuple[str, ...] = ()) -> Path:
    """The object file of one source, kept by the content of all that it includes."""
    CACHE.mkdir(parents=True, exist_ok=True)
    folders = (HERE, cuda, pybind11.get_include(), sysconfig.get_path("include"))
    includes = [f"-I{folder}" for folder in folders]
    command = ["g++", *FLAGS, *flags, *includes, "-x", "c++", str(source)]
    text = subprocess.run([*command, "-E", "-P"], check=True, capture_output=True).stdout
    name = hashlib.sha256(text + " ".join((*FLAGS, *flags)).encode()).hexdigest()[:20]
    target = CACHE / f"{source.stem}-{name}.o"
    if not target.exists():
        part = target.with_suffix(".part")
        subprocess.run([*command, "-c", "-o", str(part)], check=True)
        part.rename(target)
    return target
