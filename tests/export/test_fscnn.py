"""`.fscnn` files: written after a check, refused in one line. tests/cpp runs them from C."""

from __future__ import annotations

import copy
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from export_networks import network

import fastscnn
from fastscnn.checkpoints.card import Card
from fastscnn.cli import main
from fastscnn.export import fscnn
from fastscnn.export.compare import SIZES, ExportError
from fastscnn.export.subject import open_subject
from fastscnn.export.verify import verify
from fastscnn.inference.ranges import int8_inputs
from fastscnn.media.demo import street_scene
from fastscnn.network.blocks import resize
from fastscnn.network.config import PRESETS
from fastscnn.network.model import FastSCNN
from fastscnn_kernels import extension


@pytest.mark.parametrize("preset", PRESETS)
def test_files_pass_their_check(tmp_path: Path, preset: str) -> None:
    rows = fscnn.export_fscnn(network(preset), tmp_path / "net.fscnn")
    assert [row.shape for row in rows] == [(1, *s) for s in SIZES]
    assert all(row.labels == 1 for row in rows)


def test_the_file_says_what_its_format_says(tmp_path: Path) -> None:
    net = network("paddleseg")
    colors = tuple((i, 2 * i, 100 + i) for i in range(19))
    names = tuple("abcdefghijklmnopqrs")
    net.card = Card(net.config, 19, classes=names, colors=colors, size=(128, 256))
    try:
        data = fscnn.encode(net)
    finally:
        net.card = None
    assert data[:8] == b"FASTSCNN"
    assert struct.unpack("<2IQ", data[8:24]) == (2, zlib.crc32(data[24:]), len(data))
    numbers = struct.unpack("<17i6d2i", data[24:148])
    assert numbers[:4] == (19, -1, 0, 0)
    assert numbers[4:9] == (0, 6, 3, 2, 1)
    assert numbers[15:17] == (128, 0)
    assert numbers[17:23] == (0.5,) * 6
    assert numbers[23:] == (0, 38)
    assert data[148 : 148 + 57] == bytes(v for color in colors for v in color)
    assert (
        data[148 + 57 : 148 + 57 + 38]
        == b"a\0b\0c\0d\0e\0f\0g\0h\0i\0j\0k\0l\0m\0n\0o\0p\0q\0r\0s\0"
    )


def test_a_file_is_run_at_its_working_size(tmp_path: Path) -> None:
    net = copy.deepcopy(network("paper"))
    net.card = Card(net.config, 19, size=(64, 128))
    (tmp_path / "net.fscnn").write_bytes(fscnn.encode(net))
    subject = open_subject(tmp_path / "net.fscnn")
    frames = np.stack([street_scene(96, 150, seed) for seed in range(2)])
    with torch.no_grad():
        scores = net.scores(net.preprocess(frames, size=(64, 100)))
        expected = resize(scores, (96, 150), net.config.head_align_corners).numpy()
    assert subject.working_side == 64
    assert np.abs(subject.run(frames) - expected).max() < 1e-4 * np.ptp(expected)


def test_the_file_has_mean_std_and_the_cards_ranges() -> None:
    net = network("paper")
    spans = {name: (-float(i), 0.5 + i) for i, name in enumerate(int8_inputs(net.config))}
    net.card = Card(net.config, 19, ranges=spans)
    try:
        data = fscnn.encode(net)
    finally:
        net.card = None
    assert struct.unpack("<6d", data[92:140]) == (0.485, 0.456, 0.406, 0.229, 0.224, 0.225)
    assert struct.unpack("<i", data[140:144]) == (len(spans),)
    found = struct.unpack(f"<{2 * len(spans)}d", data[148 : 148 + 16 * len(spans)])
    assert [*zip(found[::2], found[1::2], strict=True)] == [*spans.values()]


def test_a_file_of_products_in_bfloat16(tmp_path: Path) -> None:
    """Loaded so, or as the command says; it has no ranges, and runs as in Python."""
    model = fastscnn.load("camvid", device="cpu", dtype=torch.bfloat16)
    spans = {name: (0.0, 1.0) for name in int8_inputs(model.config)}
    model.card = replace(model.card, ranges=spans)
    path = tmp_path / "half.fscnn"
    assert all(row.labels == 1 for row in fscnn.export_fscnn(model, path))
    data = path.read_bytes()
    assert struct.unpack("<i", data[88:92]) == (1,)
    assert struct.unpack("<i", data[140:144]) == (0,)
    has = bool(extension.device_info()["cpu_bf16_instruction_sets"])
    assert extension.load().Network.from_file(data).precision == ("bfloat16" if has else "float32")
    assert main(["export", "camvid", "-o", str(path), "--bf16", "--force"]) == 0
    assert path.read_bytes() == data
    assert verify(path).equal


def test_bfloat16_of_other_files_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "camvid", "-o", str(tmp_path / "a.onnx"), "--bf16"]) == 2
    assert "--bf16 is for .fscnn files" in capsys.readouterr().err


def test_a_file_that_differs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another dilation around the same weights."""
    slip = fscnn.encode(network("paper"))
    place = 24 + 4 * 14
    assert slip[place] == 4
    body = bytearray(slip[24:])
    body[place - 24] = 1
    slip = slip[:12] + struct.pack("<I", zlib.crc32(body)) + slip[16:24] + body
    monkeypatch.setattr(fscnn, "encode", lambda _: bytes(slip))
    with pytest.raises(ExportError, match="differs from the model"):
        fscnn.export_fscnn(network("paper"), tmp_path / "net.fscnn")
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "camvid.fscnn"
    assert main(["export", "camvid", "-o", str(path)]) == 0
    assert "100.0000% labels equal" in capsys.readouterr().out
    assert 4e6 < path.stat().st_size < 5e6
    assert main(["export", "camvid", "-o", str(path)]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["export", "camvid", "-o", str(path), "--size", "64x64", "--force"]) == 2
    assert "--size is for .onnx and .pt2 files" in capsys.readouterr().err


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    broken = FastSCNN(3).eval()
    with torch.no_grad():
        broken.classifier.conv.bias[1] = float("nan")
    with pytest.raises(ValueError, match="no finite numbers"):
        fscnn.encode(broken)
    net = FastSCNN(3).eval()
    net.card = replace(Card(num_classes=3), ranges={"classifier.dsconv1.depthwise": (0.0, 1.0)})
    with pytest.raises(ValueError, match="int8 ranges lack"):
        fscnn.encode(net)
    with pytest.raises(ValueError, match=r"unknown ending '.fscn'"):
        fscnn.export_fscnn(net, tmp_path / "a.fscn")


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (0, 0, "classes=0"),
        (0, 2**31 - 1, "classes=2147483647"),
        (1, 7, "stem_padding=7"),
        (2, 2, "dsconv_relu=2"),
        (4, 1, "ppm_order"),
        (14, -1, "ffm_dilation=-1"),
        (15, 31, "working side 31"),
        (16, 2, "bfloat16=2"),
        (29, 5, "5 int8 ranges"),
        (30, -1, "negative length"),
        (30, 2**31 - 1, "truncated"),
        (30, 40, "class names"),
    ],
)
def test_the_reader_trusts_nothing(place: int, value: int, said: str) -> None:
    """Also where the checksum is right."""
    data = fscnn.encode(network("paper"))
    body = bytearray(data[24:])
    struct.pack_into("<i", body, 4 * place, value)
    data = data[:12] + struct.pack("<I", zlib.crc32(body)) + data[16:24] + bytes(body)
    with pytest.raises(RuntimeError, match=said):
        extension.load().Network.from_file(data)
