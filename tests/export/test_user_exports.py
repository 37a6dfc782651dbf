"""torch's own exporters on the models that users hold, with free N, H and W."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from export_networks import network
from torch.export import Dim

from fastscnn.inference.fused import FusedFastSCNN
from fastscnn.network.blocks import pool
from fastscnn.network.model import FastSCNN

SHAPES = [(1, 3, 65, 97), (2, 3, 101, 70)]


def fused(preset: str) -> FusedFastSCNN:
    """As `fastscnn.load` gives it."""
    net = FusedFastSCNN(19, config=network(preset).config)
    net.load_state_dict(network(preset).state_dict())
    return net.eval()


@pytest.mark.parametrize("grad", [False, True])
def test_torch_export_gives_aten_operations(grad: bool) -> None:
    net = fused("paddleseg")
    sizes = {0: Dim("n"), 2: Dim("h", min=35), 3: Dim("w", min=35)}
    with torch.set_grad_enabled(grad):
        program = torch.export.export(net, (torch.randn(2, 3, 64, 96),), dynamic_shapes=(sizes,))
    called = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert not [target for target in called if "fastscnn" in target]
    with torch.no_grad():
        for shape in SHAPES:
            x = torch.randn(shape)
            assert torch.allclose(program.module()(x), net(x), atol=1e-4)


def onnx_logits(net: FastSCNN, path: Path, **options: Any) -> list[np.ndarray]:
    """torch's ONNX file of a network, run at sizes that it was not traced with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = torch.randn(2, 3, 64, 96)
        torch.onnx.export(net, (x,), path, input_names=["x"], verbose=False, **options)
    session = onnxruntime.InferenceSession(path)
    return [session.run(None, {"x": inputs(shape).numpy()})[0] for shape in SHAPES]


def inputs(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[2]))


@pytest.mark.parametrize("preset", ["paper", "paddleseg", "tramac"])
@pytest.mark.parametrize(
    "dynamo", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["tracing", "dynamo"]
)
def test_torch_onnx_export_of_every_size(tmp_path: Path, preset: str, dynamo: bool) -> None:
    """Adaptive pooling to 2, 3 and 6 bins of maps that they do not divide."""
    axes = {0: "n", 2: "h", 3: "w"}
    options: dict[str, Any] = {"dynamo": False, "dynamic_axes": {"x": axes}}
    if dynamo:
        options = {"dynamo": True, "dynamic_shapes": ({a: Dim.DYNAMIC for a in axes},)}
    net = fused(preset)
    for got, shape in zip(onnx_logits(net, tmp_path / "n.onnx", **options), SHAPES, strict=True):
        with torch.no_grad():
            expected = net(inputs(shape)).numpy()
        assert np.abs(got - expected).max() < 1e-5 * np.ptp(expected)


def test_pooling_as_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the ONNX exporters see equals torch's operation at every size of a map."""
    for size in (1, 2, 5, 6, 7, 13, 24):
        x = torch.randn(2, 3, size, 8)
        for bins in (1, 2, 3, 6):
            expected = pool(x, bins)
            with monkeypatch.context() as patch:
                patch.setattr("torch.onnx.is_in_onnx_export", lambda: True)
                got = pool(x, bins)
            assert torch.allclose(got, expected, atol=1e-6), (size, bins)
