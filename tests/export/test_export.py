"""`fastscnn export`: files that are checked, and wrong use in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from export_networks import network
from PIL import Image

from fastscnn.checkpoints.card import Card
from fastscnn.classes import CITYSCAPES
from fastscnn.cli import main
from fastscnn.export import write
from fastscnn.export.compare import SIZES, ExportError, Row, _error
from fastscnn.export.onnx_graph import build
from fastscnn.inference.fold import Conv, fold
from fastscnn.info import __version__
from fastscnn.media.demo import street_scene
from fastscnn.media.frames import ImageError
from fastscnn.network.model import FastSCNN


@pytest.mark.parametrize("output", ["labels", "probabilities", "logits"])
@pytest.mark.parametrize("preset", ["paper", "tramac", "paddleseg"])
def test_files_pass_their_check(tmp_path: Path, preset: str, output: str) -> None:
    path = tmp_path / "net.onnx"
    rows = write.export(network(preset), path, write.Options(output=output))
    assert [row.shape for row in rows] == [(n, *s) for s in SIZES for n in (1, 2)]
    assert all(row.passed and row.error is not None for row in rows)


def known(path: Path) -> dict[str, Any]:
    """The metadata of an .onnx."""
    found = {p.key: p.value for p in onnx.load(path).metadata_props}
    return {k: v if k in ("version", "layout") else json.loads(v) for k, v in found.items()}


def test_the_metadata_say_what_a_reader_needs(tmp_path: Path) -> None:
    net = FastSCNN(3).eval()
    names, colors = ("a", "b", "c"), ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    net.card = Card(net.config, 3, names, colors, source="fastscnn")
    write.export(net, tmp_path / "net.onnx", write.Options(size=(64, 64)))
    assert known(tmp_path / "net.onnx") == {
        "version": __version__,
        "layout": "fastscnn",
        "classes": ["a", "b", "c"],
        "colors": [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "working_side": None,
    }


def test_classes_that_a_checkpoint_does_not_name_are_those_of_segment(tmp_path: Path) -> None:
    """Most published files have 19 classes and no names."""
    write.export(network("tramac"), tmp_path / "net.onnx", write.Options(size=(64, 64)))
    found = known(tmp_path / "net.onnx")
    assert found["classes"] == list(CITYSCAPES.names)
    assert found["colors"] == [list(color) for color in CITYSCAPES.colors]


def test_a_check_passes_by_labels_and_by_values() -> None:
    passed = {(0.9995, 1e-4), (1.0, None)}
    for labels in (0.999, 0.9995, 1.0):
        for error in (1e-4, 2e-4, float("inf"), None):
            expected = labels >= 0.9995 and error in (1e-4, None)
            assert Row((1, 64, 64), labels, error).passed is expected
    assert all(Row((1, 64, 64), *row).passed for row in passed)
    values = np.array([0.0, 1.0, 5.0])
    assert _error(values + 0.5, values) == pytest.approx(0.1)
    assert _error(np.array([0.0, np.nan, 5.0]), values) == float("inf")
    assert _error(values[:2], values) == float("inf")


def test_frames_that_are_scaled_down_are_checked_too(tmp_path: Path) -> None:
    """To a working size; and real frames take the place of drawn ones."""
    net = FastSCNN(19)
    net.load_state_dict(network("paper").state_dict())
    net.eval().card = Card(net.config, 19, size=(80, 120))
    rows = write.export(net, tmp_path / "a.onnx")
    assert [row.shape[1:] for row in rows[::2]] == [(64, 96), (101, 139), (90, 95)]
    assert known(tmp_path / "a.onnx")["working_side"] == 80
    whole = write.export(net, tmp_path / "whole.onnx", write.Options(resize=False))
    assert [row.shape[1:] for row in whole[::2]] == [*SIZES]
    assert known(tmp_path / "whole.onnx")["working_side"] is None
    Image.fromarray(street_scene(50, 70, 5)).save(tmp_path / "frame.png")
    options = write.Options(frames=[tmp_path / "frame.png"])
    others = write.export(net, tmp_path / "b.onnx", options)
    assert [row.shape for row in others] == [row.shape for row in rows]
    assert [row.error for row in others] != [row.error for row in rows]
    with pytest.raises(ImageError, match=r"nothing\.png"):
        write.export(net, tmp_path / "c.onnx", write.Options(frames=[tmp_path / "nothing.png"]))
    assert not (tmp_path / "c.onnx").exists()


def test_equal_labels_do_not_hide_other_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores that are all larger by a thousandth give the same labels."""
    net = network("paper")

    def slip(folded: dict[str, Conv], *args: object, **options: object) -> onnx.ModelProto:
        last = folded["classifier.conv"]
        folded["classifier.conv"] = Conv(last.weight * 1.001, last.bias * 1.001)
        return build(folded, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("fastscnn.export.onnx_graph.build", slip)
    with pytest.raises(ExportError, match=r"100\.0000% labels equal"):
        write.export(net, tmp_path / "net.onnx")


def test_an_unwritable_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder in the file's name, a file in the folder's."""
    (tmp_path / "taken.onnx").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("taken.onnx", "file/a.onnx"):
        argv = ["export", "camvid", "-o", str(tmp_path / name), "--size", "64x64", "--no-resize"]
        assert main([*argv, "--force"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "taken.onnx"]


def test_nan_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {k: v.clone() for k, v in network("paper").state_dict().items()}
    state["classifier.conv.weight"][0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    assert main(["export", str(tmp_path / "nan.pth"), "-o", str(tmp_path / "a.onnx")]) == 2
    assert "classifier.conv.weight holds 128 NaN" in capsys.readouterr().err
    assert not (tmp_path / "a.onnx").exists()


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
    with pytest.raises(ExportError, match="differs from the model"):
        write.export(net, tmp_path / "net.onnx")
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
