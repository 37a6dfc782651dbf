"""A network with its losses, optimizer, loss scaler and averaged weights, one step at a time."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fastscnn.training import distributed
from fastscnn.training.augment import normalize
from fastscnn.training.loading import Batch, derive
from fastscnn.training.optimize import learning_rate, make_optimizer, update_average
from fastscnn.training.recipe import Recipe

_AMP = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Learner:
    """All that a step changes, on one device; `losses` holds `model` and gives a scalar loss."""

    def __init__(
        self, recipe: Recipe, model: Any, losses: nn.Module, device: torch.device, *, compile: bool
    ) -> None:
        self.recipe, self.device = recipe, device
        if recipe.sync_bn and device.type != "cuda":
            raise ValueError("sync_bn needs GPUs: leave it out on a CPU")
        if recipe.sync_bn:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # replaces the layers in place
        self.model = model.to(device, memory_format=torch.channels_last)
        self._losses = self._wrap(losses.to(device), compile)
        self.average = copy.deepcopy(self.model).eval() if recipe.ema else None
        self._optimizer = make_optimizer(recipe, self.model)
        self._scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp == "fp16")

    def _wrap(self, losses: nn.Module, compile: bool) -> nn.Module:
        if compile:
            losses = torch.compile(losses)  # type: ignore[assignment]
        if distributed.world() == 1:
            return losses
        return nn.parallel.DistributedDataParallel(
            losses,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            find_unused_parameters=self.recipe.zero_skip,
        )

    @property
    def deployed(self) -> nn.Module:
        """The weights that are validated and kept: averaged ones if the recipe asks for them."""
        return self.average or self.model

    def step(self, batch: Batch, number: int, steps: int) -> Tensor:
        """Step `number` (from 0) of a run of `steps`; returns the loss before it, a scalar."""
        r, config = self.recipe, self.model.config
        torch.manual_seed(derive(r.seed, 2, number, distributed.rank()))  # dropout
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(r, number, steps)
        images = batch.images.to(self.device, non_blocking=True)
        targets = batch.targets.to(self.device, non_blocking=True)
        x = normalize(images, batch.factors, config.mean, config.std)
        with torch.autocast(self.device.type, _AMP[r.amp], enabled=r.amp != "none"):
            loss: Tensor = self._losses(x, targets)
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        if r.clip_norm:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), r.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self.average is not None:
            update_average(self.average, self.model, r.ema, number)
        return loss.detach()

    def train(self) -> None:
        """Training mode, but for batch norm where the recipe freezes it."""
        self.model.train()
        if self.recipe.freeze_bn:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def evaluated(self) -> nn.Module:
        """The deployed weights in eval mode, with process 0's statistics everywhere."""
        distributed.share_buffers(self.model, self.average)
        return self.deployed.eval()

    def is_finite(self) -> bool:
        """Whether all weights are numbers."""
        finite = torch.stack([p.detach().isfinite().all() for p in self.model.parameters()])
        return bool(finite.all())

    def state(self) -> dict[str, Any]:
        """All that `restore` needs to go on to the bit."""
        return {
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over what `state` gave."""
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
