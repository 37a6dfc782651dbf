"""`fastscnn export`: files that are checked, and wrong use in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
import pytest
from export_networks import network

from fastscnn.cli import main
from fastscnn.export import write
from fastscnn.export.onnx_graph import build
from fastscnn.inference.fold import fold


@pytest.mark.parametrize("output", ["labels", "probabilities", "logits"])
@pytest.mark.parametrize("preset", ["paper", "tramac", "paddleseg"])
def test_files_pass_their_check(tmp_path: Path, preset: str, output: str) -> None:
    path = tmp_path / "net.onnx"
    rows = write.export_onnx(network(preset), path, output=output)
    assert [row.shape for row in rows] == [(n, *s) for s in write.SIZES for n in (1, 2)]
    assert all(row.passed for row in rows)
    known = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert json.loads(known["mean"]) == list(network(preset).config.mean)


def test_a_file_that_differs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another preset's structure around the same weights."""
    net = network("paper")
    other = network("mmseg").config
    assert other.ffm_dilation != net.config.ffm_dilation

    def slip(*args: object, **options: object) -> onnx.ModelProto:
        options["metadata"] = None
        from dataclasses import replace

        config = replace(net.config, ffm_dilation=other.ffm_dilation)
        return build(fold(net), config, 19, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("fastscnn.export.onnx_graph.build", slip)
    with pytest.raises(write.ExportError, match="differs from the model"):
        write.export_onnx(net, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "camvid.onnx"
    assert main(["export", "camvid", "-o", str(path), "--size", "96x128"]) == 0
    assert "labels equal" in capsys.readouterr().out
    assert path.exists()
    assert main(["export", "camvid", "-o", str(path)]) == 2
    assert "--force" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-o", "a.onnxx"], "unknown ending '.onnxx'"),
        (["-o", "a.onnx", "--size", "31x64"], "at least 32"),
        (["-o", "nowhere/a.onnx", "--size", "64x64", "--no-resize"], "no folder"),
    ],
)
def test_wrong_use(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", "camvid", *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", "camvid", "-o", str(tmp_path / "a.onnx")]) == 2
    assert "fastscnn[export]" in capsys.readouterr().err
