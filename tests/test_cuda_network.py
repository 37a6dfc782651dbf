"""The whole network with the CUDA kernels run on the CPU, PyTorch for what they do not take."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "cuda_host"))

import compiled
from host import running_on
from op_cases import bottleneck, case, check, downsample, separable
from tolerance import assert_close

from fastscnn.config import PRESETS
from fastscnn.fold import fold
from fastscnn.gpu_runtime import GpuRuntime
from fastscnn.model import FastSCNN
from fastscnn_kernels.with_cuda import WithCuda


def trained_for_a_moment(preset: str, classes: int) -> FastSCNN:
    """Running statistics that fit the weights, so that activations stay in range."""
    torch.manual_seed(0)
    model = FastSCNN(classes, config=PRESETS[preset])
    with torch.no_grad():
        for _ in range(10):
            model(torch.randn(2, 3, 64, 64))
    return model.eval()


@pytest.mark.parametrize("preset", ["paper", pytest.param("tramac", marks=pytest.mark.slow)])
def test_scores_equal_the_reference(preset: str) -> None:
    model = trained_for_a_moment(preset, 19)
    frame = torch.randint(0, 256, (1, 67, 90, 3), dtype=torch.uint8)
    x = model.preprocess(frame)
    runtime = GpuRuntime(fold(model), model.config, 19, torch.float16, ops=WithCuda())
    with running_on(compiled.load(), seed=2), torch.no_grad():
        scores = runtime.scores(frame)
        labels = runtime.labels(frame)
    with torch.no_grad():
        exact = model.double().scores(x.double())
        peer = model.half().scores(x.half())
    assert_close(scores, exact, peer)
    assert labels.shape == (1, 67, 90)


def test_other_dtypes_and_channels_go_to_the_rest() -> None:
    """No CUDA kernel is reached: outside `running_on` each would refuse a CPU tensor."""
    ops = WithCuda()
    for c in (
        case("dsconv", "float32", separable, (1, 16, 5, 7), 24, core=True),
        case("inverted_residual", "float32", bottleneck, (1, 8, 5, 7), 8, residual=True),
        case("learning_to_downsample", "float32", downsample, (1, 33, 35), 1),
    ):
        args, kwargs = c.make(torch.float32)
        check(c, getattr(ops, c.op)(*args, **kwargs), args, kwargs)
    args, kwargs = separable((1, 30, 5, 7), 24, torch.float16)
    assert ops.dsconv(*args, **kwargs).shape == (1, 24, 5, 7)
