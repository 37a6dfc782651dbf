"""Layers import in one direction; importing touches no GPU; optional parts stay optional."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).parent.parent
#: What a layer may import of the project.
ALLOWED = {
    "fastscnn_kernels": {"fastscnn_kernels"},
    "fastscnn": {"fastscnn", "fastscnn_kernels"},
}


def imports(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("layer", ALLOWED)
def test_one_direction(layer: str) -> None:
    files = sorted((ROOT / layer).rglob("*.py"))
    assert files
    for path in files:
        ours = imports(path) & {"fastscnn", "fastscnn_kernels", "tests", "bench"}
        assert ours <= ALLOWED[layer], f"{path} imports {ours - ALLOWED[layer]}"


#: The rooms of fastscnn/, each above those that it may import: a folder, or a file of that name.
ROOMS = (
    *("classes", "arguments", "network", "checkpoints", "media", "inference"),
    *("load", "info", "quantize", "export", "benchmark"),
    *("predict", "training", "service", "cli", "__main__"),
)
#: `import fastscnn` itself, which knows all of inference, is for the rooms above it.
ABOVE_THE_PACKAGE = ROOMS[ROOMS.index("export") :]


def modules(path: Path) -> set[str]:
    """Full names of all modules that a file imports at its top: what is imported while a function
    runs closes no circle."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def rooms_imported(path: Path) -> set[str]:
    names = (name.split(".") for name in modules(path))
    return {name[1] if len(name) > 1 else "" for name in names if name[0] == "fastscnn"}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_those_below(room: str) -> None:
    place = ROOT / "fastscnn" / room
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    allowed = set(ROOMS[: ROOMS.index(room) + 1]) | ({""} if room in ABOVE_THE_PACKAGE else set())
    for path in files:
        assert rooms_imported(path) <= allowed, f"{path}: {rooms_imported(path) - allowed}"


def test_every_room_has_its_floor() -> None:
    there = {
        p.stem
        for p in (ROOT / "fastscnn").iterdir()
        if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert there - {"__init__"} == set(ROOMS)


def test_every_package_is_installed() -> None:
    """A folder of code without __init__.py is missing from a wheel, though not from here."""
    packages = set(find_packages(str(ROOT), include=["fastscnn*"]))
    for layer in ALLOWED:
        for path in (ROOT / layer).rglob("*.py"):
            assert ".".join(path.parent.relative_to(ROOT).parts) in packages, path
    text = (ROOT / "pyproject.toml").read_text()
    assert 'include = ["fastscnn*"]' in text
    assert '"fastscnn.training" = ["recipes/*.toml"]' in text
    assert len(list((ROOT / "fastscnn/training/recipes").glob("*.toml"))) == 5


def test_commits_are_checked_as_make_lint_does() -> None:
    rule = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    linted = [line.strip().removeprefix("$(BIN)/") for line in rule.splitlines()[1:]]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text().splitlines()
    entries = [x.strip().removeprefix("entry: ") for x in hooks if x.strip().startswith("entry:")]
    assert entries == linted


def test_kernels_know_no_framework() -> None:
    """Only the bindings know Python; nothing under csrc knows torch."""
    sources = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"}]
    assert sources
    for path in sources:
        text = path.read_text()
        assert "torch/" not in text, path
        assert "ATen" not in text, path
        if not path.stem.startswith("bindings"):
            assert "pybind11" not in text, path
            assert "Python.h" not in text, path


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


def test_importing_touches_no_gpu() -> None:
    """Any device query during import raises here."""
    run(
        "import torch\n"
        "def refuse(*a, **k): raise AssertionError('device query at import')\n"
        "torch.cuda.is_available = torch.cuda.device_count = torch.cuda._lazy_init = refuse\n"
        "torch.cuda.current_device = torch.cuda.get_device_properties = refuse\n"
        "import fastscnn, fastscnn_kernels, fastscnn.cli\n"
    )


@pytest.mark.parametrize(
    "missing", ["triton", "av", "torchmetrics", "matplotlib", "tensorboard", "onnx"]
)
def test_works_without_optional_packages(missing: str) -> None:
    run(
        f"import sys\nsys.modules[{missing!r}] = None\n"
        "import numpy as np, fastscnn, fastscnn.cli\n"
        "labels = fastscnn.load(device='cpu').segment(np.zeros((64, 96, 3), np.uint8))\n"
        "assert labels.shape == (64, 96)\n"
    )
