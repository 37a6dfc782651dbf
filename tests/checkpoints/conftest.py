"""What the tests of checkpoints share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastscnn.checkpoints.files import convert, save
from fastscnn.network.config import PRESETS
from fastscnn.network.model import FastSCNN


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Hundreds of small tensors: starting threads for each costs more than they save."""
    before = torch.get_num_threads()
    if "golden" not in request.node.name:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tramac(tmp_path: Path) -> Path:
    """A small stand-in that needs no data: our random weights under Tramac's names."""
    torch.manual_seed(0)
    own = tmp_path / "own.safetensors"
    save(FastSCNN(5, config=PRESETS["tramac"]), own)
    convert(own, tmp_path / "tramac.pth", to="tramac")
    return tmp_path / "tramac.pth"
