"""`fastscnn info`: what runs where, by what the extension says, and the plan that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastscnn.checkpoints.files import save
from fastscnn.cli import main
from fastscnn.inference.plan import plan, table
from fastscnn.info import info
from fastscnn.network.config import PRESETS
from fastscnn.network.model import FastSCNN
from fastscnn_kernels.extension import device_info


def test_the_cpu_is_what_the_extension_says() -> None:
    known = device_info()
    line = next(line for line in info() if line.startswith("cpu: "))
    every = ", ".join(known["cpu_instruction_sets"])
    assert line == (
        f"cpu: {known['cpu_instruction_set']} (of {every}), {torch.get_num_threads()} threads"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the plan is of the GPU at hand")
def test_the_plan_is_of_the_weights_and_the_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(FastSCNN(3, config=PRESETS["tramac"]), tmp_path / "own.safetensors")
    arguments = ["info", "--plan", "256x512", "--batch", "4"]
    assert main([*arguments, "--weights", str(tmp_path / "own.safetensors")]) == 0
    assert capsys.readouterr().out.rstrip() == table(
        plan(PRESETS["tramac"], 3, (256, 512), batch=4)
    )
