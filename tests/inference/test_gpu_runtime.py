"""The GPU's network with the twins for its operations, which need no GPU: what it binds and passes
on is the model's, for every preset."""

from __future__ import annotations

import pytest
import torch
from networks import network

from fastscnn.inference.fold import fold
from fastscnn.inference.gpu_runtime import GpuRuntime
from fastscnn.network.config import PRESETS
from fastscnn_kernels import reference


@pytest.mark.parametrize("preset", PRESETS)
def test_every_output_is_the_references(preset: str) -> None:
    model = network(preset, 5)
    x = torch.randn(2, 3, 65, 97)
    runtime = GpuRuntime(fold(model), model.config, 5, torch.float32, ops=reference)
    with torch.no_grad():
        logits = model(x)
        names = ("labels", "confidence", "probabilities", "logits")
        found = runtime.outputs(x, names)
    assert list(found) == list(names)
    error = float((found["logits"] - logits).abs().max() / logits.abs().max())
    assert error < 1e-5
    best = found["logits"].softmax(1)
    torch.testing.assert_close(found["probabilities"], best)
    torch.testing.assert_close(found["confidence"], best.max(1)[0])
    assert torch.equal(found["labels"], found["logits"].max(1)[1].byte())
    half = runtime.outputs(x, ("logits",), (40, 50))["logits"]
    align = model.config.head_align_corners
    torch.testing.assert_close(half, reference.resize(runtime.scores(x), (40, 50), align))
