"""Thin shim: hands the extension `fastscnn_kernels._C` to CMake, which knows sources and flags.

Environment: FASTSCNN_CUDA=AUTO|1|0 (build the CUDA part: if nvcc is found, always, never),
FASTSCNN_CUDA_ARCHS="90a;120f" (only these GPU architectures), FASTSCNN_SANITIZE=1, MAX_JOBS.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SWITCHES = ("FASTSCNN_CUDA", "FASTSCNN_CUDA_ARCHS", "FASTSCNN_SANITIZE")


def tool(name: str, directory: str) -> str:
    """The program that pip installed for this build, else the one in PATH."""
    try:
        return str(Path(getattr(importlib.import_module(name), directory)) / name)
    except (ImportError, AttributeError):
        found = shutil.which(name)
    if found is None:
        raise SystemExit(f"building fastscnn needs {name}: pip install {name}")
    return found


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        cmake = tool("cmake", "CMAKE_BIN_DIR")
        subprocess.check_call(
            [
                cmake,
                *("-S", ROOT, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"),
                f"-DCMAKE_MAKE_PROGRAM={tool('ninja', 'BIN_DIR')}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                *(f"-D{name}={os.environ.get(name, '')}" for name in SWITCHES),
            ]
        )
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        subprocess.check_call([cmake, "--build", build, "-j", jobs])
        target.parent.mkdir(parents=True, exist_ok=True)
        # A new file instead of new content: a running process may have the old one mapped.
        target.unlink(missing_ok=True)
        shutil.copy2(build / target.name, target)


setup(
    ext_modules=[Extension("fastscnn_kernels._C", sources=[])], cmdclass={"build_ext": CMakeBuild}
)
