"""What is trained: segmentation, or classification for pre-training (section 3.4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fastscnn.checkpoints.card import Card
from fastscnn.inference.fused import FusedFastSCNN
from fastscnn.load import load, load_backbone
from fastscnn.media.frames import ImageError
from fastscnn.media.outputs import write_image
from fastscnn.media.visualize import overlay
from fastscnn.network.config import FastSCNNConfig
from fastscnn.network.model import FastSCNNClassifier
from fastscnn.training import distributed
from fastscnn.training.augment import Augment, WindowAugment, center_crop, normalize
from fastscnn.training.data import (
    ImageFolders,
    Scan,
    SegmentationData,
    check_bad,
    check_classes,
    scan,
)
from fastscnn.training.evaluate import Result, evaluate
from fastscnn.training.loading import ahead
from fastscnn.training.losses import ClassificationLoss, Losses
from fastscnn.training.photometric import Photometric
from fastscnn.training.recipe import Recipe


@dataclass(frozen=True)
class Score:
    """One validation: the value that decides which weights are best, and all values by name."""

    best_by: float
    values: dict[str, float]
    unreadable: int = 0


def augmentation(recipe: Recipe) -> Augment:
    """The recipe's augmentation."""
    r = recipe
    light = Photometric(**{f.name: getattr(r, f.name) for f in fields(Photometric)})
    return Augment(r.crop, r.scale, r.flip, r.brightness, r.channel_noise, light)


def network_config(recipe: Recipe) -> FastSCNNConfig:
    """The recipe's preset with its dropout."""
    return replace(FastSCNNConfig.preset(recipe.config), dropout=recipe.dropout)


class SegmentTask:
    """Segmentation: `FusedFastSCNN`, validated through `segment` on its fused weights."""

    score_name = "miou"

    def __init__(
        self, recipe: Recipe, train: SegmentationData, val: SegmentationData, workers: int = 0
    ) -> None:
        if train.classes.names != val.classes.names:
            raise ValueError("the training and the validation data have different classes")
        self.recipe, self.train, self.val = recipe, train, val
        self.workers = workers
        self.scan: Scan = scan(train, workers)
        if not recipe.limit:
            check_classes(train, self.scan)
        self.val_scan: Scan = scan(val, workers)
        self.augment = augmentation(recipe)
        self.model = FusedFastSCNN(
            len(train.classes),
            config=network_config(recipe),
            aux=recipe.aux_weight > 0,
            zero_skip=recipe.zero_skip,
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.classes.names

    def losses(self) -> Losses:
        """The model with its loss; class weights have mean 1 over the labelled pixels."""
        weights = None
        if self.recipe.class_weights == "sqrt":
            shares = np.maximum(self.scan.shares, 1e-4)
            values = shares**-0.5
            weights = torch.tensor(values / (values * shares).sum(), dtype=torch.float32)
        r = self.recipe
        return Losses(
            self.model,
            aux_weight=r.aux_weight,
            class_weights=weights,
            label_smoothing=r.label_smoothing,
            ohem=r.ohem,
        )

    def sample(self, index: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """One augmented training sample: image, mask, colour factors."""
        return self.augment(*self.train[index], generator)

    def file(self, index: int) -> str:
        return self.train.pairs[index].image.name

    def groups(self) -> list[list[int]]:
        """Indices of the training images that are drawn equally often, group by group."""
        if not self.recipe.balance:
            return [list(range(len(self.train)))]
        return list(self.train.sequences(self.recipe.sequence).values())

    def validate(self, model: nn.Module) -> Score:
        """Class mIoU and more on the validation data, shared among the processes."""
        unreadable: list[str] = []

        def read(index: int) -> tuple[Tensor, Tensor] | None:
            try:
                return self.val[index]
            except ImageError as error:
                unreadable.append(str(error))
                return None

        indices = range(distributed.rank(), len(self.val), distributed.world())
        found = ahead(read, indices, self.workers)
        result = evaluate(self._predictor(model), (p for p in found if p), self.val.classes)
        device = next(model.parameters()).device
        confusion = distributed.total(torch.from_numpy(result.confusion).to(device))
        result = Result(self.val.classes, confusion.cpu().numpy())
        bad = [message for part in distributed.gathered(unreadable) for message in part]
        check_bad(bad, len(self.val), self.val.name)
        values = {"miou": result.miou, "pixel_accuracy": result.pixel_accuracy}
        if self.val.classes.categories:
            values["category_miou"] = result.category_miou
        return Score(result.miou, values, len(bad))

    def _predictor(self, model: nn.Module) -> Any:
        size = self.recipe.size or None
        return lambda frame: model.segment(frame, size=size)  # type: ignore[operator]

    def pictures(self, model: nn.Module, folder: Path, count: int = 4) -> Iterator[Path]:
        """Overlays of the truth (left) and the prediction (right) on some validation images."""
        predict = self._predictor(model)
        for pair in self.val.limited(count).pairs:
            try:
                image, mask = pair.read()
            except ImageError:  # which validation counts and reports
                continue
            frame = image.permute(1, 2, 0).contiguous()
            both = [
                overlay(frame.numpy(), labels.numpy(), self.val.classes)
                for labels in (mask, predict(frame).cpu())
            ]
            path = folder / f"{pair.image.stem}.png"
            write_image(Image.fromarray(np.concatenate(both, axis=1)), path)
            yield path

    def describe(self) -> Iterator[str]:
        """What a person wants to know about the data before training."""
        names, shares = self.train.classes.names, self.scan.shares
        yield (
            f"data     {self.train.name}: {len(self.train)} training, {len(self.val)} validation "
            f"images, {_sizes(self.scan)}, {len(names)} classes"
        )
        ignored = self.scan.ignored / max(1, self.scan.ignored + int(self.scan.counts.sum()))
        order = np.argsort(-shares, kind="stable")
        listed = ", ".join(f"{names[i]} {100 * shares[i]:.3g} %" for i in order)
        yield f"classes  {listed}; without a class {100 * ignored:.3g} %"
        for which, seen in (("training", self.scan), ("validation", self.val_scan)):
            absent = [n for n, c in zip(names, seen.counts, strict=True) if not c]
            if absent:
                yield f"note     no {which} pixel is {', '.join(absent)}"
            if seen.bad:
                yield f"note     {len(seen.bad)} unreadable {which} files; first: {seen.bad[0]}"
        for note in (*self.train.notes, *self.val.notes):
            yield f"note     {note}"

    def initialise(self, weights: str | Path) -> str:
        """Copies what fits from a checkpoint; returns what was done in words."""
        fresh = load_backbone(self.model, weights)
        try:
            whole = load(weights, fused=False, device="cpu", num_classes=len(self.class_names))
        except ValueError:  # another number of classes, or a classifier
            whole = None
        known = () if whole is None or whole.card is None else whole.card.classes
        if whole is not None and known in ((), self.class_names):
            self.model.load_state_dict(whole.state_dict(), strict=False)
            return f"weights of {weights}; auxiliary heads fresh"
        parts = dict.fromkeys(key.rpartition(".")[0] for key in fresh if not key.startswith("aux."))
        roots = dict.fromkeys(".".join(p.split(".")[:2]) for p in parts)
        return f"weights of {weights}; fresh: {', '.join(roots)}, auxiliary heads"

    def card(self) -> Card:
        c = self.train.classes
        return Card(
            self.model.config, len(c), c.names, c.colors, size=self.recipe.size or None,
            data=self.train.name,
        )  # fmt: skip


class ClassifyTask:
    """Classification of whole images with `FastSCNNClassifier`."""

    score_name = "top1"

    def __init__(
        self, recipe: Recipe, train: ImageFolders, val: ImageFolders, workers: int = 0
    ) -> None:
        if train.names != val.names:
            odd = sorted(set(train.names) ^ set(val.names))
            raise ValueError(f"training and validation have different class folders: {odd[:5]}")
        self.recipe, self.train, self.val = recipe, train, val
        self.workers = workers
        self.augment = WindowAugment(augmentation(recipe))
        self.model = FastSCNNClassifier(len(train.names), config=network_config(recipe))

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.names

    def losses(self) -> ClassificationLoss:
        return ClassificationLoss(self.model, label_smoothing=self.recipe.label_smoothing)

    def sample(self, index: int, generator: torch.Generator) -> tuple[Tensor, int, Tensor]:
        """One augmented training sample: image, class, colour factors."""
        image, label = self.train[index]
        image, factors = self.augment(image, generator)
        return image, label, factors

    def file(self, index: int) -> str:
        return self.train.files[index][0].name

    def groups(self) -> list[list[int]]:
        """All training images, as one group."""
        return [list(range(len(self.train)))]

    def validate(self, model: nn.Module) -> Score:
        """Top-1 and top-5 accuracy of the middle crop."""
        device = next(model.parameters()).device
        config = self.model.config
        unreadable: list[str] = []
        hits = torch.zeros(3, dtype=torch.int64, device=device)  # top 1, top 5, all

        def read(index: int) -> tuple[Tensor, int] | None:
            try:
                image, label = self.val[index]
                return center_crop(image, self.recipe.crop), label
            except ImageError as error:
                unreadable.append(str(error))
                return None

        indices = range(distributed.rank(), len(self.val), distributed.world())
        found = (p for p in ahead(read, indices, self.workers) if p)
        for images, labels in _batches(found, 64):
            x = normalize(images.to(device), torch.ones(len(images), 3), config.mean, config.std)
            with torch.no_grad():
                best = model(x).topk(min(5, len(self.class_names)), dim=1)[1]
            right = best == labels.to(device)[:, None]
            hits[0] += right[:, 0].sum()
            hits[1] += right.sum()
            hits[2] += len(labels)
        top1, top5, count = distributed.total(hits).tolist()
        bad = [message for part in distributed.gathered(unreadable) for message in part]
        check_bad(bad, len(self.val), self.val.name)
        values = {"top1": top1 / max(1, count), "top5": top5 / max(1, count)}
        return Score(values["top1"], values, len(bad))

    def pictures(self, model: nn.Module, folder: Path, count: int = 4) -> Iterator[Path]:
        """Nothing to draw."""
        return iter(())

    def describe(self) -> Iterator[str]:
        """What a person wants to know about the data before training."""
        yield (
            f"data     {self.train.name}: {len(self.train)} training, {len(self.val)} validation "
            f"images in {len(self.class_names)} class folders"
        )

    def initialise(self, weights: str | Path) -> str:
        """Copies what fits from a checkpoint; returns what was done in words."""
        load_backbone(self.model, weights)
        return f"weights of {weights}; fresh: linear"

    def card(self) -> Card:
        n = len(self.class_names)
        return Card(self.model.config, n, self.class_names, data=self.train.name)


Task = SegmentTask | ClassifyTask


def make_task(recipe: Recipe, train: Any, val: Any, workers: int = 0) -> Task:
    """The recipe's task on opened data."""
    kinds = {"segment": (SegmentationData, SegmentTask), "classify": (ImageFolders, ClassifyTask)}
    data, task = kinds[recipe.task]
    for d in (train, val):
        if not isinstance(d, data):
            raise TypeError(f"task {recipe.task!r} needs {data.__name__}, got {type(d).__name__}")
    made: Task = task(recipe, train.limited(recipe.limit), val.limited(recipe.limit), workers)
    return made


def _batches(found: Iterator[tuple[Tensor, int]], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    images: list[Tensor] = []
    labels: list[int] = []
    for image, label in found:
        images.append(image)
        labels.append(label)
        if len(images) == size:
            yield torch.stack(images), torch.tensor(labels)
            images, labels = [], []
    if images:
        yield torch.stack(images), torch.tensor(labels)


def _sizes(seen: Scan) -> str:
    (h, w), _ = seen.sizes.most_common(1)[0]
    more = len(seen.sizes) - 1
    return f"{w}x{h}" + (f" and {more} other sizes" if more else "")
