"""Everything that a GPU can prove in one command: build, tests, benchmarks, sanitizer, tables.

    python bench/gpu_run.py [--data DIR] [--commit ID]        (make gpu)

Needs the packages of the GPU machine's Python, no network and no installation: the extension is
built in place. Each stage has its limit, so that all of it ends within TOTAL seconds; a failing one
does not keep the others from running. Results go to bench/results/gpu-NAME.json, logs to build/gpu.
The exit status is 0 only if the build, all tests and all of our own measurements succeeded; targets
that are missed do not count.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gpu_table
from gpu_supervisor import python_path

ROOT = Path(__file__).parent.parent
WORK = ROOT / "build" / "gpu"
#: Seconds: everything, and the most that each stage may take. Benchmarks take what the others
#: leave, the sanitizer at least this.
TOTAL, BUILD, TESTS, SANITIZER, REPORT = 525.0, 120.0, 130.0, 75.0, 5.0
#: How long the benchmarks may go on with what they have begun.
OVERTIME = 30.0
#: What the compiling processes are given beside the tests.
COMPILING = 45.0
#: How long a stage that was interrupted may take to write what it has.
LAST_WORDS = 15.0
#: Compute capability (major) -> suffix that allows its own instructions.
SUFFIX = {9: "a", 10: "f", 12: "f"}
#: Of absolute paths, which are nobody's business in a committed file.
FOLDERS = re.compile(r"(?<![\w./])/(?:[^\s/'\"]+/)+")
ABOUT = """
import json, torch
p = torch.cuda.get_device_properties(0)
triton = __import__("importlib.metadata").metadata.version("triton")
print(json.dumps({"name": p.name, "sm": p.major * 10 + p.minor, "torch": torch.__version__,
                  "cuda": torch.version.cuda, "triton": triton}))
"""


@dataclass
class Stage:
    """What became of one: "passed", or what went wrong."""

    name: str
    result: str
    seconds: float
    passed: bool
    facts: dict[str, Any] = field(default_factory=dict)


def run(
    name: str, command: list[str], seconds: float, folder: Path | None = None, **environment: str
) -> Stage:
    """Runs a command in its own process group for at most `seconds`; its output goes to a log.
    `folder`: where, ROOT by default."""
    print(f"== {name} (at most {seconds:.0f} s)", flush=True)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background jobs,
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which children would inherit
    began = time.monotonic()
    log = WORK / f"{name}.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=folder or ROOT, stdout=out, stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": python_path(), **environment}, start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(timeout=seconds)
            result = "passed" if status == 0 else f"exit status {status}, see {_inside(log)}"
        except subprocess.TimeoutExpired:
            end(process)
            status, result = -1, f"stopped after {seconds:.0f} s, see {_inside(log)}"
    if status != 0:
        print("\n".join(log.read_text(errors="replace").splitlines()[-15:]), flush=True)
    return Stage(name, result, time.monotonic() - began, status == 0)


def end(process: subprocess.Popen[Any]) -> None:
    """Interrupts, which lets pytest write its results, then kills."""
    for what in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, what)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=LAST_WORDS)
            return


def _inside(path: Path) -> str:
    return str(path.relative_to(ROOT))


def build(gpu: dict[str, Any]) -> Stage:
    arch = f"{gpu['sm']}{SUFFIX.get(gpu['sm'] // 10, '')}"
    # From a folder without pyproject.toml, whose license setuptools older than 77 cannot read.
    command = [sys.executable, str(ROOT / "setup.py"), "build_ext", f"--build-lib={ROOT}"]
    stage = run("build", command, BUILD, WORK, FASTSCNN_CUDA_ARCHS=arch)
    said = (WORK / "build.log").read_text(errors="replace")
    if os.environ.get("FASTSCNN_CUDA") != "0" and "fastscnn: no CUDA" in said:
        stage.result, stage.passed = "without CUDA C++: no nvcc, see build.log", False
    return stage


def tests(data: list[str]) -> Stage:
    """`pytest -m gpu`, on several processes where pytest-xdist is at hand; meanwhile others compile
    the Triton kernels that the benchmarks need."""
    report = WORK / "tests.xml"
    spread = importlib.util.find_spec("xdist") is not None
    many = min(8, os.cpu_count() or 1) if spread else 1
    workers = ["-n", str(many)] if spread else []
    compiling = [
        subprocess.Popen(
            [sys.executable, "bench/gpu_worker.py", "--compile-only", dtype], cwd=ROOT,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"},
        )
        for dtype in ("float16", "bfloat16", "float32")
    ]  # fmt: skip
    command = [
        *(sys.executable, "-m", "pytest", *gpu_tests(), "-m", "gpu", *workers, *data),
        *("--continue-on-collection-errors", f"--junitxml={report}"),
    ]
    stage = run("tests", command, TESTS, OMP_NUM_THREADS=threads(many + len(compiling)))
    for process in compiling:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=max(0.0, COMPILING - stage.seconds))
        end(process)
    counts, _ = outcomes(report)
    stage.facts = counts
    stage.passed = stage.passed and counts["passed"] > 0
    told = ", ".join(f"{n} {word}" for word, n in counts.items() if n) or "no results"
    stage.result = told if stage.result == "passed" else f"{told}; {stage.result}"
    return stage


def threads(processes: int) -> str:
    """OpenMP threads for each of so many processes: together one for each core."""
    return str(max(1, (os.cpu_count() or 1) // processes))


def gpu_tests() -> list[str]:
    """Files with tests for GPUs; others may need packages that are not here."""
    found = (ROOT / "tests").rglob("test_*.py")
    return sorted(str(p.relative_to(ROOT)) for p in found if "pytest.mark.gpu" in p.read_text())


def benchmarks(data: list[str], seconds: float) -> Stage:
    """`test_gpu.py`; `facts` are {"benchmarks": [...], "not_measured": [...]}."""
    written, report = WORK / "bench.json", WORK / "bench.xml"
    command = [
        *(sys.executable, "-m", "pytest", "bench/test_gpu.py", "--benchmark-only", *data),
        *(f"--seconds={seconds:.0f}", f"--benchmark-json={written}", f"--junitxml={report}"),
    ]
    stage = run("benchmarks", command, seconds + OVERTIME, OMP_NUM_THREADS=threads(1))
    _, others = outcomes(report)
    missing = [o for o in others if "for --smoke" not in o["reason"]]
    stage.facts = {"benchmarks": measured(written), "not_measured": missing}
    return stage


def sanitizer(seconds: float) -> Stage:
    """`sanitize_gpu.sh`, which says where compute-sanitizer is missing. One that finds no errors in
    its time counts as passed, and is told to be unfinished."""
    stage = run("sanitizer", ["sh", "tests/kernels/cuda/sanitize_gpu.sh", sys.executable], seconds)
    said = (WORK / "sanitizer.log").read_text(errors="replace")
    if stage.passed and said.startswith("not run"):
        stage.result = said.strip().splitlines()[0]
    if stage.result.startswith("stopped"):
        told = [line for line in said.splitlines() if line.startswith("========= ")]
        usual = ("COMPUTE-SANITIZER", "SUMMARY: 0 ", "Target application", "terminate")
        stage.passed = all(any(words in line for words in usual) for line in told)
    return stage


def outcomes(report: Path) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """(number of tests by outcome, name and reason of each that did not pass) of a JUnit file."""
    counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
    others: list[dict[str, Any]] = []
    if not report.exists():
        return counts, others
    for case in ElementTree.parse(report).iter("testcase"):
        bad = [e for kind in ("failure", "error") for e in case.findall(kind)]
        skipped = case.findall("skipped")
        counts["failed" if bad else "skipped" if skipped else "passed"] += 1
        for e in (bad or skipped)[:1]:
            reason = re.sub(r"^(Failed|Skipped): ", "", e.get("message", ""))
            reason = FOLDERS.sub("", reason)
            others.append({"name": case.get("name"), "reason": reason, "failed": bool(bad)})
    return counts, others


def measured(written: Path) -> list[dict[str, Any]]:
    """The rows of a JSON of pytest-benchmark, with their rounds in us, to five digits; none where
    the process was killed before or while it wrote."""
    try:
        rows = json.loads(written.read_text())["benchmarks"]
    except (FileNotFoundError, json.JSONDecodeError):
        return []
    return [
        {
            "group": row["group"],
            "extra_info": _rounded(
                {**row["extra_info"], "rounds_us": [1e6 * s for s in row["stats"]["data"]]}
            ),
        }
        for row in rows
    ]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}") if not 0.9 < value < 1 else round(value, 7)
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value


def commit(given: str | None) -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return given or done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return given or "unknown"


def about_gpu() -> dict[str, Any] | None:
    command = [sys.executable, "-c", ABOUT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr.strip().splitlines()[-1])
        return None
    gpu: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        asked = subprocess.run(query, capture_output=True, text=True, check=False)
        gpu["driver"] = asked.stdout.strip()
    return gpu


def save(results: dict[str, Any]) -> Path:
    """Writes one line per row, so that two runs compare well."""
    slug = re.sub(r"[^a-z0-9]+", "-", results["gpu"]["name"].lower()).strip("-")
    path = ROOT / "bench" / "results" / f"gpu-{slug}.json"
    rest = {k: v for k, v in results.items() if k != "benchmarks"}
    rows = ",\n".join(f" {json.dumps(row)}" for row in results["benchmarks"])
    text = json.dumps(rest, indent=1)[:-2] + f',\n "benchmarks": [\n{rows}\n]}}\n'
    json.loads(text)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(text)
    unfinished.replace(path)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with real frames")
    parser.add_argument("--commit", help="where the sources have no .git")
    options = parser.parse_args()
    began = time.monotonic()
    gpu = about_gpu()
    if gpu is None:
        print(f"make gpu needs an NVIDIA GPU that {sys.executable}'s torch can use, and Triton")
        return 1
    WORK.mkdir(parents=True, exist_ok=True)
    for old in WORK.iterdir():
        old.unlink()
    data = ["--data", str(options.data.resolve())] if options.data else []
    made = [build(gpu), tests(data)]
    left = lambda: TOTAL - REPORT - LAST_WORDS - (time.monotonic() - began)  # noqa: E731
    timed = benchmarks(data, left() - SANITIZER - LAST_WORDS - OVERTIME)
    made += [timed, sanitizer(left())]
    results = {
        "gpu": gpu,
        "commit": commit(options.commit),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "stages": [
            {"name": s.name, "result": s.result, "seconds": round(s.seconds, 1)} for s in made
        ],
        "tests": made[1].facts,
        **timed.facts,
    }
    results["targets"] = [
        {"target": t.text, "value": _rounded(t.value), "met": t.met}
        for t in gpu_table.targets(gpu_table.rows(results))
    ]
    path = save(results)
    print(gpu_table.report(results))
    print(f"written to {_inside(path)}; everything took {time.monotonic() - began:.0f} s")
    return 0 if all(s.passed for s in made) else 1


if __name__ == "__main__":
    sys.exit(main())
