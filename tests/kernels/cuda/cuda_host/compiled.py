"""Compiles the unchanged sources of csrc/cuda with g++ into a module that runs them on the CPU."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11

HERE = Path(__file__).parent
ROOT = HERE.parents[3]
CUDA = ROOT / "csrc" / "cuda"
CACHE = ROOT / "build" / "cuda_host"
FLAGS = (
    *("-std=c++17", "-O1", "-march=native", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique"),
    *("-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
    "-DFASTSCNN_CUDA_ON_HOST",
)
SOURCES = (
    *sorted(CUDA.glob("*.cu")),
    *(CUDA / "bindings.cpp", HERE / "cuda_on_host.cpp", HERE / "module.cpp"),
)


def load(changed: Path | None = None, source: str = "") -> ModuleType:
    """The operations as module `cuda_on_host`; with `source` (a file name) compiled from a changed
    copy of csrc/cuda."""
    with ThreadPoolExecutor(2) as pool:
        folders = [changed if changed and s.name == source else CUDA for s in SOURCES]
        objects = list(pool.map(compile_object, SOURCES, folders))
    path = CACHE / f"cuda_on_host-{digest(*objects)}.so"
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}")
        command = ["g++", "-shared", *map(str, objects), "-o", str(part), "-pthread"]
        subprocess.run(command, check=True)
        part.rename(path)
    # pybind11 keeps modules by name: each needs its own.
    spec = importlib.util.spec_from_file_location(f"{path.stem}.cuda_on_host", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def content_digest(*paths: Path) -> str:
    return hashlib.sha256(b"".join(p.read_bytes() for p in paths)).hexdigest()[:20]


def digest(*paths: Path) -> str:
    return hashlib.sha256(" ".join(p.name for p in paths).encode()).hexdigest()[:20]


def compile_object(source: Path, cuda: Path = CUDA, flags: tuple[str, ...] = ()) -> Path:
    """The object file of one source, kept by the content of all that it includes.

    Of a changed copy of csrc/cuda, compiled in haste.
    """
    if cuda != CUDA:
        source, flags = cuda / source.name, ("-O0", "-w")
    CACHE.mkdir(parents=True, exist_ok=True)
    folders = (HERE, cuda, pybind11.get_include(), sysconfig.get_path("include"))
    includes = [f"-I{folder}" for folder in folders]
    command = ["g++", *FLAGS, *flags, *includes, "-x", "c++", str(source)]
    text = subprocess.run([*command, "-E", "-P"], check=True, capture_output=True).stdout
    name = hashlib.sha256(text + " ".join((*FLAGS, *flags)).encode()).hexdigest()[:20]
    target = CACHE / f"{source.stem}-{name}.o"
    if not target.exists():
        part = target.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, "-c", "-o", str(part)], check=True)
        part.rename(target)
    return target
