"""What went wrong on the way to another format: known slips, tried until one explains the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastscnn.export.compare import Reference, Seen, judge
from fastscnn.export.subject import Subject
from fastscnn.network.blocks import Bottleneck, ConvBN, activate
from fastscnn.network.config import IMAGENET_MEAN, IMAGENET_STD
from fastscnn.network.model import FastSCNN

Prepare = Callable[[FastSCNN, Tensor], Tensor]
#: More slips than this in one file are not untangled.
MOST = 3
#: Sets of slips that are followed at once: the nearest is not always on the way.
BEAM = 4


@dataclass(frozen=True)
class Slip:
    """One way to compute something else with the same weights.

    `config` are changed fields, `activations` those of convolutions and sums by module name;
    `prepare` replaces the way from frames to the network's input.
    """

    kind: str
    text: str
    config: dict[str, Any] = field(default_factory=dict)
    activations: dict[str, str] = field(default_factory=dict)
    prepare: Prepare | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


def explain(subject: Subject, net: FastSCNN, seen: Sequence[Seen]) -> list[Slip]:
    """The slips that together make the reference compute what the file does; empty: none do.

    One after another: each round adds every slip to the few sets that brought the reference nearest
    on the first frames, and ends with the first set that explains all.
    """
    near: list[tuple[float, list[Slip]]] = [(judge(subject, Reference(net), seen[0]).distance, [])]
    for _ in range(MOST):
        nearer = []
        for before, found in near:
            for slip in _slips(subject, net):
                if slip in found or (slip.prepare and any(s.prepare for s in found)):
                    continue
                reference = _with(net, [*found, slip])
                row = judge(subject, reference, seen[0])
                if row.passed and all(judge(subject, reference, one).passed for one in seen[1:]):
                    return [*found, slip]
                if row.distance < 0.9 * before:  # less is chance
                    nearer.append((row.distance, [*found, slip]))
        near = sorted(nearer, key=lambda one: one[0])[:BEAM]
    return []


def _with(net: FastSCNN, slips: Sequence[Slip]) -> Reference:
    """The reference as it would be with those slips; it shares the weights."""
    changes: dict[str, Any] = {}
    prepare: Prepare = FastSCNN._normalize
    for slip in slips:
        changes |= slip.config
        prepare = slip.prepare or prepare
    with torch.device("meta"):
        other = FastSCNN(net.num_classes, config=replace(net.config, **changes)).eval()
    other.load_state_dict(net.state_dict(), assign=True)
    for slip in slips:
        for name, activation in slip.activations.items():
            module = other.get_submodule(name)
            if isinstance(module, Bottleneck):  # which has none after its sum
                module.register_forward_hook(lambda _, __, y, f=activation: activate(y, f))
            else:
                module.activation = activation  # type: ignore[assignment]
    return Reference(other, prepare)


def _slips(subject: Subject, net: FastSCNN) -> Iterator[Slip]:
    """All that are known and differ from what the network does, likelier ones first."""
    has = net.config

    def changed(kind: str, name: str, *values: Any) -> Iterator[Slip]:
        now = getattr(has, name)
        yield from (
            Slip(kind, f"{name} {v} in place of {now}", {name: v}) for v in values if v != now
        )

    yield from changed("padding", "stem_padding", 0, 1, "same")
    corners = [f"{place}_align_corners" for place in ("head", "ffm", "ppm")]
    for value in (True, False):
        if any(getattr(has, name) != value for name in corners):
            text = f"{value} everywhere"
            yield Slip("align_corners", text, dict.fromkeys(corners, value))
    for name in corners:
        yield from changed("align_corners", name, not getattr(has, name))
    yield from _input_slips(subject, net)
    yield from changed("ReLU", "dsconv_relu", not has.dsconv_relu)
    yield from changed("ReLU", "bottleneck_activation", "relu", "relu6")
    yield from changed("dilation", "ffm_dilation", 1, 2, 4)
    yield from changed("order", "ppm_order", (0, 1, 2, 3, 6), (0, 6, 3, 2, 1), (1, 2, 3, 6, 0))
    yield from changed("epsilon", "bn_eps", 1e-3, 1e-5)
    for name, block in net.named_modules():
        if isinstance(block, ConvBN) and not name.startswith("aux"):
            missing = block.activation != "none"
            text = f"{'missing' if missing else 'one too many'} after {name}"
            yield Slip("ReLU", text, activations={name: "none" if missing else "relu"})
        elif isinstance(block, Bottleneck) and block.residual:
            yield Slip("ReLU", f"one too many after the sum of {name}", activations={name: "relu"})
    fusion = "feature_fusion"
    yield Slip("ReLU", f"missing after the sum of {fusion}", activations={fusion: "none"})


def _input_slips(subject: Subject, net: FastSCNN) -> Iterator[Slip]:
    """Channel order, and normalisation: inside the file, or a second time in it."""
    yield Slip(
        "channel order",
        "BGR in place of RGB",
        prepare=lambda net, frames: net._normalize(frames.flip(-1)),
    )
    yield Slip(
        "channel order",
        "BGR in place of RGB, after normalising",
        prepare=lambda net, frames: net._normalize(frames).flip(1),
    )
    if subject.input == "tensor":
        for text, unit in (("done a second time inside", 1), ("inside, of values 0..255", 255)):
            yield Slip("normalisation", text, prepare=_again(unit))
        return
    known = {
        "none, values 0..1": ((0.0,) * 3, (1.0,) * 3),
        "none, values 0..255": ((0.0,) * 3, (1 / 255,) * 3),
        "mean and std 0.5": ((0.5,) * 3, (0.5,) * 3),
        "that of ImageNet": (IMAGENET_MEAN, IMAGENET_STD),
        "the mean left out": ((0.0,) * 3, net.config.std),
        "the std left out": (net.config.mean, (1.0,) * 3),
    }
    for text, (mean, std) in known.items():
        if (mean, std) != (net.config.mean, net.config.std):
            yield Slip("normalisation", text, {"mean": mean, "std": std})


def _again(unit: float) -> Prepare:
    def prepare(net: FastSCNN, frames: Tensor) -> Tensor:
        x = net._normalize(frames)
        mean, std = (x.new_tensor(v).reshape(3, 1, 1) for v in (net.config.mean, net.config.std))
        return (x / unit - mean) / std

    return prepare
