"""Counting, and what `fastscnn evaluate` writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from training_data import (
    command,
    one_thread,  # noqa: F401 (used by every test)
    write_folder,
)

from fastscnn import CITYSCAPES, Classes, FusedFastSCNN
from fastscnn.checkpoints.card import Card
from fastscnn.checkpoints.files import save
from fastscnn.network.segment import torch_threads
from fastscnn.training.data import open_data
from fastscnn.training.evaluate import Result, confusion, evaluate


def test_counts_are_those_of_torchmetrics() -> None:
    metrics = pytest.importorskip("torchmetrics.classification")
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 6, (3, 40, 50), generator=generator)
    truth[truth == 5] = 255
    labels = torch.randint(0, 5, (3, 40, 50), generator=generator)
    counter = metrics.MulticlassConfusionMatrix(5, ignore_index=255)
    theirs = counter(labels, truth).numpy()
    ours = confusion(truth.numpy().astype(np.uint8), labels.numpy().astype(np.uint8), 5)
    assert np.array_equal(ours, theirs)
    jaccard = metrics.MulticlassJaccardIndex(5, ignore_index=255)
    assert Result(Classes.numbered(5), ours).miou == pytest.approx(float(jaccard(labels, truth)))


def test_labels_beyond_the_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="labels up to 7: expected class indices below 5"):
        confusion(np.zeros((2, 2), np.uint8), np.full((2, 2), 7, np.uint8), 5)


def test_absent_classes_do_not_count() -> None:
    counts = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    result = Result(Classes.numbered(3), counts)
    assert result.iou[:2] == pytest.approx([3 / 4, 4 / 5])
    assert np.isnan(result.iou[2])
    assert result.miou == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert result.to_dict()["iou"]["class 2"] is None


def test_categories_merge_their_classes() -> None:
    truth = np.array([[0, 1, 13, 14, 10, 255]], np.uint8)
    labels = np.array([[1, 0, 14, 13, 0, 3]], np.uint8)  # right category but for the sky
    result = Result(CITYSCAPES, confusion(truth, labels, 19))
    assert result.miou == 0
    values = result.category_iou
    assert values["flat"] == pytest.approx(2 / 3)
    assert values["vehicle"] == 1
    assert values["sky"] == 0
    assert result.category_miou == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert "category mIoU" in result.table()


def test_evaluate_passes_whole_frames() -> None:
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    mask = torch.randint(0, 3, (5, 7), dtype=torch.uint8)

    def predict(frame: torch.Tensor) -> torch.Tensor:
        assert torch.equal(frame, image.permute(1, 2, 0))
        return mask

    assert evaluate(predict, [(image, mask)], Classes.numbered(3)).miou == 1


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn data and a checkpoint of random weights."""
    root = tmp_path_factory.mktemp("evaluate")
    write_folder(root / "own")
    torch.manual_seed(0)
    model = FusedFastSCNN(3).train()
    data = open_data(root / "own", "train")
    x = torch.stack([data[i][0] for i in range(8)]).float() / 128 - 1
    with torch.no_grad(), torch_threads(1):
        for _ in range(30):
            model.scores(x)  # settles batch norm's statistics
        scores = model.eval().scores(x)
        model.classifier.conv.bias -= scores.mean((0, 2, 3))  # so that all classes are predicted
    save(model, root / "w.safetensors", Card(num_classes=3, size=(64, 96)))
    return root


def test_evaluate_writes_table_json_and_plots(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    weights = world / "w.safetensors"
    code = command(
        "evaluate", world / "own", "--weights", weights, "--json", out / "r.json", "--plot", out,
        "--threads", 1,
    )  # fmt: skip
    text = capsys.readouterr().out
    assert code == 0
    assert all(word in text for word in ("ground", "class mIoU", "pixel accuracy", "64x96"))
    numbers = json.loads((out / "r.json").read_text())
    assert numbers["images"] == 4
    assert f"{100 * numbers['miou']:.2f}" in text
    for name in ("confusion.png", "classes.png"):
        assert (out / name).stat().st_size > 5000


def test_input_scale_and_zero_skip_change_the_network_only(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def miou(*options: object) -> tuple[float, list[str]]:
        file = tmp_path / "r.json"
        argv = ("--weights", world / "w.safetensors", "--json", file, "--threads", 1, *options)
        assert command("evaluate", world / "own", *argv) == 0
        numbers = json.loads(file.read_text())
        return numbers["miou"], numbers["input_sizes"]

    full, half, none = miou(), miou("--input-scale", 0.5), miou("--zero-skip")
    assert (full[1], half[1], none[1]) == (["64x96"], ["32x48"], ["64x96"])
    assert len({full[0], half[0], none[0]}) == 3


def test_evaluate_refuses_what_does_not_fit(world: Path, tmp_path: Path) -> None:
    save(FusedFastSCNN(5), tmp_path / "five.safetensors")
    with pytest.raises(ValueError, match="has 5 classes, but own has 3"):
        command("evaluate", world / "own", "--weights", tmp_path / "five.safetensors")
    with pytest.raises(ValueError, match="--input-scale 0"):
        command("evaluate", world / "own", "--input-scale", 0)
    with pytest.raises(ValueError, match="needs DATA"):
        command("evaluate")
