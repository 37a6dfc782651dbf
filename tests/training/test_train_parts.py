"""The parts of training: recipes, losses, schedule, averaged weights, the run's folder."""

from __future__ import annotations

import errno
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_data import (
    one_thread,  # noqa: F401 (used by every test)
    tiny,
    trainer,
    write_folder,
)

from fastscnn import FastSCNN
from fastscnn.training.losses import Losses
from fastscnn.training.optimize import learning_rate, parameter_groups, update_average
from fastscnn.training.progress import Progress
from fastscnn.training.recipe import Recipe
from fastscnn.training.report import Report
from fastscnn.training.run_folder import RunFolder, read_log

# Recipes


def test_every_recipe_is_read_and_the_papers_values_are_the_defaults() -> None:
    assert set(Recipe.names()) >= {
        "camvid", "cityscapes", "cityscapes-coarse", "imagenet-pretrain", "own-masks",
    }  # fmt: skip
    paper = Recipe()
    assert (paper.batch, paper.lr, paper.power, paper.momentum) == (12, 0.045, 0.9, 0.9)
    assert (paper.weight_decay, paper.aux_weight, paper.epochs) == (4e-5, 0.4, 1000)
    assert (paper.scale, paper.flip, paper.crop) == ((0.5, 2.0), True, (1024, 2048))
    cityscapes = Recipe.read("cityscapes")
    assert {d.split()[0] for d in cityscapes.differences(paper)} == {"amp"}
    assert Recipe.read("camvid").size == (720, 960)


def test_changes_come_as_values_or_as_texts() -> None:
    changes = {"crop": "64x96", "scale": "0.5,1", "flip": False, "lr": 1, "size": []}
    recipe = Recipe.read("camvid", changes)
    assert (recipe.crop, recipe.scale, recipe.flip) == ((64, 96), (0.5, 1.0), False)
    assert (recipe.lr, recipe.size, recipe.batch) == (1.0, (), 8)
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_recipes_differ_in_all_but_how_often_they_validate() -> None:
    one = tiny(epochs=2, lr=0.5, val_every=1)
    assert one.differences(tiny(epochs=2, lr=0.5, val_every=7)) == []
    assert one.differences(tiny(epochs=3, lr=0.5)) == ["epochs 2, there 3"]
    assert one.differences(tiny(epochs=2, lr=0.25, seed=1)) == [
        "lr 0.5, there 0.25",
        "seed 0, there 1",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "unknown key 'epoch'; did you mean 'epochs'"),
        ("epochs = 2.5", "epochs=2.5: expected a whole number"),
        ("lr = true", "lr=True: expected a number"),
        ("flip = 1", "flip=1: expected true or false"),
        ("crop = [64]", r"crop=\[64\]: expected two numbers"),
        ("crop = [16, 64]", r"crop=\(16, 64\): expected height and width of at least 32"),
        ('amp = "fp8"', "amp='fp8': expected 'none' or 'bf16' or 'fp16'"),
        ("batch = 1", "batch=1: expected 2 or more"),
        ("ema = 1.0", "ema=1.0: expected 0 or more and below 1"),
        ("epochs = ", "cannot be read as TOML"),
    ],
)
def test_a_wrong_recipe_is_refused_by_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"mine\.toml: .*{message}"):
        Recipe.read(path)


def test_an_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(FileNotFoundError, match="no recipe 'camvit': expected camvid, cityscapes"):
        Recipe.read("camvit")


# Losses


def _batch(classes: int = 3) -> tuple[FastSCNN, Tensor, Tensor]:
    torch.manual_seed(0)
    model = FastSCNN(classes, aux=True).eval()
    x, target = torch.randn(2, 3, 64, 96), torch.randint(0, classes, (2, 64, 96)).byte()
    target[0, :20] = 255
    return model, x, target


def _reference(model: FastSCNN, x: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Means over the pixels as plain PyTorch says them."""
    scores = model.scores_aux(x)
    logits = F.interpolate(scores[0], (64, 96), mode="bilinear", align_corners=False)
    loss = F.cross_entropy(logits, target.long(), ignore_index=255, **options)
    for aux in scores[1:]:
        small = F.interpolate(target[:, None].float(), aux.shape[2:], mode="nearest-exact")
        loss = loss + 0.4 * F.cross_entropy(aux, small[:, 0].long(), ignore_index=255, **options)
    return loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_are_the_means_over_the_labelled_pixels(smoothing: float) -> None:
    model, x, target = _batch()
    ours = Losses(model, label_smoothing=smoothing)(x, target)
    assert float(ours.detach()) == pytest.approx(
        float(_reference(model, x, target, label_smoothing=smoothing).detach()), rel=1e-5
    )


def test_class_weights_weigh_the_mean() -> None:
    model, x, target = _batch()
    weights = torch.tensor([0.5, 1.0, 4.0])
    ours = Losses(model, class_weights=weights)(x, target)
    assert float(ours.detach()) == pytest.approx(
        float(_reference(model, x, target, weight=weights).detach()), rel=1e-5
    )


def test_nothing_labelled_is_no_loss() -> None:
    model, x, target = _batch()
    loss = Losses(model)(x, torch.full_like(target, 255))
    loss.backward()
    assert float(loss.detach()) == 0
    gradient = model.classifier.conv.weight.grad
    assert gradient is not None
    assert float(gradient.abs().max()) == 0


def test_ohem_counts_the_hardest_pixels_only() -> None:
    model, x, target = _batch()
    ours = Losses(model, aux_weight=0.0, ohem=0.25)(x, target)
    pixels = F.cross_entropy(model(x), target.long(), ignore_index=255, reduction="none")
    labelled = pixels[target != 255]
    hardest = labelled.sort(descending=True)[0][: len(labelled) // 4]
    assert float(ours.detach()) == pytest.approx(float(hardest.mean().detach()), rel=1e-5)


def test_no_weight_decay_on_depthwise_convolutions() -> None:
    model = FastSCNN(3, aux=True)
    decayed, free = parameter_groups(model, 4e-5)
    names = {id(p): n for n, p in model.named_parameters()}
    assert free["weight_decay"] == 0
    assert len(free["params"]) == 2 + 9 + 1 + 2  # stem's DSConvs, bottlenecks, fusion, classifier
    assert all(names[id(p)].endswith("depthwise.conv.weight") for p in free["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))


# Schedule and averages


def test_learning_rate_rises_and_falls() -> None:
    recipe = tiny(lr=0.5)
    assert learning_rate(recipe, 0, 20) == 0.5
    assert learning_rate(recipe, 10, 20) == pytest.approx(0.5 * 0.5**0.9)
    warm = tiny(lr=0.5, warmup_steps=5)
    assert learning_rate(warm, 0, 20) == pytest.approx(0.1)
    assert learning_rate(warm, 10, 20) == learning_rate(recipe, 10, 20)


def test_the_average_moves_by_its_decay() -> None:
    torch.manual_seed(0)
    model, average = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    model.weight.data.normal_()
    model.running_mean.normal_()  # type: ignore[union-attr]
    model.num_batches_tracked.fill_(7)  # type: ignore[union-attr]
    before = average.weight.detach().clone()
    update_average(average, model, 0.9, step=100_000)
    assert torch.allclose(average.weight, 0.9 * before + 0.1 * model.weight)
    assert torch.allclose(average.running_mean, 0.1 * model.running_mean)  # type: ignore[operator, arg-type]
    assert average.num_batches_tracked == 7


@pytest.mark.parametrize(("step", "kept"), [(0, 1 / 10), (8, 9 / 18), (71, 72 / 81), (200, 0.9)])
def test_the_average_follows_faster_in_the_first_steps(step: int, kept: float) -> None:
    average, model = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.ones_(average.weight)
    nn.init.zeros_(model.weight)
    update_average(average, model, 0.9, step)
    assert float(average.weight.detach()) == pytest.approx(kept)


# What a person reads


def test_progress_counts_each_epoch_by_itself() -> None:
    progress = Progress()
    for epoch, (took, waited, loss) in enumerate([(2.0, 1.0, 0.75), (4.0, 0.5, 0.25)], 1):
        for _ in range(2):
            progress.count(took, waited)
            progress.loss_sum += loss
            progress.losses += 1
        progress.finish_epoch(epoch, 4, 0.5, {"miou": 0.25}, 3.0)
    common = {"lr": 0.5, "miou": 0.25, "skipped": 0}
    assert progress.rows == [
        {"epoch": 1, "step": 2, "images": 8, "loss": 0.75, "images_per_second": 2.0,
         "data_wait": 0.5, "seconds": 7.0, **common},
        {"epoch": 2, "step": 4, "images": 16, "loss": 0.25, "images_per_second": 1.0,
         "data_wait": 0.125, "seconds": 11.0, **common},
    ]  # fmt: skip
    assert progress.total_seconds == 18


def test_a_line_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(tiny(epochs=4), steps_per_epoch=2, shown=True)
    row = {"epoch": 1, "loss": 0.5, "skipped": 2, "images_per_second": 12.5, "data_wait": 0.25}
    report.epoch(row, {"miou": 0.5, "pixel_accuracy": 0.75}, 0.5, 3, 600.0)
    report.epoch({**row, "epoch": 2}, {"miou": 0.25}, 0.5, 0, 1200.0)
    report.epoch({**row, "epoch": 4, "skipped": 0}, {}, 0.5, 0, 4800.0)
    speed = "12.5 images/s, 25 % of the time waiting for data"
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/4  loss 0.5000  mIoU 50.00 %  pixel accuracy 75.00 %  best so far  "
        f"3 validation files unreadable  2 training files skipped  {speed}  30 min left",
        "epoch 2/4  loss 0.5000  mIoU 25.00 %  (best 50.00 %)  2 training files skipped  "
        f"{speed}  20 min left",
        f"epoch 4/4  loss 0.5000  {speed}  1 h 20 min in all",
    ]


def test_the_pace_is_the_median_without_the_first_steps(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = Report(tiny(epochs=50), steps_per_epoch=2, shown=True)
    for step, took in enumerate([90, 90, 90, 2, 3, 1, 2, 50], 1):
        report.step(step, 0.5, 0.1, took, 0.0)
    assert "pace     2 s a step: 3 min to go" in capsys.readouterr().out


# The folder


def test_a_file_in_the_way_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file is a file: expected a folder"):
        RunFolder(tmp_path / "file").prepare(1)
    with pytest.raises(OSError, match=r"cannot be written .*choose another --out"):
        RunFolder(tmp_path / "file" / "run").prepare(1)


def test_too_little_space_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 5_000_000))
    data = write_folder(tmp_path / "own")
    with pytest.raises(OSError, match=r"5 MB free, but the run's checkpoints need \d+ MB"):
        trainer(tiny(), data, tmp_path / "run").run()


def test_a_disk_that_fills_up_leaves_the_state_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    folder.write_state({"recipe": {}, "progress": {}, "x": torch.ones(3)})
    before = folder.state.read_bytes()

    def full(state: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"last\.pth cannot be written \(No space left"):
        folder.write_state({"x": torch.zeros(3)})
    assert folder.state.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pth"]


def test_a_log_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_log([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25, "miou": 0.75}])
    before = (tmp_path / "log.csv").read_bytes()
    assert before == b"epoch,loss,miou\r\n1,0.5,\r\n2,0.25,0.75\r\n"
    assert read_log(tmp_path) == [
        {"epoch": 1, "loss": 0.5},
        {"epoch": 2, "loss": 0.25, "miou": 0.75},
    ]

    class Full:
        def __str__(self) -> str:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        folder.write_log([{"epoch": 1}, {"epoch": Full()}])
    assert (tmp_path / "log.csv").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["log.csv"]


def test_a_damaged_or_foreign_state_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.state.write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(ValueError, match=r"last\.pth cannot be read"):
        folder.read_state(torch.device("cpu"))
    torch.save({"model": {}}, folder.state)
    with pytest.raises(ValueError, match="no state of a training run"):
        folder.read_state(torch.device("cpu"))
