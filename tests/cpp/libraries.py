"""Builds libfastscnn for the tests of this room, once; and networks to export to it."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

import fastscnn
from fastscnn.inference.fused import FusedFastSCNN
from fastscnn.media.demo import street_scene
from fastscnn.quantize import calibrate

ROOT = Path(__file__).parents[2]


def run(*command: object, **options: object) -> str:
    done = subprocess.run(
        [str(c) for c in command],
        capture_output=True,
        text=True,
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return str(done.stdout)


@cache
def build(name: str = "cpp", *options: str) -> Path:
    """The build folder of the library with these CMake options."""
    folder = ROOT / "build" / name
    generator = ("-G", "Ninja") if shutil.which("ninja") else ()
    run("cmake", "-S", ROOT, "-B", folder, *generator, "-DFASTSCNN_PYTHON=OFF", *options)
    run("cmake", "--build", folder, "-j", os.environ.get("MAX_JOBS", "2"))
    return folder


@cache
def installed() -> Path:
    """Where `cmake --install` has put it."""
    prefix = ROOT / "build" / "cpp-installed"
    shutil.rmtree(prefix, ignore_errors=True)
    run("cmake", "--install", build(), "--prefix", prefix)
    return prefix


@cache
def example() -> Path:
    """The program of examples/cpp, which found the installed library as a stranger's would."""
    folder = ROOT / "build" / "cpp-example"
    shutil.rmtree(folder, ignore_errors=True)
    options = (f"-DCMAKE_PREFIX_PATH={installed()}", "-DCMAKE_BUILD_TYPE=Release")
    run("cmake", "-S", ROOT / "examples/cpp", "-B", folder, *options)
    run("cmake", "--build", folder)
    return folder / "segment_ppm"


def network(precision: str = "float32") -> FusedFastSCNN:
    """The shipped one."""
    dtype = torch.bfloat16 if precision == "bfloat16" else None
    model = fastscnn.load("camvid", device="cpu", dtype=dtype)
    if precision == "int8":
        frames = [street_scene(180, 240, seed) for seed in range(2)]
        model.card = replace(model.card, ranges=calibrate(model, frames))
    return model
