"""The README tells the truth: its Python runs, its commands and paths exist."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fastscnn
from fastscnn.cli import _parser
from fastscnn.media.demo import street_scene

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str, document: Path = ROOT / "README.md") -> list[str]:
    """Fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.M | re.S)


def test_python_runs(tmp_path: Path) -> None:
    """All Python blocks of the README in order, in one process, on a drawn photo."""
    Image.fromarray(street_scene(180, 240)).save(tmp_path / "photo.jpg")
    code = blocks("python")
    assert code
    checked = "\n".join([*code, TRUE_OF_THEM])
    subprocess.run([sys.executable, "-c", checked], cwd=tmp_path, check=True, timeout=300)
    frame = np.asarray(Image.open(tmp_path / "photo.jpg"))
    tinted = fastscnn.overlay(frame, fastscnn.load().segment(frame), fastscnn.CAMVID)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "overlay.png")), tinted)


#: What the comments beside those lines say.
TRUE_OF_THEM = """
assert x.dtype.is_floating_point and x.shape[:2] == (1, 3)
assert logits.shape == (1, 11, *x.shape[2:])
whole = model.segment(frame)
assert all(np.array_equal(one, whole) for one in labels) and len(labels) == 2
small = model.segment(frame, size=(256, 512))
assert small.shape == whole.shape == frame.shape[:2] and (small != whole).any()
"""


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_commands_parse(document: Path) -> None:
    """Every `fastscnn ...` line is accepted by the real parser, every make target exists."""
    makefile = (ROOT / "Makefile").read_text()
    for line in "".join(blocks("sh", document)).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["fastscnn"]:
            _parser().parse_args(words[1:])
        if words[:1] == ["make"]:
            for target in (w for w in words[1:] if "=" not in w):
                assert re.search(rf"^{target}:", makefile, re.M), f"no target {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_paths_exist(document: Path) -> None:
    """Paths of the project in backquotes or links exist."""
    text = document.read_text()
    named = re.findall(r"`([\w./-]+/[\w./-]*)`", text) + re.findall(r"\]\(([\w./-]+)\)", text)
    roots = {"csrc", "fastscnn", "fastscnn_kernels", "tests", "bench", "docs"}
    for name in named:
        if name.split("/")[0] in roots or "/" not in name:
            assert (ROOT / name).exists() or (document.parent / name).exists(), name


def test_numbers_are_the_committed_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables are what `bench/report.py --readme` makes of the committed JSON."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    report = importlib.import_module("report")
    assert report.readme_numbers() in (ROOT / "README.md").read_text()
    assert report.detail_numbers() in (ROOT / "docs" / "benchmarks.md").read_text()
