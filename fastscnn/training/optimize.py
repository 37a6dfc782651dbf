"""Optimizer, learning rate and averaged weights of a recipe."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastscnn.training.recipe import Recipe


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


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """SGD as in the paper, or AdamW."""
    groups = parameter_groups(model, recipe.weight_decay)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Poly schedule over all steps, with a linear rise over the first `warmup_steps`."""
    rise = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    return recipe.lr * rise * (1 - step / steps) ** recipe.power


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Moves the averaged weights and statistics towards the model's; faster in the first steps."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    mine, theirs = average.state_dict(), model.state_dict()
    floats = [k for k in mine if mine[k].is_floating_point()]
    torch._foreach_lerp_([mine[k] for k in floats], [theirs[k] for k in floats], weight)
    for key in mine.keys() - set(floats):
        mine[key].copy_(theirs[key])
