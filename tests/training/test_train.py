"""Whole training runs on drawn data: learning, resuming, bad input."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from training_data import (
    command,
    environment,
    one_thread,  # noqa: F401 (used by every test)
    read_state,
    tiny,
    trainer,
    write_folder,
    write_image_folders,
)

from fastscnn import FusedFastSCNN, load, overlay
from fastscnn.checkpoints.files import read_checkpoint
from fastscnn.training.tasks import Score
from fastscnn.training.train import Trainer


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("drawn") / "own")


def tensors(value: Any, name: str = "") -> dict[str, Tensor]:
    """All tensors in nested dicts and lists, by path."""
    if isinstance(value, Tensor):
        return {name: value}
    if not isinstance(value, (dict, list)):
        return {name: torch.tensor(float(value or 0))}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: t for key, v in items for k, t in tensors(v, f"{name}/{key}").items()}


def assert_same_state(one: dict[str, Any], other: dict[str, Any]) -> None:
    for part in ("model", "average", "optimizer", "scaler"):
        a, b = tensors(one[part] or {}), tensors(other[part] or {})
        assert a.keys() == b.keys()
        differ = [k for k in a if not torch.equal(a[k], b[k])]
        assert not differ, f"{part}: {len(differ)} of {len(a)} tensors differ, first {differ[0]}"


# Learning


def test_a_run_learns_and_keeps_what_it_should(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "run"
    argv = ("--recipe", "camvid", "--epochs", 8, "--batch", 4, "--crop", "64x96")
    options = ("--size", "64x96", "--val-every", 4, "--workers", 0, "--threads", 1, "--plot")
    assert command("train", data, "-o", out, *argv, *options, "--overlays-every", 4) == 0
    rows = list(csv.DictReader((out / "log.csv").open()))
    assert [r["epoch"] for r in rows] == [str(i) for i in range(1, 9)]
    assert float(rows[-1]["loss"]) < 0.6 * float(rows[0]["loss"])
    assert float(rows[-1]["miou"]) > 0.5
    checkpoint = read_checkpoint(out / "best.safetensors")
    card = checkpoint.card
    assert (card.classes, card.size) == (("ground", "band", "box"), (64, 96))
    assert card.recipe["batch"] == 4
    assert card.metrics["miou"] == max(float(r["miou"]) for r in rows if r["miou"])
    assert Image.open(out / "overlays/epoch_0008/000.png").size == (192, 64)
    assert Image.open(out / "curves.png").format == "PNG"
    model = load(out / "best.safetensors", device="cpu")
    frame = np.array(Image.open(data / "val/images/000.png"))
    assert (model.segment(frame) == np.array(Image.open(data / "val/masks/000.png"))).mean() > 0.7


def test_pictures_show_the_truth_left_and_the_prediction_right(data: Path, tmp_path: Path) -> None:
    run = trainer(tiny(), data, tmp_path / "run")
    model = run.learner.evaluated()
    for path in run.task.pictures(model, tmp_path / "pictures", count=2):
        frame = np.array(Image.open(data / "val/images" / path.name))
        truth = np.array(Image.open(data / "val/masks" / path.name))
        labels = model.segment(frame)  # type: ignore[operator]
        assert (labels != truth).any()
        both = [overlay(frame, x, run.task.val.classes) for x in (truth, labels)]  # type: ignore[union-attr]
        assert np.array_equal(np.array(Image.open(path)), np.concatenate(both, 1))
    assert len(list((tmp_path / "pictures").iterdir())) == 2


def test_a_worse_epoch_leaves_the_best_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(tiny(epochs=4), data, tmp_path / "run")
    scores = iter([0.3, 0.5, 0.4, 0.5])
    values = [Score(s, {"miou": s, "pixel_accuracy": s / 2}) for s in scores]
    monkeypatch.setattr(run.task, "validate", lambda _: values.pop(0))
    assert run.run() == 0.5
    card = read_checkpoint(tmp_path / "run/best.safetensors").card
    assert (card.epochs, card.metrics) == (2, {"split": "val", "miou": 0.5, "pixel_accuracy": 0.25})
    assert card.recipe == tiny(epochs=4).to_dict()
    progress = read_state(tmp_path / "run")["progress"]
    assert progress["best"] == 0.5
    assert [r["miou"] for r in progress["rows"]] == [0.3, 0.5, 0.4, 0.5]


def test_a_row_says_what_its_epoch_was(data: Path, tmp_path: Path) -> None:
    """Mean loss, rate of the last step, and a validation where one was due: here the last."""
    run = trainer(tiny(epochs=3, val_every=2, lr=0.5, power=1.0), data, tmp_path / "run")
    step, losses = run.learner.step, []

    def kept(*given: Any) -> Tensor:
        assert run.learner.model.training
        losses.append(step(*given))
        return losses[-1]

    run.learner.step = kept  # type: ignore[method-assign]
    run.run()
    rows = read_state(tmp_path / "run")["progress"]["rows"]
    assert [r["step"] for r in rows] == [2, 4, 6]
    assert [r["images"] for r in rows] == [8, 16, 24]
    assert ["miou" in r for r in rows] == [False, True, True]
    means = [float(torch.stack(losses[i : i + 2]).mean()) for i in (0, 2, 4)]
    assert [r["loss"] for r in rows] == pytest.approx(means, abs=1e-5)
    assert [r["lr"] for r in rows] == pytest.approx(
        [0.5 * (1 - s / 6) for s in (1, 3, 5)], abs=1e-6
    )


def test_the_plan_is_printed(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(tiny(epochs=5, val_every=5), data, tmp_path / "run", quiet=False).run()
    text = capsys.readouterr().out
    for part in (
        "8 training, 4 validation images, 96x64, 3 classes",
        "crop 64x96",
        "best mIoU ",
        "band ",
        "2 an epoch of 4 images each, 5 epochs, 10 in all; 0 done",
        "s a step:",
        "epoch 5/5",
        "mIoU",
        "waiting for data",
    ):
        assert part in text, part


def test_images_left_over_and_finished_runs_are_said(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny(epochs=1, batch=5)
    trainer(recipe, data, tmp_path / "run", quiet=False).run()
    text = capsys.readouterr().out
    assert "3 images do not fill a batch" in text
    assert "nothing to do" not in text
    trainer(recipe, data, tmp_path / "run", quiet=False).run()
    assert "nothing to do: the run has all its epochs" in capsys.readouterr().out


def test_the_recipe_that_was_chosen_is_said(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--epochs", 1, "--batch", 4, "--crop", "64x96", "--workers", 0, "--threads", 1)
    assert command("train", data, "-o", tmp_path / "run", *small) == 0
    assert "recipe   own-masks, as --recipe names no other" in capsys.readouterr().out


def test_the_last_epoch_is_drawn_without_unreadable_images(data: Path, tmp_path: Path) -> None:
    """An unreadable validation image is counted by validation; it does not end the run here."""
    run = trainer(tiny(epochs=3), data, tmp_path / "run", overlays_every=2)
    run.run()
    drawn = sorted(p.name for p in (tmp_path / "run/overlays").iterdir())
    assert drawn == ["epoch_0002", "epoch_0003"]
    own = write_folder(tmp_path / "own")
    run = trainer(tiny(), own, tmp_path / "run")
    image = own / "val/images/001.png"
    image.write_bytes(image.read_bytes()[:600])
    written = [p.name for p in run.task.pictures(run.learner.evaluated(), tmp_path / "pictures")]
    assert written == ["000.png", "002.png", "003.png"]


def test_the_averaged_weights_are_validated_and_kept(data: Path, tmp_path: Path) -> None:
    run = trainer(tiny(epochs=2, ema=0.9, val_every=2), data, tmp_path / "run")
    validate, seen = run.task.validate, []

    def watched(model: Any) -> Score:
        seen.append(model)
        assert not model.training
        return validate(model)

    run.task.validate = watched  # type: ignore[method-assign]
    run.run()
    assert [*map(id, seen)] == [id(run.learner.average)]
    state = read_state(tmp_path / "run")
    key = "classifier.conv.weight"
    kept = read_checkpoint(tmp_path / "run/best.safetensors").state[key]
    assert torch.equal(kept, state["average"][key])
    assert not torch.equal(kept, state["model"][key])
    average = FusedFastSCNN(3, aux=True)
    average.load_state_dict(state["average"])
    score = validate(average.eval()).best_by
    assert score == pytest.approx(state["progress"]["rows"][-1]["miou"], abs=1e-5)


def test_pre_training_starts_a_segmentation(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = write_image_folders(tmp_path / "folders", per_class=6)
    argv = ("--epochs", 14, "--batch", 6, "--crop", "32x32", "--warmup-steps", 2, "--lr", 0.05)
    fast = ("--workers", 0, "--threads", 1, "--overlays-every", 0, "--amp", "none")
    pre = tmp_path / "pre"
    recipe = ("--recipe", "imagenet-pretrain", "--val-every", 14)
    assert command("train", folders, "-o", pre, *recipe, *argv, *fast) == 0
    assert read_state(pre)["progress"]["rows"][-1]["top1"] > 0.6
    run = trainer(tiny(), data, tmp_path / "run", init=pre / "best.safetensors")
    name = "global_feature_extractor.ppm.join.conv.weight"
    trained = read_checkpoint(pre / "best.safetensors").state[name]
    assert torch.equal(run.learner.model.state_dict()[name], trained)
    assert "fresh: feature_fusion" in run.init
    capsys.readouterr()


def test_fine_tuning_takes_the_last_layer_for_the_same_classes(data: Path, tmp_path: Path) -> None:
    trainer(tiny(epochs=1), data, tmp_path / "one").run()
    best = tmp_path / "one/best.safetensors"
    run = trainer(tiny(), data, tmp_path / "two", init=best)
    own = run.learner.model.state_dict()
    assert all(torch.equal(own[k], v) for k, v in read_checkpoint(best).state.items())


def test_tensorboard_gets_every_epoch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points: list[tuple[str, int]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert folder == str(tmp_path / "run/tensorboard")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            points.append((name, step))

        def flush(self) -> None:
            pass

        def close(self) -> None:
            points.append(("closed", 0))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    trainer(tiny(epochs=2), data, tmp_path / "run", tensorboard=True).run()
    assert {("loss", 2), ("loss", 4), ("miou", 2), ("lr", 4)} <= set(points)
    assert points[-1] == ("closed", 0)


def test_real_tensorboard_keeps_every_epoch_of_a_continued_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def interrupted(self: Trainer, batch: Any) -> None:
        if self.progress.step == 5:
            raise KeyboardInterrupt
        step(self, batch)

    step = Trainer._step
    recipe, run = tiny(epochs=4), tmp_path / "run"
    monkeypatch.setattr(Trainer, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer(recipe, data, run, tensorboard=True).run()
    monkeypatch.undo()
    trainer(recipe, data, run, tensorboard=True).run()
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    for name in ("loss", "miou", "lr"):
        rows = read_state(run)["progress"]["rows"]
        expected = [(row["step"], pytest.approx(row[name], rel=1e-4)) for row in rows]
        assert [(s.step, s.value) for s in events.Scalars(name)] == expected


# Resuming

KILLED = """
import sys
from pathlib import Path
from training_data import tiny, trainer
data, out = map(Path, sys.argv[1:])
trainer(tiny(epochs=6, ema=0.9), data, out, save_every=1, workers=1).run()
"""


def test_a_killed_run_ends_with_the_same_weights(data: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(data), str(killed)], env=environment()
    )
    deadline = time.monotonic() + 300
    while not (killed / "last.pth").exists():
        assert process.poll() is None, "the run ended without a state"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9
    assert 1 <= read_state(killed)["progress"]["step"] < 12
    recipe = tiny(epochs=6, ema=0.9)
    trainer(recipe, data, killed).run()
    trainer(recipe, data, whole).run()
    assert_same_state(read_state(killed), read_state(whole))
    best = [read_checkpoint(run / "best.safetensors").state for run in (killed, whole)]
    assert all(torch.equal(best[0][k], best[1][k]) for k in best[1])
    logs = [
        [(r["epoch"], r["loss"]) for r in read_state(run)["progress"]["rows"]]
        for run in (killed, whole)
    ]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 6


def test_a_run_stopped_within_an_epoch_continues_with_the_next_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(epochs=2, amp="fp16")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    trainer(recipe, data, whole).run()
    first = trainer(recipe, data, stopped, save_every=1)
    step = Trainer._step

    def interrupted(self: Trainer, batch: Any) -> None:
        if self.progress.step == 3:
            raise KeyboardInterrupt
        step(self, batch)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    monkeypatch.undo()
    assert read_state(stopped)["progress"]["step"] == 3
    torch.manual_seed(123)
    trainer(recipe, data, stopped).run()
    assert_same_state(read_state(stopped), read_state(whole))


def test_a_device_that_is_not_there_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "98")
    with pytest.raises(ValueError, match=r"device 'cuda:98' cannot be used here: .*cpu"):
        trainer(tiny(), data, tmp_path / "run", device="cuda")


def test_another_recipe_or_other_classes_are_refused(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer(tiny(epochs=1), data, run).run()
    before = (run / "last.pth").read_bytes()
    with pytest.raises(ValueError, match=r"another recipe: lr 0\.01, there 0\.02; seed 1, there 0"):
        trainer(tiny(epochs=1, lr=0.01, seed=1), data, run).run()
    with pytest.raises(ValueError, match=r"other training images .*8, now 6"):
        trainer(tiny(epochs=1), write_folder(tmp_path / "six/own", train=6), run).run()
    more = write_folder(tmp_path / "more/own")
    (more / "classes.json").write_text('{"classes": ["ground", "band", "box", "sky"]}')
    with pytest.raises(ValueError, match="was trained with 3 classes, not 4"):
        trainer(tiny(epochs=1), more, run).run()
    assert (run / "last.pth").read_bytes() == before
    trainer(tiny(epochs=1, val_every=3), data, run).run()  # nothing left to do


# Bad input


def test_a_batch_that_cannot_be_split_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="batch 9 is larger than the 8 training images"):
        trainer(tiny(batch=9), data, tmp_path / "run")
    monkeypatch.setattr("fastscnn.training.distributed.world", lambda: 4)
    with pytest.raises(ValueError, match="2 or more images each; use --batch 8"):
        trainer(tiny(batch=4), data, tmp_path / "run")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="sync_bn needs GPUs"):
        trainer(tiny(sync_bn=True), data, tmp_path / "run")


def _many(root: Path) -> Path:
    """104 training images of 32x32, the 51st cut short behind its header."""
    data = write_folder(root / "own", train=104, val=2, size=(48, 48))
    image = data / "train/images/050.png"
    image.write_bytes(image.read_bytes()[:600])
    return data


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_skipped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    data = _many(tmp_path)
    recipe = tiny(epochs=1, batch=52, crop=(32, 32))
    trainer(recipe, data, tmp_path / "run", workers=workers, quiet=False).run()
    text = capsys.readouterr().out
    assert text.count("skipped: ") == 1
    assert "050.png" in text
    assert "1 training files skipped" in text
    assert read_state(tmp_path / "run")["progress"]["rows"][0]["skipped"] == 1


def test_more_than_one_per_cent_of_corrupt_images_end_the_run(tmp_path: Path) -> None:
    data = _many(tmp_path)
    run = trainer(tiny(epochs=1, batch=52, crop=(32, 32)), data, tmp_path / "run")
    second = data / "train/images/070.png"
    second.write_bytes(second.read_bytes()[:600])
    with pytest.raises(ValueError, match="2 of 104 images cannot be read, more than 1 %"):
        run.run()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mask_spoilt_during_the_run_ends_it_by_name(tmp_path: Path, workers: int) -> None:
    data = write_folder(tmp_path / "own")
    run = trainer(tiny(epochs=1), data, tmp_path / "run", workers=workers)
    Image.fromarray(np.full((64, 96), 9, np.uint8)).save(data / "train/masks/003.png")
    with pytest.raises(ValueError, match=r"^data own: .*003\.png has values 9: expected") as error:
        run.run()
    assert "\n" not in str(error.value)


def test_a_loss_that_is_not_a_number_ends_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(tiny(epochs=3), data, tmp_path / "run", save_every=1)
    step = Trainer._step

    def poisoned(self: Trainer, batch: Any) -> None:
        if self.progress.step == 3:
            with torch.no_grad():
                self.learner.model.classifier.conv.bias[0] = float("nan")
        step(self, batch)

    monkeypatch.setattr(Trainer, "_step", poisoned)
    message = (
        r"the loss is nan at epoch 2, step 2 of 2 .*last\.pth holds the last good state\. "
        r"Try a lower --lr or --clip-norm 1, with --init .*best\.safetensors and another --out"
    )
    with pytest.raises(FloatingPointError, match=message):
        run.run()
    state = read_state(tmp_path / "run")
    assert state["progress"]["step"] == 3
    assert all(bool(v.isfinite().all()) for v in state["model"].values())


def test_advice_names_no_file_that_is_not_there(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(tiny(epochs=1, clip_norm=1.0, amp="bf16"), data, tmp_path / "run")
    with torch.no_grad():
        run.learner.model.classifier.conv.bias[0] = float("nan")
    with pytest.raises(FloatingPointError) as error:
        run.run()
    assert str(error.value).endswith("Try a lower --lr or --amp none, with another --out")


def test_weights_that_are_not_numbers_are_never_saved(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(tiny(epochs=3), data, tmp_path / "run", save_every=1)
    step = Trainer._step

    def poisoned(self: Trainer, batch: Any) -> None:
        step(self, batch)
        if self.progress.step == 2:  # a finite loss with gradients that were not
            with torch.no_grad():
                self.learner.model.classifier.conv.bias[0] = float("inf")

    monkeypatch.setattr(Trainer, "_step", poisoned)
    message = r"weights are no longer finite at epoch 2, step 1"
    with pytest.raises(FloatingPointError, match=message):
        run.run()
    assert read_state(tmp_path / "run")["progress"]["step"] == 2
