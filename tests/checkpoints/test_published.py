"""Two published networks written out in plain PyTorch from their own names, as their sources have
them; of the others the layers are on record (test_layouts.py). And what surrounds the names:
variances, prefixes, byte orders, containers."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastscnn.checkpoints.card import Card
from fastscnn.checkpoints.files import CheckpointError, convert, read_checkpoint, save
from fastscnn.checkpoints.formats import write_tensors
from fastscnn.checkpoints.layouts import LAYOUTS
from fastscnn.load import load
from fastscnn.network.config import PRESETS
from fastscnn.network.model import FastSCNN


def random_state(layout: str, seed: int = 0) -> dict[str, Tensor]:
    """Under the layout's names; every value its own, activations near 1."""
    g = torch.Generator().manual_seed(seed)
    shapes = LAYOUTS[layout].shapes(7, LAYOUTS[layout].config)
    state = {}
    for ours, theirs in LAYOUTS[layout].names(shapes).items():
        shape = shapes[ours]
        if len(shape) == 4:
            state[theirs] = torch.randn(shape, generator=g) * (2 / (np.prod(shape[1:]))) ** 0.5
        elif ours.endswith("num_batches_tracked"):
            state[theirs] = torch.tensor(len(state))
        else:
            positive = ours.endswith(("bn.weight", "running_var"))
            spread = torch.rand if positive else torch.randn
            state[theirs] = spread(shape, generator=g) * (1 if positive else 0.2) + 0.5 * positive
    return state


class Theirs:
    """A state dict whose convolutions and batch norms are applied by name."""

    def __init__(self, state: dict[str, Tensor], affine: tuple[str, str]) -> None:
        self.state = state
        self.affine = affine
        self.used: set[str] = set()

    def get(self, key: str) -> Tensor:
        self.used.add(key)
        return self.state[key]

    def conv(self, name: str, x: Tensor, *, bias: bool = False, **how: Any) -> Tensor:
        weight = self.get(f"{name}.weight")
        groups = x.shape[1] if weight.shape[1] == 1 else 1
        return F.conv2d(x, weight, self.get(f"{name}.bias") if bias else None, groups=groups, **how)

    def bn(self, name: str, x: Tensor) -> Tensor:
        keys = ("running_mean", "running_var", *self.affine)
        return F.batch_norm(x, *(self.get(f"{name}.{k}") for k in keys), eps=1e-5)


def pyramid(x: Tensor, branches: Any, align: bool) -> Tensor:
    maps = [x]
    for k, bins in enumerate((1, 2, 3, 6)):
        y = branches(k, F.adaptive_avg_pool2d(x, bins))
        maps.append(F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=align))
    return torch.cat(maps, 1)


def mmseg_before_606(t: Theirs, x: Tensor) -> Tensor:
    """mmsegmentation up to June 2021, align_corners False as its configuration says."""
    size = x.shape[2:]

    def module(name: str, x: Tensor, activation: Any = F.relu, **how: Any) -> Tensor:
        y = t.bn(f"{name}.bn", t.conv(f"{name}.conv", x, **how))
        return activation(y) if activation else y

    def separable(name: str, x: Tensor, stride: int) -> Tensor:
        y = module(f"{name}.depthwise_conv", x, stride=stride, padding=1)
        return module(f"{name}.pointwise_conv", y)

    x = module("backbone.learning_to_downsample.conv", x, stride=2)  # without padding
    x = separable("backbone.learning_to_downsample.dsconv1", x, 2)
    high = x = separable("backbone.learning_to_downsample.dsconv2", x, 2)
    features = "backbone.global_feature_extractor"
    for stage, stride in ((1, 2), (2, 2), (3, 1)):
        for block in range(3):
            name = f"{features}.bottleneck{stage}.{block}.conv"
            y = module(f"{name}.0", x, F.relu6)
            y = module(f"{name}.1", y, F.relu6, stride=1 if block else stride, padding=1)
            y = module(f"{name}.2", y, None)
            x = x + y if block else y
    x = pyramid(x, lambda k, y: module(f"{features}.ppm.{k}.1", y), align=False)
    x = module(f"{features}.out", x)
    fusion = "backbone.feature_fusion"
    x = F.interpolate(x, high.shape[2:], mode="bilinear", align_corners=False)
    x = module(f"{fusion}.dwconv", x)
    x = module(f"{fusion}.conv_lower_res", x, None)
    x = F.relu(x + module(f"{fusion}.conv_higher_res", high, None))
    x = separable("decode_head.convs.1", separable("decode_head.convs.0", x, 1), 1)
    x = t.conv("decode_head.conv_seg", x, bias=True)
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def gluoncv(t: Theirs, x: Tensor) -> Tensor:
    """gluon-cv's fastscnn, whose BilinearResize2D aligns corners everywhere."""
    size = x.shape[2:]

    def block(name: str, x: Tensor, a: int = 0, b: int = 1, **how: Any) -> Tensor:
        return t.bn(f"{name}.{b}", t.conv(f"{name}.{a}", x, **how))

    def separable(name: str, x: Tensor, stride: int) -> Tensor:
        y = F.relu(block(f"{name}.conv", x, stride=stride, padding=1))
        return F.relu(block(f"{name}.conv", y, 3, 4))

    x = F.relu(block("learning_to_downsample.conv.block", x, stride=2))  # without padding
    x = separable("learning_to_downsample.dsconv1", x, 2)
    high = x = separable("learning_to_downsample.dsconv2", x, 2)
    features = "global_feature_extractor"
    for stage, stride in ((1, 2), (2, 2), (3, 1)):
        for i in range(3):
            name = f"{features}.bottleneck{stage}.{i}.block"
            y = F.relu(block(f"{name}.0.block", x))
            y = F.relu(block(f"{name}.1.conv", y, stride=1 if i else stride, padding=1))
            y = block(name, y, 2, 3)
            x = x + y if i else y
    x = pyramid(x, lambda k, y: F.relu(block(f"{features}.ppm.conv{k + 1}", y)), align=True)
    x = F.relu(block(f"{features}.ppm.out.block", x))
    x = F.interpolate(x, high.shape[2:], mode="bilinear", align_corners=True)
    x = F.relu(block("feature_fusion.dwconv.conv", x, padding=1))
    low = t.bn("feature_fusion.bn", t.conv("feature_fusion.conv_lower_res", x, bias=True))
    skip = t.conv("feature_fusion.conv_higher_res", high, bias=True)
    x = F.relu(low + t.bn("feature_fusion.bn_high", skip))
    x = separable("classifier.dsconv2", separable("classifier.dsconv1", x, 1), 1)
    x = t.conv("classifier.conv", x, bias=True)
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


@pytest.mark.parametrize(
    ("forward", "suffix", "affine"),
    [(mmseg_before_606, ".pth", ("weight", "bias")), (gluoncv, ".npz", ("gamma", "beta"))],
    ids=["mmseg_before_606", "gluoncv"],
)
def test_forward_as_published(
    tmp_path: Path, forward: Any, suffix: str, affine: tuple[str, str]
) -> None:
    torch.set_num_threads(1)
    name = forward.__name__
    state = random_state(name)
    write_tensors(tmp_path / f"theirs{suffix}", state)
    model = load(tmp_path / f"theirs{suffix}", fused=False, device="cpu")
    assert model.card is not None
    assert model.card.source == name
    counted = {int(v) for k, v in state.items() if k.endswith("num_batches_tracked")}
    own = {int(v) for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
    assert own == (counted or {0})
    theirs = Theirs(state, affine)
    for size in ((97, 161), (128, 192)):
        x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            expected, logits = forward(theirs, x), model(x)
        assert float((logits - expected).abs().max()) < 1e-5 * float(expected.abs().max()), size
    assert theirs.used == {k for k in state if not k.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    ("layout", "key"),
    [
        ("paddleseg", "feature_fusion.dwconv._batch_norm._variance"),
        ("gluoncv", "feature_fusion.bn.running_var"),
        ("tramac", "feature_fusion.dwconv.conv.1.running_var"),
    ],
)
def test_a_negative_variance_is_named_as_the_file_does(
    tmp_path: Path, layout: str, key: str
) -> None:
    state, path = random_state(layout), tmp_path / f"x{LAYOUTS[layout].suffixes[0]}"
    state[key][5] = -0.1
    write_tensors(path, state)
    with pytest.raises(CheckpointError, match=rf"{key} holds negative variances"):
        read_checkpoint(path)


def test_mxnets_prefixes_and_other_byte_orders(tmp_path: Path) -> None:
    """MXNet files arguments as arg: and statistics as aux:; a file may be big-endian."""
    state = random_state("gluoncv")
    statistics = ("running_mean", "running_var")
    arrays = {
        ("aux:" if key.endswith(statistics) else "arg:") + key: value.numpy().astype(">f4")
        for key, value in state.items()
    }
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    write_tensors(tmp_path / "plain.npz", state)
    found, plain = (read_checkpoint(tmp_path / f"{n}.npz").state for n in ("x", "plain"))
    for key, value in plain.items():
        assert torch.equal(found[key], value), key


def test_big_endian_pdparams(tmp_path: Path) -> None:
    state = random_state("paddleseg")
    for name, order in (("little", "<f4"), ("big", ">f4")):
        arrays = {k: v.numpy().astype(order) for k, v in state.items()}
        (tmp_path / f"{name}.pdparams").write_bytes(pickle.dumps(arrays, protocol=2))
    little, big = (read_checkpoint(tmp_path / f"{n}.pdparams").state for n in ("little", "big"))
    assert torch.equal(little["classifier.conv.bias"], state["classifier.conv.bias"])
    for key, value in little.items():
        assert torch.equal(big[key], value), key


def test_convert_writes_the_container_and_the_dtype(tmp_path: Path) -> None:
    """mmsegmentation reads checkpoints with `state_dict` in them; Tramac's are bare."""
    torch.manual_seed(0)
    for layout, wrapper in (("mmseg", "state_dict"), ("tramac", None)):
        own, out = tmp_path / f"{layout}.safetensors", tmp_path / f"{layout}-theirs.pth"
        save(FastSCNN(5, config=PRESETS[layout]), own)
        convert(own, out, to=layout, dtype=torch.float16)
        state = read_checkpoint(own).state
        content = torch.load(out, weights_only=True)
        assert (set(content) == {wrapper}) == (wrapper is not None)
        tensors = content if wrapper is None else content[wrapper]
        expected = LAYOUTS[layout].names(state)
        assert set(tensors) == set(expected.values())
        for ours, theirs in expected.items():
            want = state[ours].half() if state[ours].is_floating_point() else state[ours]
            assert tensors[theirs].dtype == want.dtype, theirs
            assert torch.equal(tensors[theirs], want), theirs
        convert(own, tmp_path / f"{layout}-half.safetensors", dtype=torch.bfloat16)
        half = load(tmp_path / f"{layout}-half.safetensors", fused=False).state_dict()
        for key, value in state.items():
            want = value.bfloat16().float() if value.is_floating_point() else value
            assert torch.equal(half[key], want), key


def test_what_a_card_does_not_know_is_kept(tmp_path: Path) -> None:
    card = Card(num_classes=3, extra={"note": "x", "later": 1})
    values = card.to_dict() | {"licence": "CC0", "later": [2]}
    found = Card.from_dict(values)
    assert found.extra == {"note": "x", "licence": "CC0", "later": [2]}
    assert Card.from_dict(found.to_dict()) == found
    save(FastSCNN(3), tmp_path / "x.safetensors", found)
    again = read_checkpoint(tmp_path / "x.safetensors").card
    assert again == replace(found, config=again.config)
    convert(tmp_path / "x.safetensors", tmp_path / "y.pth")
    assert read_checkpoint(tmp_path / "y.pth").card.extra == found.extra
