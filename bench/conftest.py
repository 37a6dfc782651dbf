"""Options of the benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--smoke", action="store_true", help="smallest sizes, one round: does it run?")
    parser.addoption("--compile", action="store_true", help="include torch.compile on the CPU")
    parser.addoption("--data", type=Path, help="folder with real frames")
    parser.addoption("--note", default="", help="about the machine, for the reader of the JSON")
    parser.addoption("--seconds", type=float, default=400.0, help="for all of the GPU's groups")


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    machine_info["note"] = config.getoption("--note")
    machine_info["node"] = ""  # a host's name says nothing about its speed
