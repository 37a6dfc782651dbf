"""Training losses: main and auxiliary cross-entropies over the batch of all processes together."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastscnn_kernels
import fastscnn_kernels.reference
from fastscnn.classes import IGNORE
from fastscnn.network.model import FastSCNN, FastSCNNClassifier
from fastscnn.training import distributed


class Losses(nn.Module):
    """The model with its loss: main and two auxiliary cross-entropies (section 3.1).

    Each is the mean over the labelled pixels of the global batch, so that many processes train as
    one does: the gradients' average over the processes is the gradient of that mean. `ohem` is the
    share of the labelled pixels, the hardest ones, that count in the main loss.
    """

    def __init__(
        self,
        model: FastSCNN,
        *,
        aux_weight: float = 0.4,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
        ohem: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.aux_weight = aux_weight
        self.label_smoothing = label_smoothing
        self.ohem = ohem
        self.register_buffer("class_weights", class_weights, persistent=False)
        pixel_weight = torch.zeros(256)
        pixel_weight[: model.num_classes] = 1.0 if class_weights is None else class_weights
        self.register_buffer("pixel_weight", pixel_weight, persistent=False)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of N x 3 x H x W against N x H x W uint8 labels (255 ignored).

        The main loss is taken at full resolution, the auxiliary ones at that of their scores.
        """
        scores = self.model.scores_aux(x) if self.aux_weight else (self.model.scores(x),)
        terms = [self._hardest(scores[0], target) if self.ohem else self._sums(scores[0], target)]
        for aux in scores[1:]:
            small = F.interpolate(target[:, None], aux.shape[2:], mode="nearest-exact")[:, 0]
            terms.append(self._sums(aux, small))
        sums, counts = (torch.stack(part) for part in zip(*terms, strict=True))
        weights = torch.full_like(sums, self.aux_weight)
        weights[0] = 1.0
        share = distributed.world() / distributed.total(counts).clamp_min(1e-6)
        return (weights * sums * share).sum()

    def _sums(self, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the pixels' losses and of their weights; no pixel gives zeros."""
        sums = operations(scores.device).cross_entropy_head_sums
        loss, count = sums(scores.float(), target, weight=self.class_weights, **self._options)[:2]
        return loss, count

    def _hardest(self, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The same of the hardest pixels."""
        losses = operations(scores.device).cross_entropy_head
        loss = losses(
            scores.float(), target, weight=self.class_weights, reduction="none", **self._options
        )
        weights = self.pixel_weight[target.long()]  # type: ignore[index]
        kept = max(1, int(self.ohem * int((weights > 0).sum())))
        hard = loss >= loss.detach().flatten().topk(kept).values[-1]
        return (loss * hard).sum(), (weights * hard).sum()

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "ignore_index": IGNORE,
            "label_smoothing": self.label_smoothing,
            "align_corners": self.model.config.head_align_corners,
        }


def operations(device: torch.device) -> ModuleType:
    """The fused operations where they train, else their twins in PyTorch."""
    return (
        fastscnn_kernels
        if device.type in fastscnn_kernels.TRAINING_DEVICES
        else fastscnn_kernels.reference
    )


class ClassificationLoss(nn.Module):
    """The classifier with its cross-entropy, the mean over the images of all processes."""

    def __init__(self, model: FastSCNNClassifier, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of N x 3 x H x W against N class indices."""
        logits = self.model(x).float()
        return F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
