"""Ways to run the network on a CPU: equal labels, one clock, honest skips; runs are compared by
ratios."""

from __future__ import annotations

import json
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import compare as bench_compare

import fastscnn
from fastscnn.benchmark import cpu, timing
from fastscnn.benchmark.compare import compare
from fastscnn.benchmark.cpu import PROVIDERS
from fastscnn.benchmark.memory import kept
from fastscnn.benchmark.provider import Case, Provider, Unavailable, agreement
from fastscnn.checkpoints.files import save
from fastscnn.cli import main
from fastscnn.media.demo import street_scene
from fastscnn.network.config import PRESETS
from fastscnn.network.model import FastSCNN
from fastscnn_kernels.reference import normalize


@pytest.fixture(scope="module")
def model() -> FastSCNN:
    return fastscnn.load("camvid", fused=False, device="cpu").requires_grad_(False)


@pytest.fixture(scope="module")
def case() -> Case:
    streets = [torch.from_numpy(street_scene(96, 160, seed=i))[None] for i in range(4)]
    return Case(streets[0], 1, torch.cat(streets[1:]))


@pytest.mark.parametrize(
    "name", [name for name, p in PROVIDERS.items() if not p.slow and name != "ncnn"]
)
def test_every_way_gives_the_references_labels(model: FastSCNN, case: Case, name: str) -> None:
    (row,) = compare(model, case, [PROVIDERS[name]], 1)
    if "wrong labels" not in row.skipped and row.skipped:
        pytest.skip(row.skipped)
    assert not row.skipped
    assert row.agreement is not None
    assert row.agreement.equal > (0.9999 if PROVIDERS[name].exact else 0.9)
    assert len(row.seconds) == 1


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "channels_last"])
def test_ways_out_follow_the_networks_corners(case: Case, name: str) -> None:
    torch.manual_seed(0)
    net = FastSCNN(7, config=PRESETS["tramac"]).eval().requires_grad_(False)
    (row,) = compare(net, case, [PROVIDERS[name]], 1)
    if "not installed" in row.skipped:
        pytest.skip(row.skipped)
    assert row.agreement is not None, row.skipped
    assert row.agreement.equal > 0.999


def test_memory_is_kept_while_ways_are_compared() -> None:
    """A second block of 64 MB finds the pages of the first; afterwards, as before, it does not."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("the allocator is glibc's")

    def faults() -> int:
        torch.ones(1 << 24)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(1 << 24)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    usual = faults()
    with kept():
        assert faults() < 0.1 * usual
    assert faults() > 0.5 * usual


def test_wrong_labels_have_no_speed(model: FastSCNN, case: Case) -> None:
    """Nor has what cannot run; the others are measured all the same."""

    def unavailable(*_: Any) -> Any:
        raise Unavailable("not here")

    wrong = Provider("wrong", lambda *_: lambda: torch.zeros(1, 96, 160, dtype=torch.uint8))
    missing, good = Provider("missing", unavailable), PROVIDERS["ours"]
    told: list[str] = []
    rows = compare(model, case, [wrong, missing, good], 3, tick=told.append)
    assert [len(r.seconds) for r in rows] == [0, 0, 3]
    assert rows[0].skipped.startswith("wrong labels: ")
    assert rows[1].to_dict() == {"provider": "missing", "skipped": "not here"}
    assert told == ["reference", "wrong", "missing", "ours", *["timing"] * 3]


def test_a_rounded_way_may_be_less_near_than_an_exact_one(model: FastSCNN, case: Case) -> None:
    with torch.inference_mode():
        labels = model(normalize(case.frame, model.config.mean, model.config.std)).max(1)[1].byte()
    some, many = labels.clone(), labels.clone()
    some[:, 0] = (some[:, 0] + 5) % 11  # one row in 96 is wrong
    many[:, :5] = (many[:, :5] + 5) % 11
    ways = [
        Provider(f"{exact} {name}", lambda *_, x=x: lambda: x, exact=exact)  # type: ignore[misc]
        for exact in (True, False)
        for name, x in (("all", labels), ("some", some), ("many", many))
    ]
    timed = {r.provider: bool(r.seconds) for r in compare(model, case, ways, 1)}
    assert timed == {
        "True all": True, "True some": False, "True many": False,
        "False all": True, "False some": True, "False many": False,
    }  # fmt: skip


def test_each_round_is_warmed_up_and_memory_is_what_was_added(
    model: FastSCNN, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, calls, peaks = PROVIDERS["ours"], [], iter([100.0, 130.0])

    def build(*given: Any) -> Any:
        run = good.build(*given)
        return lambda: calls.append(0) or run()  # type: ignore[func-returns-value]

    monkeypatch.setattr("fastscnn.benchmark.compare.peak", lambda: next(peaks))
    (row,) = compare(model, case, [Provider("counted", build)], 3)
    assert row.megabytes == 30
    assert len(calls) == 1 + 2 * 3  # judged once, then each round has a call before the timed one


def test_ours_is_judged_more_strictly_than_peers() -> None:
    """float32, ours of fewer bits, and what multiplies a peer's int8."""
    rules = {name: (p.near, p.share) for name, p in PROVIDERS.items()}
    assert rules["ours"] == rules["onnxruntime"] == (1e-4, 0.9999)
    assert rules["ours int8"] == rules["ours bf16"] == (0.03, 0.9999)
    assert rules["openvino int8"] == rules["onnxruntime int8 + our head"] == (0.1, 0.98)


def test_int8_is_not_calibrated_on_the_frame_that_is_judged(
    model: FastSCNN, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [p for name, p in PROVIDERS.items() if "int8" in name]
    rows = compare(model, Case(case.frame, 1), chosen, 1)
    assert len(rows) == 5
    for row in rows:
        assert "calibrated" in row.skipped or "not installed" in row.skipped or "AVX" in row.skipped
    seen: list[Tensor] = []
    monkeypatch.setattr(cpu, "calibrate", lambda _, frames, size: seen.extend(frames) or {})
    compare(model, case, [PROVIDERS["ours int8"]], 1)
    assert not any(torch.equal(f, case.frame[0]) for f in seen)


def test_agreement_counts_pixels() -> None:
    """Four pixels: the best, a near one, one a tenth of the range below, one far off."""
    logits = torch.tensor([[10.0, 0, 0], [10, 9.9999, 0], [10, 9.1, 0], [10, 0, 0]]).T[
        None, :, None
    ]
    labels = torch.tensor([[[0, 1, 1, 2]]], dtype=torch.uint8)
    exact, rounded = (agreement(labels, logits, near) for near in (1e-4, 0.1))
    assert (exact.equal, exact.near) == (0.25, 0.5)
    assert (rounded.equal, rounded.near) == (0.25, 0.75)


def test_calls_take_turns_by_one_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def call(name: str, seconds: float) -> Any:
        def run() -> None:
            order.append(name)
            now[0] += seconds

        return run

    calls = {"a": call("a", 2), "b": call("b", 3)}
    assert timing.alternate(calls, 2, 2, untimed=1) == {"a": [2, 2], "b": [3, 3]}
    assert order == ["a", "a", "b", "b"] * 2
    assert timing.quantiles([0.001, 0.005, 0.002, 0.004, 0.003]) == (2, 3, 4)
    assert timing.quantiles([0.001] * 4 + [0.1]) == (1, 1, 1)


def test_one_thread_is_timed_by_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, cpu = iter(range(0, 1000, 10)), iter(range(1000))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(wall))
    monkeypatch.setattr(timing.time, "process_time", lambda: next(cpu))
    assert timing.alternate({"a": lambda: None}, 2, 1) == {"a": [1, 1]}
    assert timing.alternate({"a": lambda: None}, 2, 2) == {"a": [10, 10]}


def test_every_option_reaches_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def asked(*arguments: Any, **_: Any) -> list[Any]:
        names = ("model", "case", "providers", "rounds")
        given.update(zip(names, arguments, strict=True))
        return []

    monkeypatch.setattr("fastscnn.benchmark.cli.compare", asked)
    save(FastSCNN(7), tmp_path / "seven.safetensors")
    image = street_scene(96, 160, seed=5)
    Image.fromarray(image).save(tmp_path / "photo.png")
    options = {"image": tmp_path / "photo.png", "size": "96x160", "threads": 1, "rounds": 4}
    argv = [str(x) for k, v in options.items() for x in (f"--{k}", v)]
    only = ["--only", "eager", "ours"]
    assert main(["benchmark", str(tmp_path / "seven.safetensors"), *argv, *only]) == 2
    assert given["model"].num_classes == 7
    assert np.array_equal(given["case"].frame[0].numpy(), image)
    assert {p.name for p in given["providers"]} == {"eager", "ours"}
    assert (given["case"].threads, given["rounds"]) == (1, 4)


def test_the_command_writes_a_table_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.json"
    command = ["benchmark", "--size", "96x160", "--threads", "1", "--rounds", "2"]
    only = ["--only", "ours", "eager"]
    assert main([*command, *only, "-o", str(out)]) == 0
    data = json.loads(out.read_text())
    assert (data["size"], data["threads"], data["weights"]) == ([96, 160], 1, "camvid")
    rows = {row["provider"]: row for row in data["rows"]}
    assert set(rows) == {"ours", "eager"}
    assert rows["eager"]["ms"] > rows["ours"]["ms"] > 0
    assert rows["ours"]["fps"] == pytest.approx(1e3 / rows["ours"]["ms"])
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("96x160, 1 threads, 11 classes")
    assert [line.split()[0] for line in table[2:]] == ["ours", "eager"]  # the fastest first
    assert main([*command, *only, "-o", str(out)]) == 2  # it exists
    assert main([*command, "--only", "onnx"]) == 2
    assert "--only onnx: expected some of ours, " in capsys.readouterr().err


def run_of(ms: dict[str, float], spread: float = 0.0) -> bench_compare.Entries:
    row = {
        name: {"ms": t, "q20_ms": t * (1 - spread / 2), "q80_ms": t * (1 + spread / 2)}
        for name, t in ms.items()
    }
    return {("256x512", 1, "camvid"): row}


def test_runs_are_compared_by_ratios_to_a_peer() -> None:
    """A machine half as fast changes nothing; what lost a tenth fell, unless the run was noisy."""
    old = run_of({"ours": 10, "ours int8": 5, "onnxruntime": 20, "eager": 40})
    new = run_of({"ours": 20, "ours int8": 11, "onnxruntime": 40, "eager": 70})
    held, fell = bench_compare.changes(old, new)
    assert (held.old, held.new, held.fell) == (2, 2, False)
    assert (fell.old, round(fell.new, 3), fell.fell) == (4, 3.636, True)
    assert str(fell).startswith("FELL 256x512, 1 threads, camvid, ours int8 against onnxruntime")
    noisy = run_of({"ours": 20, "ours int8": 11, "onnxruntime": 40}, spread=0.2)
    assert not any(c.fell for c in bench_compare.changes(old, noisy))
    assert bench_compare.changes(old, run_of({"ours": 20})) == []


def test_a_run_that_fell_ends_in_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for ms in (10.0, 12.0):
        files.append(tmp_path / f"{ms}.json")
        entries = [
            {
                "extra_info": {
                    **{"kind": "network", "size": [256, 512], "threads": 1, "provider": name},
                    **{"ms": t, "q20_ms": t, "q80_ms": t},
                }
            }
            for name, t in (("ours", ms), ("onnxruntime", 20.0))
        ]
        files[-1].write_text(json.dumps({"benchmarks": entries}))
    assert bench_compare.main([str(files[1]), str(files[0])]) == 1
    assert "FELL 256x512, 1 threads, seeded, ours against onnxruntime" in capsys.readouterr().out
    assert bench_compare.main([str(files[0]), str(files[0])]) == 0
