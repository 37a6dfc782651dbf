"""What counts as equal, on what it is looked at, and what options leave in the file."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from export_networks import network

from fastscnn.checkpoints.card import Card
from fastscnn.export import compare, fscnn, write
from fastscnn.export.subject import of_network
from fastscnn.inference.ranges import int8_inputs
from fastscnn.network.config import PRESETS
from fastscnn.network.model import FastSCNN


def test_what_passes() -> None:
    """1 of 2000 labels may differ, and values by 1e-4 of their range; NaN and infinity never."""
    passed = [
        compare.Row((1, 40, 50), labels, error).passed
        for labels, error in ((0.9995, None), (0.9994, None), (1, 1e-4), (1, 1.1e-4), (0.99, 0))
    ]
    assert passed == [True, False, True, False, False]
    expected = np.array([-3.0, 0, 5], np.float32)
    for got, error in (
        ([-3, 0, 5.8], 0.1), ([-3, 0.8, 4.2], 0.1), ([-3, 0, np.nan], np.inf),
        ([-3, -np.inf, 5], np.inf), ([-3, 0], np.inf),
    ):  # fmt: skip
        assert compare._error(np.array(got, np.float32), expected) == pytest.approx(error), got


def test_what_is_checked() -> None:
    """Every size with one frame and with two, none of them seen twice."""
    subject = of_network(network("paper"))
    batches = compare.pictures(subject)
    shapes = [b.shape[:3] for b in batches]
    assert shapes == [(n, *size) for size in compare.SIZES for n in (1, 2)]
    assert not np.array_equal(batches[1][0], batches[1][1])
    fixed = compare.pictures(replace(subject, size=(64, 80), batch=3))
    assert [b.shape for b in fixed] == [(3, 64, 80, 3)]


@pytest.fixture(scope="module")
def model() -> FastSCNN:
    """With a normalisation of its own and a working size."""
    config = replace(PRESETS["paper"], mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    net = FastSCNN(3, config=config).eval()
    net.load_state_dict(
        {k: v for k, v in network("paper").state_dict().items() if "classifier.conv" not in k},
        strict=False,
    )
    net.card = Card(config, 3, classes=("a", "b", "c"), size=(80, 120))
    return net


@pytest.mark.parametrize(
    ("options", "side"),
    [({}, 80), ({"input": "tensor"}, None), ({"resize": False}, None)],
    ids=["frame", "tensor", "no-resize"],
)
def test_what_a_file_says_of_itself(
    tmp_path: Path, model: FastSCNN, options: dict[str, Any], side: int | None
) -> None:
    rows = write.export(model, tmp_path / "a.onnx", write.Options(size=(64, 96), **options))
    assert {row.shape for row in rows} == {(1, 64, 96), (2, 64, 96)}
    found = {p.key: p.value for p in onnx.load(tmp_path / "a.onnx").metadata_props}
    values = {k: json.loads(found[k]) for k in ("classes", "mean", "std", "working_side")}
    assert values == {
        "classes": ["a", "b", "c"], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6],
        "working_side": side,
    }  # fmt: skip


@pytest.mark.parametrize("suffix", write.SUFFIXES)
def test_nothing_is_overwritten(tmp_path: Path, model: FastSCNN, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="--force"):
        write.export(model, path)
    assert path.read_text() == "mine"


def test_the_engines_file_has_its_ranges(model: FastSCNN) -> None:
    assert model.card is not None
    names = int8_inputs(model.config)
    ranges = {name: (-float(i), float(i + 1)) for i, name in enumerate(names)}
    ranges = {
        n: (0.0 if n.endswith(("depthwise", "project", "low")) else a, b)
        for n, (a, b) in ranges.items()
    }
    plain = fscnn.encode(model)
    before, model.card = model.card, replace(model.card, ranges=ranges)
    data = fscnn.encode(model)
    model.card = before
    at = 24 + 17 * 4 + 6 * 8
    assert struct.unpack_from("<i", plain, at)[0] == 0
    assert struct.unpack_from("<i", data, at)[0] == len(names)
    spans = struct.unpack_from(f"<{2 * len(names)}d", data, at + 8)
    assert list(zip(spans[::2], spans[1::2], strict=True)) == [ranges[n] for n in names]
