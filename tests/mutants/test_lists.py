"""The kept faults can be planted: their lines are there, and so are the tests that find them."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("mutants", ROOT / "tests/mutants/run.py")
assert SPEC is not None
assert SPEC.loader is not None
mutants = importlib.util.module_from_spec(SPEC)
sys.modules["mutants"] = mutants
SPEC.loader.exec_module(mutants)
FAULTS = mutants.faults()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.key)
def test_a_fault_has_its_line_and_its_tests(fault: mutants.Fault) -> None:  # type: ignore[name-defined]
    planted = fault.planted((ROOT / fault.file).read_text("utf-8"))
    if fault.file.endswith(".py"):
        ast.parse(planted)
    assert fault.tests
    for test in fault.tests:
        file, _, name = test.partition("::")
        text = (ROOT / file).read_text("utf-8")
        assert not name or f"\ndef {name.partition('[')[0]}(" in text, test


def test_no_name_is_given_twice() -> None:
    keys = [f.key for f in FAULTS]
    assert len(set(keys)) == len(keys)


def test_a_line_that_is_not_there_or_there_twice_is_refused() -> None:
    fault = mutants.Fault("room", "name", "f.py", "a = 1", "a = 2", ("t.py",))
    assert fault.planted("x\na = 1\n") == "x\na = 2\n"
    for text in ("a = 3", "a = 1\na = 1"):
        with pytest.raises(ValueError, match=r"room: name: 'a = 1' is \d times in f\.py"):
            fault.planted(text)
