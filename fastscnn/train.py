"""Training as in section 3.1: SGD, poly schedule, auxiliary losses, strong augmentation.

A run is a folder: `last.pth` (everything to resume), `best.pth`, `log.csv`. All randomness of an
epoch follows from (seed, epoch), so a run that was killed and resumed ends with the same weights
on a CPU as one that was not.
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from fastscnn.augment import Augment
from fastscnn.classes import IGNORE
from fastscnn.config import FastSCNNConfig
from fastscnn.data import SegmentationData, class_shares
from fastscnn.evaluate import Result, evaluate
from fastscnn.model import FastSCNN


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run; the defaults are the paper's (section 3.1)."""

    epochs: int = 1000
    batch: int = 12
    lr: float = 0.045
    power: float = 0.9
    momentum: float = 0.9
    weight_decay: float = 4e-5
    aux_weight: float = 0.4
    #: Height and width of a training crop.
    crop: tuple[int, int] = (1024, 2048)
    #: Range of the random resize.
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    brightness: float = 0.3
    channel_noise: float = 0.1
    #: "none", or "sqrt": cross-entropy weights 1 / sqrt(share of the class).
    class_weights: str = "none"
    #: Network input for validation and later use, (height, width); None is the image's own.
    size: tuple[int, int] | None = None
    val_every: int = 5
    amp: bool = False
    workers: int = 0
    threads: int = 0
    seed: int = 0


class Losses(nn.Module):
    """The model with its loss: main and two auxiliary cross-entropies (weight 0.4 each)."""

    def __init__(self, model: FastSCNN, aux_weight: float, class_weights: Tensor | None) -> None:
        super().__init__()
        self.model = model
        self.aux_weight = aux_weight
        self.register_buffer("class_weights", class_weights)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of N x 3 x H x W against N x H x W uint8 labels (255 ignored).

        The main loss is taken at full resolution, the auxiliary ones at that of their scores.
        """
        main, high, low = self.model.scores_aux(x)
        size = (target.shape[1], target.shape[2])
        align = self.model.config.head_align_corners
        main = F.interpolate(main.float(), size, mode="bilinear", align_corners=align)
        loss = self._cross_entropy(main, target)
        for scores in (high, low):
            small = F.interpolate(target[:, None].float(), scores.shape[2:], mode="nearest-exact")
            loss = loss + self.aux_weight * self._cross_entropy(scores.float(), small[:, 0])
        return loss

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        if not bool((target != IGNORE).any()):
            return logits.sum() * 0
        return F.cross_entropy(logits, target.long(), self.class_weights, ignore_index=IGNORE)


class _Augmented(Dataset[tuple[Tensor, Tensor]]):
    """One epoch's augmented samples; each has its own generator, so workers change nothing."""

    def __init__(self, data: SegmentationData, augment: Augment, seed: int) -> None:
        self.data, self.augment, self.seed = data, augment, seed

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        return self.augment(*self.data[index], generator)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on everything but depthwise convolutions (section 3.1)."""
    depthwise = {
        id(m.weight)
        for m in model.modules()
        if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1
    }
    decayed = [p for p in model.parameters() if id(p) not in depthwise]
    free = [p for p in model.parameters() if id(p) in depthwise]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]


class Trainer:
    """One run in one folder; `run()` trains to the end, from `last.pth` where there is one."""

    def __init__(
        self,
        recipe: Recipe,
        train: SegmentationData,
        val: SegmentationData,
        folder: Path,
        *,
        config: FastSCNNConfig | None = None,
        device: str = "cpu",
    ) -> None:
        self.recipe, self.train, self.val, self.folder = recipe, train, val, folder
        self.device = torch.device(device)
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        torch.manual_seed(recipe.seed)
        model = FastSCNN(len(train.classes), config=config, aux=True)
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.losses = Losses(self.model, recipe.aux_weight, self._class_weights()).to(self.device)
        self.optimizer = torch.optim.SGD(
            parameter_groups(self.model, recipe.weight_decay), lr=recipe.lr, momentum=recipe.momentum
        )
        self.steps_per_epoch = len(train) // recipe.batch
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"batch {recipe.batch} is larger than the {len(train)} training images; "
                f"use a batch of at most {len(train)}"
            )
        self.epoch = 0
        self.best = 0.0

    def run(self) -> float:
        """Trains to the recipe's last epoch; returns the best validation mIoU."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / "last.pth").exists():
            self._resume()
        while self.epoch < self.recipe.epochs:
            start = time.perf_counter()
            loss = self._train_epoch()
            self.epoch += 1
            due = self.epoch % self.recipe.val_every == 0 or self.epoch == self.recipe.epochs
            result = self.validate() if due else None
            if result is not None and result.miou > self.best:
                self.best = result.miou
                self._save("best.pth")
            self._save("last.pth")
            self._log(loss, result, time.perf_counter() - start)
        return self.best

    def _train_epoch(self) -> float:
        r = self.recipe
        torch.manual_seed(r.seed * 7919 + self.epoch)  # dropout
        self.model.train()
        total, steps = 0.0, self.steps_per_epoch
        bar = tqdm(
            self._batches(), f"epoch {self.epoch + 1}/{r.epochs}", steps, unit="it", leave=False
        )
        for step, (images, target) in enumerate(bar):
            done = (self.epoch * steps + step) / (r.epochs * steps)
            lr = r.lr * (1 - done) ** r.power
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            x = self.model._normalize(images.to(self.device).permute(0, 2, 3, 1))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=r.amp):
                loss = self.losses(x, target.to(self.device))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            value = float(loss.detach())
            if not np.isfinite(value):
                raise FloatingPointError(
                    f"loss is {value} at epoch {self.epoch + 1}, step {step + 1}; {self.folder}/"
                    "last.pth holds the last good state: lower lr and resume"
                )
            total += value
            bar.set_postfix(loss=f"{value:.3f}", lr=f"{lr:.4f}")
        return total / steps

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        r = self.recipe
        seed = r.seed * 1_000_000 + self.epoch
        augment = Augment(r.crop, r.scale, r.flip, r.brightness, r.channel_noise)
        loader = DataLoader(
            _Augmented(self.train, augment, seed),
            batch_size=r.batch,
            shuffle=True,
            drop_last=True,
            num_workers=r.workers,
            generator=torch.Generator().manual_seed(seed),
            pin_memory=self.device.type == "cuda",
        )
        return iter(loader)

    def validate(self) -> Result:
        """Evaluation of the current weights on the validation split."""
        self.model.eval()

        def predict(frame: Tensor) -> Tensor:
            labels: Tensor = self.model.segment(frame, size=self.recipe.size)
            return labels

        pairs = (self.val[i] for i in range(len(self.val)))
        return evaluate(
            predict, tqdm(pairs, "validate", len(self.val), leave=False), self.val.classes
        )

    def _class_weights(self) -> Tensor | None:
        if self.recipe.class_weights == "none":
            return None
        if self.recipe.class_weights != "sqrt":
            raise ValueError(
                f'class_weights={self.recipe.class_weights!r}: expected "none" or "sqrt"'
            )
        share = np.maximum(class_shares(self.train), 1e-4)
        weights = share**-0.5
        return torch.tensor(weights / (weights * share).sum(), dtype=torch.float32)

    def _save(self, name: str) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "best": self.best,
            "recipe": asdict(self.recipe),
            "card": {
                "config": self.model.config.to_dict(),
                "num_classes": self.model.num_classes,
                "classes": list(self.train.classes.names),
                "colors": [list(c) for c in self.train.classes.colors],
                "size": list(self.recipe.size) if self.recipe.size else None,
                "data": self.train.name,
                "epochs": self.epoch,
            },
        }
        temporary = self.folder / f".{name}.tmp"
        torch.save(state, temporary)
        os.replace(temporary, self.folder / name)

    def _resume(self) -> None:
        path = self.folder / "last.pth"
        state = torch.load(path, map_location=self.device, weights_only=True)
        before = Recipe(**{k: tuple(v) if isinstance(v, list) else v for k, v in state["recipe"].items()})
        free = {"val_every": 0, "workers": 0, "threads": 0}
        if replace(before, **free) != replace(self.recipe, **free):
            changed = [k for k, v in asdict(self.recipe).items() if getattr(before, k) != v]
            raise ValueError(
                f"{path} was trained with another recipe ({', '.join(changed)} differ); "
                "use the same recipe or another output folder"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.best = state["epoch"], state["best"]

    def _log(self, loss: float, result: Result | None, seconds: float) -> None:
        path = self.folder / "log.csv"
        row = {
            "epoch": self.epoch,
            "loss": round(loss, 4),
            "miou": "" if result is None else round(result.miou, 4),
            "pixel_accuracy": "" if result is None else round(result.pixel_accuracy, 4),
            "seconds": round(seconds, 1),
        }
        new = not path.exists()
        with path.open("a", newline="") as f:
            writer = csv.DictWriter(f, row)
            if new:
                writer.writeheader()
            writer.writerow(row)
        tqdm.write(", ".join(f"{k} {v}" for k, v in row.items() if v != ""))
