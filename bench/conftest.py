"""Options of the benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--smoke", action="store_true", help="smallest sizes, one round: does it run?")
    parser.addoption("--compile", action="store_true", help="include torch.compile on the CPU")
    parser.addoption("--data", type=Path, help="accepted as by the tests; not used here")
