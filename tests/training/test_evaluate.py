"""Counting, and what `fastscnn evaluate` writes."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from training_data import (
    command,
    one_thread,  # noqa: F401 (used by every test)
    write_folder,
)

from fastscnn import CITYSCAPES, Classes, FusedFastSCNN, load
from fastscnn.checkpoints.card import Card
from fastscnn.checkpoints.files import save
from fastscnn.network.segment import torch_threads
from fastscnn.training import plots
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
    result = Result(Classes.numbered(5), ours)
    assert result.miou == pytest.approx(float(jaccard(labels, truth)))
    right = metrics.MulticlassAccuracy(5, ignore_index=255, average="micro")
    assert result.pixel_accuracy == pytest.approx(float(right(labels, truth)))


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
    assert result.pixel_accuracy == 7 / 8
    lines = [line.split() for line in result.table().splitlines()]
    assert lines[1:4] == [
        ["class", "0", "75.00", "50.00"],  # shares are of the truth
        ["class", "1", "80.00", "50.00"],
        ["class", "2", "-", "0.00"],
    ]
    assert lines[-2:] == [["class", "mIoU", "77.50"], ["pixel", "accuracy", "87.50"]]


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
    assert "category mIoU   55.56" in result.table()
    assert sorted(c for _, members in CITYSCAPES.categories for c in members) == [*range(19)]
    assert dict(CITYSCAPES.categories)["vehicle"] == (13, 14, 15, 16, 17, 18)


def test_evaluate_adds_up_whole_frames() -> None:
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    masks = torch.zeros(2, 5, 7, dtype=torch.uint8)
    masks[1] = 2

    def predict(frame: torch.Tensor) -> torch.Tensor:
        assert any(torch.equal(frame, image.permute(1, 2, 0)) for image in images)
        return torch.full((5, 7), 2, dtype=torch.uint8)

    result = evaluate(predict, zip(images, masks, strict=True), Classes.numbered(3))
    assert result.confusion.tolist() == [[0, 0, 35], [0, 0, 0], [0, 0, 35]]


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


def evaluated(world: Path, out: Path, *options: object) -> dict[str, Any]:
    """What `fastscnn evaluate --json` writes."""
    file = out / "new" / "r.json"
    argv = ("--weights", world / "w.safetensors", "--json", file, "--threads", 1, *options)
    assert command("evaluate", world / "own", *argv) == 0
    numbers: dict[str, Any] = json.loads(file.read_text())
    return numbers


def expected(
    world: Path, size: tuple[int, int], images: tuple[int, ...], zero_skip: bool = False
) -> tuple[float, float]:
    """mIoU and pixel accuracy by torchmetrics, of labels of the plain network."""
    metrics = pytest.importorskip("torchmetrics.classification")
    model = load(world / "w.safetensors", fused=False, device="cpu")
    model.feature_fusion.zero_skip = zero_skip
    jaccard = metrics.MulticlassJaccardIndex(3, ignore_index=255)
    right = metrics.MulticlassAccuracy(3, ignore_index=255, average="micro")
    for i in images:
        frame = np.array(Image.open(world / f"own/val/images/{i:03d}.png"))
        truth = torch.from_numpy(np.array(Image.open(world / f"own/val/masks/{i:03d}.png")))
        labels = torch.from_numpy(model.segment(frame, size=size))
        jaccard.update(labels, truth)
        right.update(labels, truth)
    return float(jaccard.compute()), float(right.compute())


CASES: dict[str, tuple[tuple[int, int], tuple[int, ...]]] = {
    "": ((64, 96), (0, 1, 2, 3)),
    "--size 48x64": ((48, 64), (0, 1, 2, 3)),
    "--input-scale 0.5": ((32, 48), (0, 1, 2, 3)),
    "--size 128x192 --input-scale 0.25": ((32, 48), (0, 1, 2, 3)),
    "--limit 2": ((64, 96), (0, 2)),
    "--zero-skip": ((64, 96), (0, 1, 2, 3)),
}


@pytest.mark.parametrize("options", CASES)
def test_the_numbers_are_those_of_the_plain_network(
    world: Path, tmp_path: Path, options: str
) -> None:
    size, images = CASES[options]
    numbers = evaluated(world, tmp_path, *options.split())
    skip = "--zero-skip" in options
    miou, accuracy = expected(world, size, images, skip)
    assert numbers["miou"] == pytest.approx(miou, abs=3e-4)
    assert numbers["pixel_accuracy"] == pytest.approx(accuracy, abs=3e-4)
    assert (numbers["images"], numbers["input_sizes"]) == (len(images), [f"{size[0]}x{size[1]}"])
    assert numbers["zero_skip"] == skip
    if options:
        assert abs(miou - expected(world, *CASES[""])[0]) > 1e-3  # or nothing was shown


def test_the_table_says_what_json_says(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = evaluated(world, tmp_path)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    masks = [np.array(Image.open(p)) for p in (world / "own/val/masks").iterdir()]
    for c, name in enumerate(("ground", "band", "box")):
        share = np.mean([m == c for m in masks])
        assert [name, f"{100 * numbers['iou'][name]:.2f}", f"{100 * share:.2f}"] in lines
    assert ["class", "mIoU", f"{100 * numbers['miou']:.2f}"] in lines
    assert ["pixel", "accuracy", f"{100 * numbers['pixel_accuracy']:.2f}"] in lines


def test_json_that_cannot_be_written_leaves_the_one_before(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated(world, tmp_path)
    file = tmp_path / "new" / "r.json"
    before = file.read_bytes()

    def full(path: Path, text: str, *_: object) -> None:
        path.write_bytes(text[:9].encode())
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        evaluated(world, tmp_path)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


# Pictures, by what is drawn


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are written from now on."""
    pytest.importorskip("matplotlib")
    made: list[Any] = []
    write = plots._write

    def keep(figure: Any, path: Path) -> Path:
        made.append(figure)
        return write(figure, path)

    monkeypatch.setattr(plots, "_write", keep)
    return made


def test_pictures_of_a_result(world: Path, tmp_path: Path, figures: list[Any]) -> None:
    """Shares of the true class's pixels; bars from the best class to the worst."""
    result = Result(Classes.numbered(3), np.array([[30, 10, 0], [0, 40, 0], [0, 19, 1]]))
    plots.plot_result(result, tmp_path)
    (confused,), (bars,) = (figure.axes for figure in figures)
    found = {tuple(map(int, t.get_position())): t.get_text() for t in confused.texts}
    assert found == {(0, 0): "75", (1, 0): "25", (1, 1): "100", (1, 2): "95", (2, 2): "5"}
    assert [t.get_text() for t in bars.get_yticklabels()] == ["class 0", "class 1", "class 2"]
    widths = [bar.get_width() for bar in bars.patches]
    assert widths == pytest.approx([75, 100 * 40 / 69, 5])
    assert [t.get_text() for t in bars.texts] == ["75.0", "58.0", "5.0"]
    assert list(bars.lines[0].get_xdata()) == [100 * result.miou] * 2
    for name in ("confusion.png", "classes.png"):
        with Image.open(tmp_path / name) as im:
            im.load()


def test_learning_curves_of_two_runs(tmp_path: Path, figures: list[Any]) -> None:
    rows = {
        "a": "epoch,step,loss,miou\n1,10,0.9,0.25\n2,20,0.5,0.5\n",
        "b": "epoch,step,loss,miou\n1,5,0.8,\n2,10,0.6,0.75\n",
    }
    for name, text in rows.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.csv").write_text(text)
    runs = [tmp_path / name for name in rows]
    assert command("evaluate", "--curves", *runs, "--plot", tmp_path / "out") == 0
    ((over_steps, over_epochs, loss),) = (figure.axes for figure in figures)
    drawn = [
        {line.get_label(): [*map(tuple, line.get_xydata().tolist())] for line in axes.lines}
        for axes in (over_steps, over_epochs, loss)
    ]
    assert drawn == [
        {"a": [(10, 25), (20, 50)], "b": [(10, 75)]},
        {"a": [(1, 25), (2, 50)], "b": [(2, 75)]},
        {"a": [(1, 0.9), (2, 0.5)], "b": [(1, 0.8), (2, 0.6)]},
    ]
    with Image.open(tmp_path / "out/curves.png") as im:
        assert im.format == "PNG"


def test_a_picture_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = pytest.importorskip("matplotlib.figure")
    path = tmp_path / "curves.png"
    path.write_bytes(b"before")
    (tmp_path / "log.csv").write_text("epoch,step,loss,miou\n1,10,0.9,0.25\n")

    def full(self: Any, path: Path, **_: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(figure.Figure, "savefig", full)
    with pytest.raises(OSError, match="No space left"):
        plots.plot_curves([tmp_path], path)
    assert path.read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 2


def test_evaluate_refuses_what_does_not_fit(world: Path, tmp_path: Path) -> None:
    save(FusedFastSCNN(5), tmp_path / "five.safetensors")
    with pytest.raises(ValueError, match="has 5 classes, but own has 3"):
        command("evaluate", world / "own", "--weights", tmp_path / "five.safetensors")
    with pytest.raises(ValueError, match="--input-scale 0"):
        command("evaluate", world / "own", "--input-scale", 0)
    with pytest.raises(ValueError, match="needs DATA"):
        command("evaluate")
