"""The whole network in Triton, and the bytes that production tiles move."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_cases import CASES, depthwise, fusion, head, pointwise, pyramid, separable, stem
from sanitizer import sanitized
from tolerance import assert_close
from training_cases import CASES as TRAINING_CASES

import fastscnn_kernels.triton as kernels
from fastscnn.inference.fold import fold
from fastscnn.inference.gpu_runtime import GpuRuntime
from fastscnn.network.config import PRESETS
from fastscnn.network.model import FastSCNN
from fastscnn_kernels import reference
from fastscnn_kernels.triton import tiles

HALF = torch.float16


@pytest.fixture
def large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """One program per launch: the interpreter's time goes by programs, not by their size."""

    def choose(op: str, x: torch.Tensor, *, pixels: int, inner: int, outer: int) -> tiles.Tile:
        side = 4 if pixels <= 16 else 16
        return tiles.Tile(side, side, _at_least_16(inner), _at_least_16(outer), 4, 1)

    monkeypatch.setattr(tiles, "choose", choose)


def _at_least_16(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())


def calibrated(preset: str, num_classes: int) -> FastSCNN:
    """A seeded model whose batch norms have seen data, so that no layer is trivial."""
    torch.manual_seed(1)
    model = FastSCNN(num_classes, config=PRESETS[preset])
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(2, 3, 64, 64))
    return model.eval()


@pytest.mark.usefixtures("large_tiles")
@pytest.mark.parametrize("preset", PRESETS)
def test_network_equals_reference(preset: str) -> None:
    model = calibrated(preset, 11)
    config = model.config
    frame = torch.randint(0, 256, (1, 41, 70, 3), dtype=torch.uint8)
    x = reference.normalize(frame, config.mean, config.std)
    with torch.no_grad():
        peer = model.scores(x)
        exact = model.double().scores(x.double())
    runtime = GpuRuntime(fold(model.float()), config, 11, torch.float32, ops=kernels)
    assert_close(runtime.scores(frame), exact, peer)


@pytest.mark.usefixtures("large_tiles")
def test_runtime_outputs_agree() -> None:
    """Labels, confidence, probabilities and logits of one runtime, also at another output size."""
    model = calibrated("tramac", 7)
    runtime = GpuRuntime(fold(model), model.config, 7, torch.float32, ops=kernels)
    frame = torch.randint(0, 256, (2, 33, 48, 3), dtype=torch.uint8)
    x = reference.normalize(frame, model.config.mean, model.config.std)
    with torch.no_grad():
        peer, exact = model(x), model.double()(x.double())
    got = runtime.outputs(frame, ("labels", "confidence", "probabilities", "logits"))
    chosen = exact.gather(1, got["labels"].long().unsqueeze(1)).squeeze(1)
    assert ((exact.amax(1) - chosen) / exact.abs().max()).max() < 1e-4
    assert_close(got["logits"], exact, peer)
    assert_close(got["probabilities"], exact.softmax(1), peer.softmax(1))
    assert_close(got["confidence"], exact.softmax(1).amax(1), peer.softmax(1).amax(1))
    assert runtime.outputs(frame, ("labels",), (20, 31))["labels"].shape == (2, 20, 31)


#: op, arguments (fp16, a whole number of tiles), bytes allowed over the ideal, weights' names.
#: Maps up to 32x64 live in L2 together with their weights; the same limits hold for them.
TRAFFIC = (
    pytest.param("stem_conv", stem((1, 64, 64), 1, HALF), 1.3, id="stem_conv"),
    pytest.param("depthwise_conv", depthwise((1, 64, 24, 24), HALF), 1.8, id="depthwise_conv"),
    pytest.param("depthwise_conv", depthwise((1, 64, 32, 32), HALF, stride=2), 1.8, id="stride-2"),
    pytest.param("pointwise_conv", pointwise((1, 64, 16, 16), 384, HALF), 1.3, id="expand-64"),
    pytest.param("pointwise_conv", pointwise((1, 96, 8, 8), 576, HALF), 1.3, id="expand-96"),
    pytest.param("pointwise_conv", pointwise((1, 768, 8, 8), 128, HALF), 1.3, id="project"),
    pytest.param("dsconv", separable((1, 32, 32, 32), 48, HALF, stride=2), 1.8, id="dsconv-s2"),
    pytest.param("dsconv", separable((1, 128, 24, 24), 128, HALF), 1.8, id="dsconv"),
    pytest.param("pyramid_pool", pyramid((1, 128, 8, 16), 32, 1, HALF), 1.8, id="pyramid_pool"),
    pytest.param("feature_fusion", fusion((64, 16, 16), (64, 4, 4), False, HALF), 1.8,
                 id="feature_fusion"),
    pytest.param("argmax_head", head((1, 19, 8, 32), (64, 256), False, HALF), 1.8, id="argmax"),
)  # fmt: skip
WEIGHTS = ("weight", "bias", "depthwise", "depthwise_bias", "pointwise", "pointwise_bias",
           "weights", "biases", "low_weight", "low_bias", "high_weight", "high_bias")  # fmt: skip


@pytest.mark.parametrize(("op", "inputs", "limit"), TRAFFIC)
def test_bytes_moved(op: str, inputs: Any, limit: float) -> None:
    """Distinct bytes per program, summed, over the bytes of the activations."""
    args, kwargs = inputs
    with sanitized() as watch:
        getattr(kernels, op)(*args, **kwargs)
    for launch in watch.launches:
        ratio = launch.ratio(*WEIGHTS)
        print(f"{op}: {launch.kernel} moves {ratio:.2f} times the ideal")
        assert ratio <= limit, f"{launch.kernel} moves {ratio:.2f} times the ideal"


def test_every_op_has_a_case() -> None:
    cases = (*CASES, *TRAINING_CASES)
    assert {c.op for c in cases} == set(kernels.__all__)
