"""Sequences of images: held out together, drawn equally often, evaluated apart."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_data import command, tiny, trainer, write_folder

from fastscnn.checkpoints.card import Card
from fastscnn.checkpoints.files import save
from fastscnn.classes import Classes
from fastscnn.inference.fused import FusedFastSCNN
from fastscnn.load import load
from fastscnn.training.data import open_data
from fastscnn.training.evaluate import Result, confusion
from fastscnn.training.loading import Order


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Training images 0 to 5 are of sequence A, 6 and 7 of B; validation's of B and C."""
    data = write_folder(tmp_path / "own")
    names = {"train": "AAAAAABB", "val": "BBCC"}
    for split, letters in names.items():
        for i, letter in enumerate(letters):
            for kind in ("images", "masks"):
                file = data / split / kind / f"{i:03d}.png"
                file.rename(file.with_name(f"{letter}_{split}{i}.png"))
    return data


def files(data: object) -> list[str]:
    return [p.image.name for p in data.pairs]  # type: ignore[attr-defined]


def test_a_sequence_is_named_at_the_beginning_of_the_image(root: Path) -> None:
    data = open_data(root, "train")
    assert data.sequences("[^_]+") == {"A": [0, 1, 2, 3, 4, 5], "B": [6, 7]}
    with pytest.raises(ValueError, match=r"sequence 'A' does not match the name B_train6\.png"):
        data.sequences("A")


def test_whole_sequences_are_held_out_of_both_splits(root: Path) -> None:
    everything = open_data(root, "train").joined(open_data(root, "val"))
    train, held = everything.divided(["B"], "[^_]+")
    assert files(held) == ["B_train6.png", "B_train7.png", "B_val0.png", "B_val1.png"]
    assert sorted(files(train) + files(held)) == sorted(files(everything))
    with pytest.raises(ValueError, match=r"no sequence 'D'; there are A \(6\), B \(4\), C \(2\)"):
        everything.divided(["B", "D"], "[^_]+")


def test_train_validates_on_what_is_held_out(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("train", root, "-o", tmp_path / "run", "--epochs", 1, "--batch", 4, "--crop", "64x96",
            "--workers", 0, "--threads", 1, "--overlays-every", 1)  # fmt: skip
    assert command(*argv, "--hold-out", "B,C") == 0
    assert "6 training, 6 validation images" in capsys.readouterr().out
    drawn = {p.name[0] for p in (tmp_path / "run/overlays/epoch_0001").iterdir()}
    assert drawn == {"B", "C"}
    with pytest.raises(ValueError, match=r"other training images \(6, now 8\)"):
        command(*argv, "--hold-out", "B")
    with pytest.raises(ValueError, match="leaves no image to train on"):
        command(*argv, "--hold-out", "A,B,C")


def test_groups_are_drawn_equally_often() -> None:
    order = Order(60, 10, 8, 0, groups=[range(50), range(50, 60)])
    steps = [order.at(s) for s in range(order.steps_per_epoch)]
    drawn = Counter(index for step in steps for _, index in step)
    assert sum(n for i, n in drawn.items() if i < 50) == 30
    assert [drawn[i] for i in range(50, 60)] == [3] * 10
    assert max(drawn[i] for i in range(50)) == 1
    keys = [key for step in range(48) for key in order.at(step)]
    assert len(keys) == len(set(keys)) == 480, "an image that comes again is augmented anew"


def test_groups_continue_and_split_like_one() -> None:
    groups = [range(9), range(9, 20)]
    whole = list(Order(20, 4, 3, 7, groups=groups))
    rest = Order(20, 4, 3, 7, groups=groups)
    rest.first_step = 6
    assert list(rest) == whole[6:]
    halves = [list(Order(20, 4, 3, 7, rank, 2, groups)) for rank in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*halves, strict=True)] == [sorted(s) for s in whole]


def test_a_balanced_recipe_balances_sequences(root: Path, tmp_path: Path) -> None:
    assert trainer(tiny(), root, tmp_path / "a").order.groups == [list(range(8))]
    balanced = trainer(tiny(balance=True), root, tmp_path / "b")
    assert balanced.order.groups == [[0, 1, 2, 3, 4, 5], [6, 7]]
    drawn = Counter(i >= 6 for step in range(6) for _, i in balanced.order.at(step))
    assert drawn == {False: 12, True: 12}


def test_evaluate_counts_sequences_and_gammas_apart(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = FusedFastSCNN(3).eval()
    with torch.no_grad():
        x = open_data(root, "val")[0][0][None].float() / 128 - 1
        model.classifier.conv.bias -= model.scores(x).mean((0, 2, 3))
    save(model, tmp_path / "w.safetensors", Card(num_classes=3, size=(64, 96)))

    def numbers(*options: object) -> dict[str, object]:
        argv = ("--weights", tmp_path / "w.safetensors", "--threads", 1)
        assert command("evaluate", root, *argv, "--json", tmp_path / "r.json", *options) == 0
        found: dict[str, object] = json.loads((tmp_path / "r.json").read_text())
        return found

    def miou(gamma: float) -> float:
        """Of sequence B of both splits, its frames raised to a power by NumPy."""
        total = np.zeros((3, 3), np.int64)
        for path in sorted(root.glob("*/images/B_*.png")):
            frame = (255 * (np.array(Image.open(path)) / 255) ** gamma).round().astype(np.uint8)
            truth = np.array(Image.open(path.parents[1] / "masks" / path.name))
            labels = load(tmp_path / "w.safetensors", device="cpu").segment(frame)
            total += confusion(truth, labels, 3)
        return Result(Classes.numbered(3), total).miou

    both = numbers("--split", "train,val", "--sequences", "B", "--gamma", 0.3, 1)
    assert both["images"] == 4
    by_gamma = both["miou_by_gamma"]
    assert by_gamma == {g: pytest.approx(miou(float(g)), abs=1e-4) for g in ("0.3", "1")}
    assert by_gamma["1"] == both["miou"]  # type: ignore[index]
    assert abs(by_gamma["1"] - by_gamma["0.3"]) > 1e-3  # type: ignore[index]
    assert f"0.3: {100 * by_gamma['0.3']:.2f} %" in capsys.readouterr().out  # type: ignore[index]
    assert numbers("--sequences", "C")["images"] == 2
    assert numbers("--sequences", "B_val0", "--sequence", "[^.]+")["images"] == 1
    with pytest.raises(ValueError, match="--gamma"):
        numbers("--gamma", 0)
    with pytest.raises(ValueError, match="no sequence 'A'"):
        numbers("--sequences", "A")
