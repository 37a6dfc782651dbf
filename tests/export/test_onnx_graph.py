"""The graph against the network it was made of: every preset, every size, every way in and out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_networks import frames, network

import fastscnn
from fastscnn.checkpoints.card import Card
from fastscnn.export.onnx_graph import build
from fastscnn.inference.fold import fold
from fastscnn.media.frames import read_image
from fastscnn.network.config import PRESETS
from fastscnn.network.model import FastSCNN

#: Smallest, odd on both sides, a bin wider than the map, whole multiples of 32.
SHAPES = [(1, 32, 32), (2, 33, 47), (1, 32, 333), (3, 101, 70), (1, 128, 64)]


def run(net: FastSCNN, x: np.ndarray, **options: Any) -> np.ndarray:
    return session(net, **options).run(None, {options.get("input", "frame"): x})[0]


def session(net: FastSCNN, **options: Any) -> onnxruntime.InferenceSession:
    model = build(fold(net), net.config, net.num_classes, **options)
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString())


@pytest.mark.parametrize("preset", PRESETS)
def test_logits_of_every_size(preset: str) -> None:
    """One graph with free N, H, W, against float64."""
    net = network(preset)
    exact = FastSCNN(19, config=net.config).double().eval()
    exact.load_state_dict(net.state_dict())
    ours = session(net, input="tensor", output="logits")
    for shape in SHAPES:
        n, h, w = shape
        x = torch.randn(n, 3, h, w, generator=torch.Generator().manual_seed(h))
        with torch.no_grad():
            logits = exact(x.double()).numpy()
        got = ours.run(None, {"tensor": x.numpy()})[0]
        assert got.shape == logits.shape
        assert np.abs(got - logits).max() < 1e-5 * np.ptp(logits), shape


@pytest.mark.parametrize("align_corners", [False, True])
def test_alignment_is_told_apart(align_corners: bool) -> None:
    """Other corners give other logits, so that the test above means something."""
    net = network("paper")
    config = replace(net.config, head_align_corners=align_corners)
    x = torch.randn(1, 3, 40, 56)
    model = build(fold(net), config, 19, input="tensor", output="logits")
    got = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"tensor": x.numpy()})
    same = np.abs(got[0] - net(x).numpy()).max() < 1e-4
    assert same == (not align_corners)


@pytest.mark.parametrize("preset", ["paper", "tramac", "paddleseg"])
@pytest.mark.parametrize("tensorrt", [False, True])
def test_frames_to_labels(preset: str, tensorrt: bool) -> None:
    net = network(preset)
    for n, h, w in ((1, 64, 96), (2, 75, 51)):
        x = frames(n, h, w)
        labels = run(net, x, tensorrt=tensorrt)
        expected = net.segment(x)
        assert labels.dtype == np.uint8
        assert len(np.unique(expected)) > 3
        assert (labels == expected).mean() > 0.9995


def test_probabilities_and_scores() -> None:
    net = network("paper")
    x = frames(2, 50, 70)
    tensor = net.preprocess(x)
    assert np.allclose(
        run(net, x, output="probabilities"), net.probabilities(tensor).numpy(), atol=1e-4
    )
    scores = net.scores(tensor).numpy()
    got = run(net, tensor.numpy(), input="tensor", output="scores")
    assert got.shape == scores.shape
    assert np.abs(got - scores).max() < 1e-5 * np.ptp(scores)


def test_a_fixed_size_is_declared_and_kept() -> None:
    net = network("leftthomas")
    fixed = session(net, size=(45, 64), batch=2)
    assert fixed.get_inputs()[0].shape == [2, 45, 64, 3]
    assert fixed.get_outputs()[0].shape == [2, 45, 64]
    x = frames(2, 45, 64)
    assert (fixed.run(None, {"frame": x})[0] == net.segment(x)).mean() > 0.9995
    with pytest.raises(Exception, match="invalid dimensions"):
        fixed.run(None, {"frame": x[:, :40]})


def test_float16() -> None:
    net = network("paper")
    x = frames(1, 96, 128)
    logits = net(net.preprocess(x)).numpy()
    got = run(net, x, half=True, output="logits")
    assert got.dtype == np.float16
    assert np.abs(got - logits).max() < 1e-2 * np.ptp(logits)


@pytest.mark.parametrize("shape", [(60, 80), (36, 51), (36, 49), (75, 100), (200, 119), (54, 70)])
@pytest.mark.parametrize("tensorrt", [False, True])
def test_the_working_size_is_that_of_segment(shape: tuple[int, int], tensorrt: bool) -> None:
    """Up and down, with ties (51 -> 76.5 -> 76, 49 -> 73.5 -> 74), odd factors, not at all."""
    net = FastSCNN(19)
    net.load_state_dict(network("paper").state_dict())
    net.eval().card = Card(net.config, 19, size=(54, 72))
    x = frames(1, *shape)
    assert (run(net, x, working_side=54, tensorrt=tensorrt) == net.segment(x)).mean() > 0.9995


def test_values_are_named_as_modules() -> None:
    net = network("paper")
    graph = build(fold(net), net.config, 19, metadata={"layout": "fastscnn"})
    made = {node.output[0] for node in graph.graph.node}
    modules = {name for name, _ in net.named_modules()}
    for name in fold(net):
        assert name in made, name
        assert name in modules, name
    assert [p.key for p in graph.metadata_props] == ["layout"]


def test_real_frames(data_dir: Path) -> None:
    net = fastscnn.load(device="cpu")
    own, working = session(net), session(net, working_side=720)
    for path in sorted((data_dir / "camvid/val").iterdir())[:3]:
        x = read_image(path)
        assert (own.run(None, {"frame": x[None]})[0] == net.segment(x, size=x.shape[:2])).all()
        assert (working.run(None, {"frame": x[None]})[0] == net.segment(x)).mean() > 0.9999


@pytest.mark.parametrize("working_side", [None, 54])
def test_tensorrt_does_nothing_to_bytes_but_cast_them(working_side: int | None) -> None:
    """Its casts to uint8 are from floats, and what it reads in uint8 it casts before all else."""
    net = network("paper")
    model = build(fold(net), net.config, 19, working_side=working_side, tensorrt=True)
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in [*graph.value_info, *graph.input]}
    readers = [n.op_type for n in graph.node if "frame" in n.input]
    assert readers == ["Cast"]
    assert [n for n, t in types.items() if t == onnx.TensorProto.UINT8] == ["frame"]
    (last,) = [n for n in graph.node if "labels" in n.output]
    assert last.op_type == "Cast"
    assert types[last.input[0]] == onnx.TensorProto.FLOAT
    assert not [n for n, t in types.items() if t == onnx.TensorProto.DOUBLE]
