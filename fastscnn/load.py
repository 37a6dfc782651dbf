"""From a checkpoint, a name or nothing to a model that is ready to use."""

from __future__ import annotations

from pathlib import Path

import torch

from fastscnn.checkpoints.card import Card
from fastscnn.checkpoints.files import (
    Checkpoint,
    CheckpointError,
    config_differences,
    find_checkpoint,
)
from fastscnn.inference.ranges import check_ranges
from fastscnn.network.config import FastSCNNConfig
from fastscnn.network.model import Backbone, FastSCNN


def load(
    weights: str | Path | None = "camvid",
    *,
    fused: bool = True,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    num_classes: int | None = None,
) -> FastSCNN:
    """A model in eval mode, with what is known about its weights as `model.card`.

    `weights` is the name of a shipped checkpoint, a path (any layout and format that
    `read_checkpoint` knows), or None for fresh weights of the paper's network (19 classes unless
    `num_classes` says otherwise). `fused=False` gives the plain reference network. `device` is by
    default the GPU if there is one. To fine-tune on another number of classes, build
    `load(None, num_classes=N)` and give it to `load_backbone`.

    Raises FileNotFoundError, CheckpointError or ValueError, each naming the fix.
    """
    place = find_device(device)
    if dtype not in (None, torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"dtype={dtype}: expected torch.float32, torch.float16 or torch.bfloat16")
    network = FastSCNN
    if fused:
        from fastscnn.inference.fused import FusedFastSCNN

        network = FusedFastSCNN
    if weights is None:
        model = network(19 if num_classes is None else num_classes)
        model.card = Card(model.config, model.num_classes, source="fresh weights")
    else:
        found = find_checkpoint(weights)
        _check_classes(found, num_classes)
        model = network(found.card.num_classes, config=found.config)
        model.load_state_dict(found.state)
        model.card = found.card
        _check_ranges(found)
    return model.eval().to(place, dtype)


def load_backbone(model: Backbone, weights: str | Path) -> list[str]:
    """Copy everything that fits from a checkpoint into `model`, except the last layer.

    For fine-tuning on other classes, or after pre-training with FastSCNNClassifier, which gives
    learning to downsample and the global feature extractor. Returns the keys of the model that
    kept their values. Raises CheckpointError where the two networks compute differently.
    """
    found = find_checkpoint(weights)
    differ = config_differences(found.config, model.config)
    if differ:
        raise CheckpointError(
            f"{found.path} is of another network: {'; '.join(differ)}; build the model with "
            f"config={_config_hint(found)}"
        )
    own = model.state_dict()
    usable = {
        key: value
        for key, value in found.state.items()
        if key in own and not key.startswith(("classifier.conv.", "linear."))
    }
    model.load_state_dict(usable, strict=False)
    return [key for key in own if key not in usable]


def _check_ranges(found: Checkpoint) -> None:
    if found.card.ranges:
        try:
            check_ranges(found.card.ranges, found.config)
        except ValueError as error:
            raise CheckpointError(f"{found.path}: {error}") from None


def _check_classes(found: Checkpoint, num_classes: int | None) -> None:
    if found.layout.net is not FastSCNN:
        raise CheckpointError(
            f"{found.path} is a classifier for pre-training: build a FastSCNN and use "
            f"fastscnn.load_backbone(model, {str(found.path)!r})"
        )
    if num_classes not in (None, found.card.num_classes):
        raise CheckpointError(
            f"{found.path} has {found.card.num_classes} classes, but num_classes={num_classes} was "
            f"asked for: leave num_classes out, or to fine-tune use fastscnn.load(None, "
            f"num_classes={num_classes}) and fastscnn.load_backbone(model, {str(found.path)!r})"
        )


def _config_hint(found: Checkpoint) -> str:
    if found.config == FastSCNNConfig.paper():
        return "FastSCNNConfig.paper()"
    if found.layout.table:
        return f"fastscnn.checkpoints.layouts.LAYOUTS[{found.layout.name!r}].config"
    return "that of its card (read_checkpoint(path).config)"


def find_device(device: str | torch.device | None) -> torch.device:
    """The device (by default the GPU if there is one), after one small tensor was put there.

    Raises ValueError naming those that can be used.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        if place.type not in ("cpu", "cuda"):
            raise NotImplementedError("there are no kernels for it")
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"device {str(device)!r} cannot be used here: expected one of {', '.join(devices)} "
            f"({reason[:160]})"
        ) from None
    return place
