"""Our own files: saved, carded, converted, loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastscnn.checkpoints.card import Card
from fastscnn.checkpoints.files import CheckpointError, convert, read_checkpoint, save
from fastscnn.load import load, load_backbone
from fastscnn.network.config import PRESETS, FastSCNNConfig
from fastscnn.network.model import FastSCNN, FastSCNNClassifier

CARD = Card(
    num_classes=3,
    classes=("road", "car", "sky"),
    colors=((1, 2, 3), (4, 5, 6), (7, 8, 9)),
    size=(360, 480),
    data="CamVid",
    metrics={"miou": 0.5},
    epochs=4,
    extra={"note": "x"},
)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("aux", [False, True], ids=["plain", "aux"])
def test_own_file_keeps_weights_config_and_card(tmp_path: Path, suffix: str, aux: bool) -> None:
    model = FastSCNN(3, config=PRESETS["leftthomas"], aux=aux)
    path = tmp_path / f"own{suffix}"
    save(model, path, CARD)
    found = load(path, fused=False)
    assert (found.config, found.num_classes, found.training) == (model.config, 3, False)
    expected = Card(**{**vars(CARD), "config": model.config})
    assert found.card == expected
    assert Card.from_dict(json.loads(path.with_suffix(".json").read_text())) == expected
    for key, value in found.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert len(list(tmp_path.iterdir())) == 3


def test_half_precision_file_loads_as_float32(tmp_path: Path) -> None:
    model = FastSCNN(3)
    save(model, tmp_path / "half.safetensors", dtype=torch.float16)
    found = load(tmp_path / "half.safetensors", fused=False)
    assert (tmp_path / "half.safetensors").stat().st_size < 2.5e6
    for key, value in model.state_dict().items():
        rounded = value.half().float() if value.is_floating_point() else value
        assert torch.equal(found.state_dict()[key], rounded), key
        assert found.state_dict()[key].dtype == value.dtype
    model.classifier.conv.bias.data[0] = 1e6
    with pytest.raises(CheckpointError, match=r"classifier\.conv\.bias has values up to 1e\+06"):
        save(model, tmp_path / "large.safetensors", dtype=torch.float16)
    assert not (tmp_path / "large.safetensors").exists()


def test_an_interrupted_save_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "own.safetensors"
    save(FastSCNN(3), path)
    before = path.read_bytes()

    def interrupted(tensors: object, file: Path, metadata: object) -> None:
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(FastSCNN(3), path)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["own.json", "own.safetensors"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_classes", 0),
        ("classes", ["road"]),
        ("colors", [[0, 0, 256]] * 3),
        ("size", [480]),
        ("size", [16, 480]),
        ("metrics", 3),
        ("config", 3),
        ("format", 99),
    ],
)
def test_a_wrong_card_names_its_field(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"card {field}"):
        Card.from_dict({**CARD.to_dict(), field: value})


def test_convert_refuses_what_would_change_results(tmp_path: Path, tramac: Path) -> None:
    own = tmp_path / "paper.safetensors"
    save(FastSCNN(3), own)
    with pytest.raises(
        CheckpointError, match=r"stem_padding 1, there 0; .*ffm_dilation 4, there 1"
    ):
        convert(own, tmp_path / "out.pth", to="tramac")
    with pytest.raises(CheckpointError, match=r"mean .* there \[0.5, 0.5, 0.5\]"):
        convert(tramac, tmp_path / "out.npz", to="paddleseg")
    with pytest.raises(CheckpointError, match=r"written as \.pth or \.pt; use out\.pth"):
        convert(tramac, tmp_path / "out.npz", to="tramac")
    with pytest.raises(CheckpointError, match="expected one of fastscnn, "):
        convert(tramac, tmp_path / "out.pth", to="keras")
    with pytest.raises(FileExistsError, match="--force"):
        convert(tramac, own)
    assert not list(tmp_path.glob("out*"))
    convert(tramac, own, force=True)
    assert load(own, fused=False).config == PRESETS["tramac"]
    convert(own, tmp_path / "gluon.npz", to="gluoncv")
    assert load(tmp_path / "gluon.npz", fused=False).card.source == "gluoncv"


def test_a_card_is_not_overwritten_by_another_checkpoints(tmp_path: Path) -> None:
    """x.pth and x.safetensors have one x.json between them."""
    card = tmp_path / "x.json"
    save(FastSCNN(3), tmp_path / "x.pth", CARD)
    before = card.read_text()
    with pytest.raises(FileExistsError, match=r"x\.json is the card of x\.pth"):
        save(FastSCNN(4), tmp_path / "x.safetensors")
    save(FastSCNN(4), tmp_path / "other.safetensors")
    with pytest.raises(FileExistsError, match=r"x\.json .*--force"):
        convert(tmp_path / "other.safetensors", tmp_path / "x.safetensors")
    assert card.read_text() == before
    assert not (tmp_path / "x.safetensors").exists()
    convert(tmp_path / "x.pth", tmp_path / "x.safetensors")  # the same card serves both
    save(FastSCNN(3), tmp_path / "x.pth", CARD)
    assert card.read_text() == before
    convert(tmp_path / "other.safetensors", tmp_path / "x.safetensors", force=True)
    assert json.loads(card.read_text())["num_classes"] == 4
    save(FastSCNN(5), tmp_path / "other.safetensors")  # one's own card is replaced


def test_shipped_weights_are_converted_by_name(tmp_path: Path) -> None:
    convert("camvid", tmp_path / "theirs.pth")
    ours, theirs = load("camvid", fused=False), load(tmp_path / "theirs.pth", fused=False)
    assert theirs.card == ours.card
    for key, value in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[key], value), key


def test_fine_tuning_takes_all_but_the_last_layer(tmp_path: Path, tramac: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has 5 classes, but num_classes=3 .*load_backbone"):
        load(tramac, num_classes=3)
    model = FastSCNN(3, config=PRESETS["tramac"])
    assert load_backbone(model, tramac) == ["classifier.conv.weight", "classifier.conv.bias"]
    state = read_checkpoint(tramac).state
    for key, value in model.state_dict().items():
        assert key.startswith("classifier.conv.") or torch.equal(value, state[key]), key
    with pytest.raises(CheckpointError, match="stem_padding 0, there 1"):
        load_backbone(FastSCNN(3), tramac)


def test_pretrained_classifier_gives_its_backbone(tmp_path: Path) -> None:
    classifier = FastSCNNClassifier(100)
    save(classifier, tmp_path / "imagenet.safetensors")
    model = FastSCNN(3)
    kept = load_backbone(model, tmp_path / "imagenet.safetensors")
    assert {key.split(".")[0] for key in kept} == {"feature_fusion", "classifier"}
    for key, value in classifier.state_dict().items():
        assert key.startswith("linear.") or torch.equal(value, model.state_dict()[key]), key
    with pytest.raises(CheckpointError, match="load_backbone"):
        load(tmp_path / "imagenet.safetensors")


def test_load_options(tramac: Path) -> None:
    fresh = load(None, fused=False, device="cpu")
    assert (fresh.num_classes, fresh.config) == (19, FastSCNNConfig.paper())
    assert load(None, device="cpu", num_classes=3).classifier.conv.out_channels == 3
    model = load(tramac, fused=False, device="cpu", dtype=torch.float16, num_classes=5)
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    assert not any(m.training for m in (*fresh.modules(), *model.modules()))
    assert load(None, fused=False, device="cpu", num_classes=7).num_classes == 7
    with pytest.raises(ValueError, match="expected one of cpu"):
        load(None, fused=False, device="cuda:99")
    with pytest.raises(ValueError, match="'gpu' cannot be used"):
        load(None, fused=False, device="gpu")
    with pytest.raises(ValueError, match=r"dtype=torch\.int8: expected torch\.float32"):
        load(None, fused=False, dtype=torch.int8)
