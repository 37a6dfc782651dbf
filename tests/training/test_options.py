"""Every option of `fastscnn train` and every value of a recipe arrives where it acts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from training_data import (
    command,
    one_thread,  # noqa: F401 (used by every test)
    tiny,
    trainer,
    write_folder,
)

import fastscnn.training.train as training
from fastscnn.network.config import FastSCNNConfig
from fastscnn.network.model import FastSCNN, FastSCNNClassifier
from fastscnn.training.data import ImageFolders, open_data
from fastscnn.training.learner import Learner
from fastscnn.training.loading import Batch, derive
from fastscnn.training.losses import ClassificationLoss, Losses
from fastscnn.training.optimize import learning_rate, make_optimizer
from fastscnn.training.photometric import Photometric
from fastscnn.training.recipe import Recipe
from fastscnn.training.tasks import ClassifyTask, SegmentTask, augmentation, make_task

CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "own")


@pytest.fixture
def train(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Runs `fastscnn train` on the drawn data; gives what the Trainer was given, not trained."""
    given: dict[str, Any] = {}

    class Asked:
        def __init__(self, recipe: Recipe, train: Any, val: Any, out: Path, **more: Any) -> None:
            given.update(recipe=recipe, train=train, val=val, out=out, **more)

        def run(self) -> float:
            return 0.0

    def run(*options: object) -> dict[str, Any]:
        assert command("train", data, "-o", tmp_path / "run", *options) == 0
        return given

    monkeypatch.setattr(training, "Trainer", Asked)
    return run


# The command


def test_every_option_reaches_the_trainer(train: Callable[..., dict[str, Any]]) -> None:
    given = train(
        "--device", "cpu", "--workers", 3, "--threads", 2, "--compile", "--save-every", 7,
        "--overlays-every", 4, "--tensorboard", "--plot", "--init", "camvid",
    )  # fmt: skip
    assert given["options"] == training.Options(
        device="cpu", workers=3, threads=2, compile=True, save_every=7, overlays_every=4,
        tensorboard=True, plot=True,
    )  # fmt: skip
    assert (given["init"], given["out"].name) == ("camvid", "run")


def test_every_value_of_a_recipe_can_be_given(train: Callable[..., dict[str, Any]]) -> None:
    """Each one another than the recipe's own."""
    wanted = Recipe(
        task="segment", config="tramac", epochs=7, batch=6, optimizer="adamw", lr=0.5, power=2.0,
        warmup_steps=3, momentum=0.5, weight_decay=0.25, clip_norm=1.5, aux_weight=0.3,
        dropout=0.2, label_smoothing=0.05, ohem=0.4, ema=0.9, class_weights="none", crop=(64, 96),
        scale=(0.7, 1.3), flip=False, brightness=0.2, channel_noise=0.05, gamma=(0.8, 1.25),
        contrast=0.1, saturation=0.15, hue=5.0, noise=2.0, blur=0.5, jpeg=50, shadow=0.1,
        sequence="..", balance=True, hold_out="", size=(128, 96), extra_split="", limit=5,
        zero_skip=True, freeze_bn=True, sync_bn=True, amp="none", val_every=2, seed=9,
    )  # fmt: skip
    options: list[object] = []
    for name, value in wanted.to_dict().items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            options.append(f"--{flag}" if value else f"--no-{flag}")
        elif value != "":
            options += [f"--{flag}", "x".join(map(str, value)) if name in _PAIRS else value]
    assert train("--recipe", "own-masks", *options)["recipe"] == wanted


_PAIRS = ("crop", "scale", "gamma", "size")


def test_the_splits_are_those_asked_for(
    train: Callable[..., dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    (data / "val").rename(data / "check")
    write_folder(tmp_path / "more", train=3)
    (tmp_path / "more/train").rename(data / "extra")
    given = train("--val-split", "check")
    assert [p.image.parts[-3] for p in given["train"].pairs] == ["train"] * 8
    assert [p.image.parts[-3] for p in given["val"].pairs] == ["check"] * 4
    given = train("--val-split", "check", "--extra-split", "extra")
    assert [p.image.parts[-3] for p in given["train"].pairs] == ["train"] * 8 + ["extra"] * 3
    given = train("--train-split", "extra", "--val-split", "train")
    assert (len(given["train"]), len(given["val"])) == (3, 8)


def test_sequences_are_named_by_the_recipes_pattern(train: Callable[..., dict[str, Any]]) -> None:
    """Drawn images are called 000.png to 007.png in train, to 003.png in val."""
    given = train("--hold-out", "003,005", "--sequence", "...")
    assert [p.image.stem for p in given["val"].pairs] == ["003", "005", "003"]
    assert len(given["train"]) == 9


# The recipe


def task(data: Path, **changes: Any) -> SegmentTask:
    made = make_task(tiny(**changes), open_data(data, "train"), open_data(data, "val"))
    assert isinstance(made, SegmentTask)
    return made


def test_a_limit_is_of_both_splits_evenly(data: Path) -> None:
    made = task(data, limit=2)
    assert [p.image.stem for p in made.train.pairs] == ["000", "004"]
    assert [p.image.stem for p in made.val.pairs] == ["000", "002"]


def test_the_network_is_the_recipes(data: Path) -> None:
    model = task(data, config="tramac", dropout=0.3, zero_skip=True, aux_weight=0.0).model
    assert model.config == replace(FastSCNNConfig.preset("tramac"), dropout=0.3)
    assert model.classifier.dropout.p == 0.3
    assert model.feature_fusion.zero_skip
    assert model.aux is None
    assert task(data).model.aux is not None


def test_the_augmentation_is_the_recipes() -> None:
    recipe = Recipe(
        crop=(64, 96), scale=(0.7, 1.3), flip=False, brightness=0.2, channel_noise=0.05,
        gamma=(0.8, 1.25), contrast=0.1, saturation=0.15, hue=5.0, noise=2.0, blur=0.5, jpeg=50,
        shadow=0.25,
    )  # fmt: skip
    made = augmentation(recipe)
    assert (made.crop, made.scale, made.flip) == ((64, 96), (0.7, 1.3), False)
    assert (made.brightness, made.channel_noise) == (0.2, 0.05)
    assert made.photometric == Photometric((0.8, 1.25), 0.1, 0.15, 5.0, 2.0, 0.5, 50, 0.25)


def test_the_loss_is_the_recipes(data: Path) -> None:
    """Weights 1 / sqrt(share) with mean 1 over the labelled pixels; a class without one is rare."""
    losses = task(data, aux_weight=0.3, label_smoothing=0.1, ohem=0.4).losses()
    assert (losses.aux_weight, losses.label_smoothing, losses.ohem) == (0.3, 0.1, 0.4)
    assert losses.class_weights is None
    made = task(data, class_weights="sqrt")
    truth = np.stack([np.array(Image.open(p)) for p in sorted((data / "train/masks").iterdir())])
    shares = np.bincount(truth.ravel(), minlength=3) / truth.size
    weights = made.losses().class_weights
    assert isinstance(weights, Tensor)
    assert float(weights[2] / weights[0]) == pytest.approx(math.sqrt(shares[0] / shares[2]))
    assert float(weights.double() @ torch.tensor(shares)) == pytest.approx(1)
    made.scan = replace(made.scan, counts=np.array([9_998_000, 2000, 0]))
    weights = made.losses().class_weights
    assert isinstance(weights, Tensor)
    ratios = [math.sqrt(0.9998 / 2e-4), math.sqrt(0.9998 / 1e-4)]  # no share is below 1e-4
    assert (weights[1:] / weights[0]).tolist() == pytest.approx(ratios)


def test_validation_is_at_the_recipes_size(data: Path) -> None:
    seen = []

    class Asked(nn.Linear):
        def segment(self, frame: Tensor, size: Any) -> Tensor:
            seen.append(size)
            return torch.zeros(frame.shape[:2], dtype=torch.uint8)

    score = task(data, size=(128, 192)).validate(Asked(1, 1))
    task(data).validate(Asked(1, 1))
    assert seen == [(128, 192)] * 4 + [None] * 4
    truth = np.stack([np.array(Image.open(p)) for p in (data / "val/masks").iterdir()])
    share = float((truth == 0).mean())
    assert score.values == {
        "miou": pytest.approx(share / 3), "pixel_accuracy": pytest.approx(share)
    }  # fmt: skip


def test_top_5_are_the_best_five(tmp_path: Path) -> None:
    """Seven images, one of each class; the network ranks the classes 0 to 6 for all of them."""
    files = []
    for c in range(7):
        files.append((tmp_path / f"{c}.png", c))
        Image.new("RGB", (40, 40), (30 * c, 0, 0)).save(files[-1][0])
    folders = ImageFolders("x", tuple("abcdefg"), files)

    class Ranked(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.arange(7.0, 0, -1).expand(len(x), 7)

    made = ClassifyTask(tiny(task="classify", crop=(32, 32)), folders, folders)
    score = made.validate(Ranked(1, 1))
    assert score.values == {"top1": pytest.approx(1 / 7), "top5": pytest.approx(5 / 7)}
    assert score.best_by == score.values["top1"]


# The optimizer


def test_the_optimizer_is_the_recipes() -> None:
    model = FastSCNN(3)
    sgd = make_optimizer(tiny(momentum=0.5, weight_decay=0.25, lr=0.125), model)
    assert isinstance(sgd, torch.optim.SGD)
    assert [(g["momentum"], g["lr"]) for g in sgd.param_groups] == [(0.5, 0.125)] * 2
    assert [g["weight_decay"] for g in sgd.param_groups] == [0.25, 0.0]
    adam = make_optimizer(tiny(optimizer="adamw", weight_decay=0.25, lr=0.125), model)
    assert isinstance(adam, torch.optim.AdamW)
    assert [(g["weight_decay"], g["lr"]) for g in adam.param_groups] == [(0.25, 0.125), (0, 0.125)]
    assert learning_rate(tiny(lr=0.5, power=2.0), 5, 10) == 0.5 * 0.25


class Recorded(nn.Module):
    """In place of the losses: keeps what it is given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen: list[Any] = []

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        scores = self.model.scores(x)  # type: ignore[operator]
        conv = self.model.classifier.dsconv2.pointwise.conv  # type: ignore[union-attr]
        self.seen.append((x, target, scores.dtype, conv.weight.dtype))
        return scores.float().square().mean()


def learner(**changes: Any) -> tuple[Learner, Recorded, Batch]:
    torch.manual_seed(0)
    losses = Recorded(FastSCNN(3))
    made = Learner(tiny(**changes), losses.model, losses, CPU, compile=False)
    made.train()
    if made._scaler.is_enabled():  # the scale that training finds after some steps without one
        made._scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    images = torch.randint(0, 256, (2, 3, 32, 64), dtype=torch.uint8)
    factors = torch.tensor([[1.0, 0.5, 1.5], [1.2, 1.0, 0.8]])
    batch = Batch(images, torch.zeros(2, 32, 64, dtype=torch.uint8), factors, [])
    return made, losses, batch


def test_a_step_sees_coloured_and_normalised_images_at_its_rate() -> None:
    made, losses, batch = learner(lr=0.5, seed=4)
    made.step(batch, 5, 10)
    ((x, target, *_),) = losses.seen
    colored = (batch.images * batch.factors[:, :, None, None]).clamp(0, 255) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(x, (colored - mean[:, None, None]) / std[:, None, None], atol=1e-5)
    assert torch.equal(target, batch.targets)
    rates = {group["lr"] for group in made._optimizer.param_groups}
    assert rates == {0.5 * 0.5**0.9}
    assert torch.initial_seed() == derive(4, 2, 5, 0), "dropout follows from seed, step and rank"


@pytest.mark.parametrize(
    ("amp", "dtype"),
    [("none", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
    ids=str,
)
def test_amp_multiplies_in_its_dtype_and_keeps_the_weights(amp: str, dtype: torch.dtype) -> None:
    made, losses, batch = learner(amp=amp)
    before = [p.detach().clone() for p in losses.model.parameters()]
    made.step(batch, 0, 10)
    assert losses.seen[0][2:] == (dtype, torch.float32)
    assert made._scaler.is_enabled() == (amp == "fp16")
    after = list(losses.model.parameters())
    assert sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) > 50


@pytest.mark.parametrize("amp", ["none", "fp16"])
def test_gradients_are_clipped(amp: str) -> None:
    """As they are, not as a scaler has them."""
    made, losses, batch = learner(amp=amp, clip_norm=1e-3, momentum=0.0, weight_decay=0.0, lr=1.0)
    before = [p.detach().clone() for p in losses.model.parameters()]
    made.step(batch, 0, 10)
    after = list(losses.model.parameters())
    moved = torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)]).detach()
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-2)


def test_the_average_takes_each_step_at_its_pace() -> None:
    """Nine tenths of the first step, whatever the decay: see `update_average`."""
    made, losses, batch = learner(ema=0.99, lr=0.5)
    assert made.average is not None
    weight, average = losses.model.classifier.conv.weight, made.average.classifier.conv.weight  # type: ignore[union-attr]
    before = weight.detach().clone()
    made.step(batch, 0, 10)
    assert float((weight.detach() - before).abs().max()) > 1e-4  # type: ignore[operator, union-attr]
    assert torch.allclose(average, before.lerp(weight, 0.9), atol=1e-7)  # type: ignore[arg-type]


def test_gradients_are_those_of_one_step() -> None:
    made, losses, batch = learner(lr=1e-30, weight_decay=0.0)
    losses.model.classifier.dropout.p = 0.0  # type: ignore[union-attr]
    seen = []
    for number in range(2):
        made.step(batch, number, 10)
        used = [p.grad for p in losses.model.parameters() if p.grad is not None]
        seen.append([g.clone() for g in used])
    assert len(seen[0]) > 100
    for first, second in zip(*seen, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_batch_norm_keeps_its_statistics(frozen: bool) -> None:
    made, losses, batch = learner(freeze_bn=frozen)
    made.step(batch, 0, 10)
    norms = [m for m in losses.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) > 30
    assert {int(m.num_batches_tracked) for m in norms} == {0 if frozen else 1}  # type: ignore[arg-type]
    assert all(bool((m.running_mean == 0).all()) is frozen for m in norms)  # type: ignore[union-attr]
    assert losses.model.training


# Losses that only some recipes have


def test_hard_pixels_are_weighed_by_their_class() -> None:
    torch.manual_seed(0)
    model = FastSCNN(3).eval()
    x, target = torch.randn(2, 3, 64, 96), torch.randint(0, 3, (2, 64, 96)).byte()
    target[:, :30] = 255
    weights = torch.tensor([0.5, 1.0, 4.0])
    ours = Losses(model, aux_weight=0.0, ohem=0.25, class_weights=weights)(x, target)
    pixels = F.cross_entropy(model(x), target.long(), weights, ignore_index=255, reduction="none")
    loss, order = pixels[target != 255].sort(descending=True)
    kept = len(loss) // 4
    weight = weights[target[target != 255].long()[order[:kept]]]
    expected = float((loss[:kept].sum() / weight.sum()).detach())
    assert float(ours.detach()) == pytest.approx(expected, rel=1e-4)


def test_smoothing_shares_the_truth_among_the_classes() -> None:
    torch.manual_seed(0)
    model = FastSCNNClassifier(4).eval()
    x, target = torch.randn(3, 3, 64, 64), torch.tensor([0, 3, 1])
    with torch.no_grad():
        logs = model(x).double().log_softmax(1)
        ours = ClassificationLoss(model, label_smoothing=0.2)(x, target)
    truth = torch.full((3, 4), 0.05, dtype=torch.float64)
    truth[torch.arange(3), target] += 0.8
    assert float(ours) == pytest.approx(float(-(truth * logs).sum(1).mean()), rel=1e-5)


def test_the_last_layer_is_not_taken_over_for_other_classes(data: Path, tmp_path: Path) -> None:
    trainer(tiny(epochs=1), data, tmp_path / "one").run()
    best = tmp_path / "one/best.safetensors"
    other = write_folder(tmp_path / "other")
    about = (other / "classes.json").read_text().replace("ground", "water")
    (other / "classes.json").write_text(about)
    same, fresh = task(data), task(other)
    before = fresh.model.classifier.conv.weight.detach().clone()
    assert same.initialise(best) == f"weights of {best}; auxiliary heads fresh"
    said = fresh.initialise(best)
    assert said == f"weights of {best}; fresh: classifier.conv, auxiliary heads"
    assert torch.equal(fresh.model.classifier.conv.weight, before)
    key = "feature_fusion.low.conv.weight"
    assert torch.equal(fresh.model.state_dict()[key], same.model.state_dict()[key])
