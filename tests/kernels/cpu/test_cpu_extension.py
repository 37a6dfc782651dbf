"""The compiled extension: what it reports, and what is said where it cannot be loaded."""

from __future__ import annotations

import sys

import pytest

from fastscnn_kernels import extension


def test_device_info() -> None:
    info = extension.device_info()
    assert info["cpu_instruction_set"] == info["cpu_instruction_sets"][0]
    assert info["cpu_lanes"] in (4, 8, 16)
    assert info["cpu_threads"] >= 1
    assert info["cuda_devices"] >= 0
    assert info["cuda_built"] == (info["cuda_runtime_version"] > 0)


def test_a_missing_extension_names_the_command_that_builds_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "fastscnn_kernels._C", None)
    extension.load.cache_clear()
    with pytest.raises(ImportError, match=r"pip install -e \. --no-build"):
        extension.load()
    extension.load.cache_clear()
