"""What of the GPU benchmarks can be tried without a GPU: logic, tables, limits, exit status."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import gpu_clock
import gpu_groups
import gpu_layers
import gpu_networks
import gpu_providers
import gpu_run
import gpu_supervisor
import gpu_table
import tune_triton
from gpu_supervisor import Supervisor

import fastscnn
from fastscnn.benchmark.provider import Unavailable
from fastscnn.inference.fold import fold
from fastscnn.inference.gpu_runtime import GpuRuntime
from fastscnn_kernels.triton import tiles

ROOT = Path(__file__).parents[2]


def worker(tmp_path: Path, body: str) -> list[str]:
    """A command that starts a worker with `skip` and `done` at hand; `say` sends a message."""
    script = tmp_path / "worker.py"
    head = """
    import argparse, json, os, signal, time
    parser = argparse.ArgumentParser()
    for name in ("until", "skip", "done"):
        parser.add_argument(f"--{name}", type=json.loads)
    given = parser.parse_args()
    skip, done = given.skip.get("g", []), given.done
    say = lambda **message: print(json.dumps(message), flush=True)
    """
    script.write_text(textwrap.dedent(head) + textwrap.dedent(body))
    return [sys.executable, str(script)]


def test_a_crash_costs_one_contestant(tmp_path: Path) -> None:
    body = """
    print("a library's remark")
    for name in ("first", "second", "third"):
        if name not in skip:
            say(start=name, group="g", seconds=5)
            if name == "second":
                os.kill(os.getpid(), signal.SIGSEGV)
    for name in ("first", "third"):
        say(row={"contestant": name}, group="g")
    say(done="g")
    """
    messages = list(Supervisor(worker(tmp_path, body), time.time() + 60, tmp_path / "log"))
    assert [m["contestant"] for m in messages if "failed" in m] == ["second"]
    assert "SIGSEGV" in next(m["failed"] for m in messages if "failed" in m)
    assert [m["row"]["contestant"] for m in messages if "row" in m] == ["first", "third"]
    assert messages[-1] == {"done": "g"}


def test_a_lost_context_is_reported_once(tmp_path: Path) -> None:
    body = """
    if "bad" not in skip:
        say(start="bad", group="g", seconds=5)
        say(failed="illegal memory access", group="g", contestant="bad")
        raise SystemExit(3)
    say(done="g")
    """
    messages = list(Supervisor(worker(tmp_path, body), time.time() + 60, tmp_path / "log"))
    assert [m.get("failed") for m in messages if "failed" in m] == ["illegal memory access"]
    assert messages[-1] == {"done": "g"}


def test_what_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_supervisor, "GRACE", 0.5)
    body = """
    if "slow" not in skip:
        say(start="slow", group="g", seconds=0.1)
        time.sleep(100)
    say(done="g")
    """
    messages = list(Supervisor(worker(tmp_path, body), time.time() + 60, tmp_path / "log"))
    assert [m["contestant"] for m in messages if "no end after" in m.get("failed", "")] == ["slow"]
    assert messages[-1] == {"done": "g"}


def test_the_time_budget_ends_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_supervisor, "GRACE", 0.5)
    body = """
    say(start="slow", group="g", seconds=100)
    time.sleep(100)
    """
    began = time.time()
    messages = list(Supervisor(worker(tmp_path, body), began + 2, tmp_path / "log"))
    assert messages[-1] == {"ended": "the time budget was spent"}
    assert time.time() - began < 15


def test_a_worker_that_cannot_start_says_where_to_look(tmp_path: Path) -> None:
    messages = list(
        Supervisor(worker(tmp_path, "raise ValueError"), time.time() + 60, tmp_path / "log")
    )
    assert len(messages) == 1
    assert messages[0]["ended"] == "the worker ended (exit status 1), see log"
    assert "ValueError" in (tmp_path / "log").read_text()


class FakeClock(gpu_clock.Clock):
    """A clock that moves when `now` is changed."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.now = 0.0

    def mark(self) -> float:
        return self.now


def test_contestants_take_turns_and_times_are_of_one_call() -> None:
    clock, order = FakeClock(), []

    def taking(seconds: float) -> gpu_clock.Call:
        def call(_: int) -> None:
            clock.now += seconds

        return call

    calls = {"quick": taking(0.001), "slow": taking(0.5)}
    found = gpu_clock.measure(calls, clock, order.append, passes=3, seconds=0.25, least=12)
    assert order == ["quick", "slow"] * 3
    for name, seconds in (("quick", 0.001), ("slow", 0.5)):
        blocks, singles = found[name]
        assert blocks == pytest.approx([seconds] * len(blocks))
        assert singles == pytest.approx([seconds] * len(singles))
    assert len(found["quick"][1]) == 3 * gpu_clock.SINGLES
    assert len(found["slow"][1]) == 3 * 12


def test_p99_is_of_single_calls_and_the_median_of_blocks() -> None:
    facts = gpu_clock.facts([2e-6, 4e-6, 3e-6], [i * 1e-6 for i in range(1, 201)], calls=2)
    assert facts["us"] == pytest.approx(1.5)
    assert facts["us_p99"] == pytest.approx(99.0)
    assert facts["singles"] == 200


def test_wrong_labels_are_not_timed() -> None:
    model = gpu_networks.seeded()
    frames, _ = gpu_networks.frames_of((2, 32, 64), None, torch.device("cpu"))
    truth = gpu_networks.Truth(model, frames[:2])
    with torch.no_grad():
        right = gpu_providers.labeller(model, torch.float32, False)
        assert truth.judge(right, torch.float32)["label_agreement"] == 1.0

        def one_wrong_pixel(x: torch.Tensor) -> torch.Tensor:
            labels = right(x)
            logits = model(model.preprocess(x))
            labels[0, 3, 5] = logits[0, :, 3, 5].argmin()
            return labels

        with pytest.raises(ValueError, match="wrong labels"):
            truth.judge(one_wrong_pixel, torch.bfloat16)
        with pytest.raises(ValueError, match=r"labels are torch\.int64"):
            truth.judge(lambda x: right(x).long(), torch.float32)


def test_peers_say_why_they_cannot_run() -> None:
    frames = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    model = fastscnn.load(None, fused=False, device="cpu")
    for provider in (*gpu_providers.AUTOTUNED, *gpu_providers.COMPILED):
        if not provider.name.startswith("torch.compile"):
            with pytest.raises(Unavailable, match="NVIDIA GPU"):
                provider.build(model, frames)
    with pytest.raises(Unavailable, match="CUDA C"):
        gpu_providers.OURS[0].build(model, frames)


def test_a_missing_runtime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_providers, "_need_gpu", lambda frames: None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="tensorrt is not installed"):
        gpu_providers.tensorrt(None, None)  # type: ignore[arg-type]
    with pytest.raises(Unavailable, match="onnxruntime is not installed"):
        gpu_providers._onnxruntime("CUDAExecutionProvider").build(None, None)  # type: ignore[arg-type]


def network(us: dict[str, float], *, shape: str = "1x1024x2048", **fields: Any) -> list[dict]:
    """Rows of a group; those that name no composition of ours are peers."""
    group = f"network {shape} camvid{fields.pop('after', '')}"
    ours = ("CUDA C++", "Triton")
    row = {
        "kind": "network", "images": int(shape.split("x")[0]), "label_agreement": 0.9995,
        "engine_memory_mb": 40.0, "peak_memory_mb": 50.0, "bytes": 10**8, "floor_us": 40.0,
        "shows": "street frames", **fields,
    }  # fmt: skip
    return [
        {"group": group, "extra_info": {**row, "contestant": name, "us": t, "us_p99": 1.2 * t,
         "ours": name.startswith(ours), "dtype": "float32" if "fp32" in name else "float16"}}
        for name, t in us.items()
    ]  # fmt: skip


def results() -> dict[str, Any]:
    graph = " fp16 graph"
    headline = {f"CUDA C++{graph}": 120.0, f"Triton{graph}": 140.0, "torch fp16 graph": 500.0}
    tuned = "torch.compile fp16 max-autotune"
    slow = {f"CUDA C++{graph}": 120.0, f"Triton{graph}": 150.0, tuned: 270.0}
    layer = {"kind": "layer", "contestant": "Triton", "us": 5.0, "floor_us": 2.5, "ours": True}
    return {
        "gpu": {"name": "NVIDIA H100", "torch": "2.11"}, "commit": "abc",
        "benchmarks": [
            *network({**headline, "Triton fp32 graph": 500.0, "torch fp32 eager": 1500.0}),
            *network(slow, after=", against max-autotune"),
            *network({f"CUDA C++{graph}": 55.0}, shape="1x512x1024"),
            *network({f"Triton{graph}": 640.0}, shape="16x1024x2048"),
            {"group": "stem", "extra_info": layer},
            {"group": "first frame", "extra_info": {"kind": "first frame", "us": 4e5,
             "contestant": "CUDA C++ alone"}},
        ],
        "not_measured": [{"name": "a", "reason": "too slow", "failed": True},
                         {"name": "b", "reason": "too slow", "failed": True}],
        "stages": [{"name": "tests", "result": "3 passed, 1 failed", "seconds": 2.0}],
    }  # fmt: skip


def test_targets_are_judged() -> None:
    judged = {t.text: t for t in gpu_table.targets(gpu_table.rows(results()))}
    said = {text: None if t.value is None else (round(t.value, 2), t.met)
            for text, t in judged.items()}  # fmt: skip
    assert said["Triton alone, 1024x2048: 150 us"] == (140.0, True)
    assert said["with CUDA C++, 1024x2048: 100 us"] == (120.0, False)
    assert said["with CUDA C++, 512x1024: 60 us"] == (55.0, True)
    # The best peer is slow to build and was measured in another group: ours of that group count.
    assert said["Triton fp16 graph, 1024x2048: 2 times as fast as the best peer"] == (1.8, False)
    assert said["CUDA C++ fp16 graph, 1024x2048: 3 times as fast as the best peer"] == (2.25, False)
    assert said["CUDA C++ fp16 graph, 512x1024: 3 times as fast as the best peer"] is None
    assert said["fp32, 1024x2048: twice as fast as PyTorch's fp32"] == (3.0, True)
    assert said["Triton fp16 graph, batch 16: 20000 frames/s"] == (25000.0, True)
    assert said["CUDA C++ fp16 graph, batch 16: 20000 frames/s"] is None
    assert said["Triton fp16 graph: 99.9 % of fp32's labels on real frames"] == (99.95, True)
    assert said["first labels of a process, CUDA C++ alone: 0.5 s"] == (0.4, True)


def test_a_lead_over_peers_is_open_until_compilers_were_measured() -> None:
    """ "met" would say more than what was measured; "MISSED" would not."""
    rows = network({"Triton fp16 graph": 100.0, "CUDA C++ fp16 graph": 90.0, "torch": 250.0})
    found = gpu_table.rows({"benchmarks": rows})
    said = [str(t) for t in gpu_table.targets(found) if "1024x2048: 2" in t.text or "3 t" in t.text]
    assert said[0].startswith("  open         2.5 x")
    assert "max-autotune was not measured" in said[0]
    assert said[1].startswith("  MISSED     2.778 x")
    assert not any(t.met for t in gpu_table.targets(found) if "best peer" in t.text)


def test_the_papers_table_and_training_steps_are_shown() -> None:
    prob = network({"Triton fp16 graph": 250.0}, shape="1x512x1024")
    prob[0]["group"] = "network 1x512x1024 seeded, probabilities"
    step = {"kind": "training", "contestant": "ours", "us": 40000.0, "us_p99": 41000.0,
            "images": 8, "peak_memory_mb": 900.0, "ours": True}  # fmt: skip
    steps = [{"group": "training step 8x448x608, 11 classes, bf16", "extra_info": step}]
    text = gpu_table.table(gpu_table.rows({"benchmarks": [*prob, *steps]}))
    table6 = next(line for line in text.splitlines() if "512x1024 prob" in line)
    assert table6.split()[2:] == ["-", "4000", "197.6", "266.3"]
    assert "1024x2048 cls" not in text
    assert next(line for line in text.splitlines() if "ours" in line).split()[1:] == [
        "40.00", "41.00", "200", "900"
    ]  # fmt: skip


def test_compilers_come_second_and_every_group_once() -> None:
    names = [g.name for g in gpu_groups.groups(False, True)]
    assert names[:2] == [
        "network 1x1024x2048 camvid", "network 1x1024x2048 camvid, against max-autotune"
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    second = gpu_groups.contestants(gpu_groups.groups(False, True)[1])
    assert second[-1] == "torch.compile fp16 max-autotune"
    assert {gpu_table.TRITON, gpu_table.CUDA} < set(second)
    for shape in gpu_table.PAPER:
        assert {f"network {shape} seeded", f"network {shape} seeded, probabilities"} < set(names)
    without = gpu_groups.groups(False, False)
    assert not any("torch.compile" in n for g in without for n in gpu_groups.contestants(g))
    assert sum(isinstance(g, gpu_groups.Training) for g in without) == 2


def test_the_cheap_way_in_is_exact() -> None:
    """What a peer's network is given, against the definition."""
    model, given = gpu_networks.seeded(), []
    frames = torch.randint(0, 256, (2, 33, 47, 3), dtype=torch.uint8)
    with torch.no_grad():
        for channels_last in (False, True):
            run = gpu_providers.labeller(model, torch.float32, channels_last)
            network = next(c.cell_contents for c in run.__closure__ or () if isinstance(
                c.cell_contents, torch.nn.Module))  # fmt: skip
            network.register_forward_pre_hook(lambda _, args: given.append(args[0]))
            run(frames)
            layout = torch.channels_last if channels_last else torch.contiguous_format
            assert given[-1].is_contiguous(memory_format=layout)
            assert torch.allclose(given[-1], model.preprocess(frames), atol=1e-6)


def test_a_frame_in_place_is_not_copied_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = gpu_networks.seeded()
    frames = [torch.randint(0, 256, (1, 32, 64, 3), dtype=torch.uint8) for _ in range(2)]
    provider = gpu_providers.IN_PLACE[1]
    plain = next(p for p in gpu_providers.OURS if p.name == "Triton fp16 graph")
    expected = [plain.build(model, f).run(f).clone() for f in frames]
    run = provider.build(model, frames[0]).run
    for i in (0, 1, 1, 0):
        assert (run(frames[i]) == expected[i]).all()
    copied: list[int] = []
    copy = torch.Tensor.copy_
    monkeypatch.setattr(
        torch.Tensor, "copy_", lambda t, x: (copied.append(x.data_ptr()), copy(t, x))[1]
    )
    for _ in range(3):
        run(frames[1])
    assert copied.count(frames[1].data_ptr()) == 1
    assert provider.still


def test_what_cannot_be_captured_runs_without_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(run: Any, frames: torch.Tensor) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(gpu_providers, "captured", refuse)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    made = gpu_providers.graph_or_not(lambda x: x + 1, torch.zeros(1))
    assert made.run(torch.ones(1)) == 2
    assert made.note == "without a graph: operation not permitted when stream is capturing"


def test_triton_layers_get_the_engines_weight_layout() -> None:
    """Bytes of 3x3 weights by tap, then channel; nothing else is touched."""
    x, depthwise, square = torch.rand(1, 8, 5, 5), torch.rand(8, 1, 3, 3), torch.rand(4, 8, 1, 1)
    (got_x, got, got_square), extra = gpu_layers.laid_out(
        ([x, depthwise, square], {"k": depthwise})
    )
    assert got_x is x
    assert got_square is square
    assert torch.equal(got, depthwise)
    assert got.permute(2, 3, 1, 0).is_contiguous()
    assert extra["k"].stride() == got.stride()


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    assert [gpu_run.threads(n) for n in (1, 11, 40)] == ["16", "1", "1"]


def test_wrong_probabilities_are_not_timed() -> None:
    model = gpu_networks.seeded()
    frames, _ = gpu_networks.frames_of((1, 32, 64), None, torch.device("cpu"))
    truth = gpu_networks.Truth(model, frames[:1])
    right = gpu_providers.labeller(model, torch.float32, False, "probabilities")
    with torch.no_grad():
        found = truth.judge(right, torch.float32, "probabilities")
        assert found["label_agreement"] == 1.0
        with pytest.raises(ValueError, match="wrong probabilities"):
            truth.judge(lambda x: right(x) * 0.99, torch.float32, "probabilities")


def test_report_names_everything() -> None:
    text = gpu_table.report(results())
    for part in (
        "NVIDIA H100", "commit abc", "network 1x1024x2048 camvid", "stem", "0.400 s",
        "not measured: a and 1 more: FAILED: too slow", "tests: 3 passed, 1 failed",
        "MISSED       120 us", "not measured  CUDA C++ fp16 graph, batch 16",
    ):  # fmt: skip
        assert part in text, part
    assert text.splitlines()[-1].startswith("  ")  # the targets come last
    assert "16x1024x2048 camvid" in gpu_table.report(results(), everything=True)


def test_a_run_without_any_result_is_reported() -> None:
    text = gpu_table.report({"gpu": {"name": "GPU"}, "benchmarks": []})
    assert "nothing was measured" in text
    assert "MISSED" not in text


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """gpu_run in a folder of its own."""
    (tmp_path / "build" / "gpu").mkdir(parents=True)
    (tmp_path / "bench" / "results").mkdir(parents=True)
    monkeypatch.setattr(gpu_run, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_run, "WORK", tmp_path / "build" / "gpu")
    return tmp_path


def test_a_stage_ends_at_its_limit_and_may_write_first(work: Path) -> None:
    script = "import time, pathlib\ntry: time.sleep(100)\nexcept KeyboardInterrupt: print('saved')"
    stage = gpu_run.run("nap", [sys.executable, "-c", script], 2.0)
    assert not stage.passed
    assert stage.result == "stopped after 2 s, see build/gpu/nap.log"
    assert stage.seconds < 2 + gpu_run.LAST_WORDS
    assert (work / "build" / "gpu" / "nap.log").read_text() == "saved\n"


def test_stages_keep_the_packages_that_the_caller_brings(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/brought")
    script = "import os; print(os.environ['PYTHONPATH'])"
    assert gpu_run.run("path", [sys.executable, "-c", script], 20.0).passed
    assert (work / "build" / "gpu" / "path.log").read_text().strip().endswith(":/brought")


@pytest.mark.parametrize("found", [True, False])
def test_the_build_reads_no_pyproject_and_fails_without_a_cuda_compiler(
    work: Path, monkeypatch: pytest.MonkeyPatch, found: bool
) -> None:
    """setuptools older than 77 refuses the license there, an expression."""
    monkeypatch.delenv("FASTSCNN_CUDA", raising=False)
    said = "fastscnn: CUDA 13.0" if found else "fastscnn: no CUDA (FASTSCNN_CUDA=)"
    (work / "pyproject.toml").touch()
    (work / "setup.py").write_text(
        f"import os, sys\nprint({said!r})\nassert not os.path.exists('pyproject.toml')\n"
        f"assert sys.argv[1:] == ['build_ext', '--build-lib={work}']\n"
    )
    stage = gpu_run.build({"sm": 90})
    assert stage.passed == found
    assert stage.result == ("passed" if found else "without CUDA C++: no nvcc, see build.log")


def test_results_that_were_cut_off_are_none(tmp_path: Path) -> None:
    written = tmp_path / "bench.json"
    assert gpu_run.measured(written) == []
    for text in ("", '{"benchmarks": [{"group": "a", '):
        written.write_text(text)
        assert gpu_run.measured(written) == []


def test_outcomes_of_tests(tmp_path: Path) -> None:
    report = tmp_path / "tests.xml"
    report.write_text(
        '<testsuites><testsuite><testcase name="a"/>'
        '<testcase name="b"><failure message="Failed: wrong labels in /home/me/x.py, 1/2">trace'
        "</failure></testcase>"
        '<testcase name="c"><skipped message="no GPU"/></testcase>'
        '<testcase name="d"><error message="import"/></testcase></testsuite></testsuites>'
    )
    counts, others = gpu_run.outcomes(report)
    assert counts == {"passed": 1, "failed": 2, "skipped": 1}
    assert others[0] == {"name": "b", "reason": "wrong labels in x.py, 1/2", "failed": True}
    assert gpu_run.outcomes(tmp_path / "none.xml") == (dict.fromkeys(counts, 0), [])


@pytest.mark.parametrize("tests_pass", [True, False])
def test_benchmarks_run_whatever_the_tests_say(
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tests_pass: bool,
) -> None:
    def stage(name: str, good: bool, **facts: Any) -> gpu_run.Stage:
        return gpu_run.Stage(name, "passed" if good else "1 failed", 1.0, good, facts)

    gpu = {"name": "NVIDIA H100 80GB HBM3", "sm": 90}
    monkeypatch.setattr(sys, "argv", ["gpu_run.py", "--commit", "abc"])
    monkeypatch.setattr(gpu_run, "about_gpu", lambda: gpu)
    monkeypatch.setattr(gpu_run, "build", lambda gpu: stage("build", True))
    monkeypatch.setattr(gpu_run, "tests", lambda data: stage("tests", tests_pass, passed=7))
    made = results()
    facts = {k: made[k] for k in ("benchmarks", "not_measured")}
    monkeypatch.setattr(gpu_run, "sanitizer", lambda seconds: stage("sanitizer", True))
    monkeypatch.setattr(gpu_run, "benchmarks", lambda *_: stage("benchmarks", True, **facts))
    assert gpu_run.main() == (0 if tests_pass else 1)
    written = json.loads((work / "bench/results/gpu-nvidia-h100-80gb-hbm3.json").read_text())
    assert written["commit"] == "abc"
    assert written["tests"] == {"passed": 7}
    assert written["benchmarks"] == made["benchmarks"]
    assert [s["name"] for s in written["stages"]] == ["build", "tests", "benchmarks", "sanitizer"]
    assert written["targets"][0] == {"target": "Triton alone, 1024x2048: 150 us", "value": 140.0,
                                     "met": True}  # fmt: skip
    assert "MISSED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "passed", "result"),
    [
        ("echo not run: it is missing", True, "not run: it is missing"),
        ("echo ========= ERROR SUMMARY: 0 errors", True, "passed"),
        ("exit 1", False, "exit status 1"),
        ("echo ========= COMPUTE-SANITIZER; exec sleep 9", True, "stopped after 1 s"),
        ("echo '========= Invalid __global__ read'; exec sleep 9", False, "stopped after 1 s"),
        ("echo ========= Target application ended; exec sleep 9", True, "stopped after 1 s"),
    ],
)
def test_what_the_sanitizer_says_counts(work: Path, script: str, passed: bool, result: str) -> None:
    folder = work / "tests" / "kernels" / "cuda"
    folder.mkdir(parents=True)
    (folder / "sanitize_gpu.sh").write_text(script)
    stage = gpu_run.sanitizer(1.0)
    assert (stage.passed, stage.result.split(",")[0]) == (passed, result)


def test_without_a_gpu_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = subprocess.run(
        [sys.executable, "bench/gpu_run.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "make gpu needs an NVIDIA GPU" in done.stdout


def test_files_with_gpu_tests_are_found() -> None:
    found = {Path(name).stem for name in gpu_run.gpu_tests()}
    assert found >= {"test_triton_gpu", "test_cuda_gpu", "test_engine"}
    assert "test_train" not in found


def test_stages_fit_into_nine_minutes() -> None:
    g = gpu_run
    others = g.BUILD + g.TESTS + g.SANITIZER + g.REPORT + g.OVERTIME + 4 * g.LAST_WORDS
    assert g.TOTAL <= 530
    assert g.TOTAL - others >= 100  # what the benchmarks have at the least


def test_make_gpu_passes_data_and_commit() -> None:
    given = ["DATA=somewhere", "COMMIT=abc", "GPU_PYTHON=python3.12"]
    command = ["make", "--no-print-directory", "-n", "gpu", *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "python3.12 bench/gpu_run.py --data somewhere --commit abc"


def test_tuned_tiles_are_written_in_the_tables_own_format() -> None:
    """The literal reads back as the same table, and replaces the one in the source."""
    text = tune_triton.literal(tiles.TILES)
    names = {"Tile": tiles.Tile, "ANY": tiles.ANY}
    assert eval(text, names) == tiles.TILES
    source = Path(tiles.__file__).read_text()
    written = tune_triton.replaced(
        source, {**tiles.TILES, ("new", "half"): tiles.TILES["dsconv", "half"]}
    )
    space: dict[str, Any] = {}
    exec(compile(written, "tiles.py", "exec"), space)
    assert set(space["TILES"]) == {*tiles.TILES, ("new", "half")}
    assert tune_triton.replaced(source, tiles.TILES) == source


class FakeCase:
    """A layer with one kernel, fastest with 64 columns and, on many pixels, 8 warps; blocks of 32
    outputs do not work."""

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels

    def run(self) -> tiles.Tile:
        x = torch.empty(1, dtype=torch.float16)
        return tiles.choose("depthwise_conv", x, pixels=self.pixels, inner=256, outer=256)

    def check(self) -> None:
        assert self.run().outer != 32, "too much shared memory"

    def us(self) -> float:
        t = self.run()
        wrong_warps = t.warps != (8 if self.pixels > 1000 else 4)
        return 10 + abs(t.columns - 64) / 8 + 2 * wrong_warps - (t.outer == 32)


def test_tuning_finds_the_best_tile_of_each_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = dict(tiles.TILES)
    monkeypatch.setattr(tiles, "TILES", dict(table))
    cases: Any = [FakeCase(5000), FakeCase(300)]
    tuned = tune_triton.tune(cases, "half", lambda: True)
    (small, few), (largest, many) = tuned["depthwise_conv", "half"]
    assert (small, largest) == (300, tiles.ANY)
    assert (few.columns, few.warps, many.columns, many.warps) == (64, 4, 64, 8)
    assert 32 not in (few.outer, many.outer)
    rest = {entry: rows for entry, rows in tuned.items() if entry[0] != "depthwise_conv"}
    assert rest.items() < table.items()
    assert "too much shared memory" in capsys.readouterr().out


def test_tuning_without_time_keeps_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    table = dict(tiles.TILES)
    monkeypatch.setattr(tiles, "TILES", dict(table))
    cases: Any = [FakeCase(300)]
    assert tune_triton.tune(cases, "half", lambda: False) == table


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "share"), [(torch.float16, 0.999), (torch.bfloat16, 0.995)])
def test_half_precision_keeps_the_labels_of_real_frames(
    data_dir: Path, dtype: torch.dtype, share: float
) -> None:
    """The shipped weights on street and CamVid frames, against the float32 reference."""
    model = fastscnn.load("camvid", fused=False, device="cpu")
    runtime = GpuRuntime(fold(model), model.config, model.num_classes, dtype)
    street = sorted((data_dir / "street" / "images").iterdir())
    camvid = sorted((data_dir / "camvid" / "val").iterdir())[::25]
    assert street
    for paths in (street, camvid):
        equal = []
        for path in paths:
            frame = torch.from_numpy(np.array(Image.open(path).convert("RGB")))[None]
            with torch.no_grad():
                truth = model(model.preprocess(frame, size=tuple(frame.shape[1:3]))).argmax(1)
            equal.append((runtime.labels(frame) == truth).double().mean().item())
        assert np.mean(equal) >= share, f"{paths[0].parent}: {np.mean(equal):.3%}"
