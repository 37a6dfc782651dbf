"""Training by many processes: what they share, and that they train as one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from training_data import (
    one_thread,  # noqa: F401 (used by every test)
    read_state,
    start_pair,
    tiny,
    trainer,
    write_folder,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "drawn" / "own")


PROCESS = """
import sys
from pathlib import Path
from fastscnn.training import distributed
from training_data import tiny, trainer
trainer(tiny(**eval(sys.argv[3])), Path(sys.argv[1]), Path(sys.argv[2])).run()
distributed.stop()
"""


def test_two_processes_train_as_one(data: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    values = {"dropout": 0.0, "freeze_bn": True, "lr": 0.005, "scale": (0.3, 1.5), "momentum": 0.5}
    jobs = start_pair(PROCESS, str(data), str(two), repr(values))
    trainer(tiny(**values), data, one).run()
    assert [job.wait(300) for job in jobs] == [0, 0]
    alone, both = read_state(one), read_state(two)
    for a, b in zip(alone["progress"]["rows"], both["progress"]["rows"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-5)
        assert a["miou"] == pytest.approx(b["miou"], abs=2e-3)
    for name, value in alone["model"].items():
        assert torch.allclose(value, both["model"][name], rtol=1e-3, atol=1e-5), name


PAIR = """
import json, os, sys
from pathlib import Path
import torch
from fastscnn.training import data, distributed
from training_data import tiny, trainer
data.BAD_SHARE = 0.5
root, out = Path(sys.argv[1]), Path(sys.argv[2])
run = trainer(tiny(zero_skip=True, seed=3), root, out / "run")
run._prepare()
model, found = run.learner.model, {}
run.learner.train()
for number, (batch, *_) in zip(range(2), run._batches()):
    run.learner.step(batch, number, 6)
found["seed"] = torch.initial_seed()
sums = lambda name: [float(t.double().sum()) for t in getattr(model, name)()]
found["own"], found["parameters"] = sums("buffers"), sums("parameters")
evaluated = run.learner.evaluated()
found["shared"] = sums("buffers")
run.progress.step = 2
run._save()
resumed = trainer(tiny(zero_skip=True, seed=3), root, out / "run")
resumed._prepare()
found["step"], model = resumed.progress.step, resumed.learner.model
found["resumed"] = sums("parameters")
score = run.task.validate(evaluated)
found["score"], found["unreadable"] = score.values, score.unreadable
(out / f"{distributed.rank()}.json").write_text(json.dumps(found))
distributed.stop()
os._exit(0)  # the epoch is left in its middle: its loader's thread may still compute
"""


def test_what_two_processes_share_and_what_they_do_not(tmp_path: Path) -> None:
    """Weights and, for validation, statistics and counts of all files; not dropout's seed."""
    data = write_folder(tmp_path / "own")
    image = data / "val/images/001.png"  # which process 1 reads
    image.write_bytes(image.read_bytes()[:600])
    assert [job.wait(300) for job in start_pair(PAIR, str(data), str(tmp_path))] == [0, 0]
    zero, one = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert zero["seed"] != one["seed"]
    assert zero["parameters"] == one["parameters"]
    assert zero["resumed"] == one["resumed"] == zero["parameters"]
    assert zero["step"] == one["step"] == 2
    assert zero["own"] != one["own"]
    assert one["shared"] == zero["shared"] == zero["own"]
    assert zero["score"] == one["score"]
    assert (zero["unreadable"], one["unreadable"]) == (1, 1)
