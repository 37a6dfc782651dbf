"""Plants the faults of tests/mutants/*.toml one at a time, in a copy, and says which are found.

A fault is one line changed: `before` (its text, once in `file`) becomes `after`, and one of `tests`
must fail. `python tests/mutants/run.py [ROOM ...] [--changed [REF]]`; results go to results.json.
"""

from __future__ import annotations

import argparse
import compileall
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results.json"
#: What takes long to import and is no part of what is tested.
HEAVY = ("pytest", "torch._dynamo", "torchmetrics", "matplotlib.figure", "PIL.Image", "fastapi")


@dataclass(frozen=True)
class Fault:
    """One planted fault: in `file`, the text `before` becomes `after`."""

    room: str
    name: str
    file: str
    before: str
    after: str
    #: Test files or node ids, one of which must fail; all pass without the fault.
    tests: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"{self.room}: {self.name}"

    def planted(self, text: str) -> str:
        """The file's text with the fault; ValueError where its line is no longer there."""
        if text.count(self.before) != 1 or self.before == self.after:
            count = text.count(self.before)
            raise ValueError(f"{self.key}: {self.before!r} is {count} times in {self.file}")
        return text.replace(self.before, self.after)


def faults(rooms: Sequence[str] = ()) -> list[Fault]:
    """The kept faults, all or those of some rooms."""
    found = []
    for path in sorted(HERE.glob("*.toml")):
        if not rooms or path.stem in rooms:
            for entry in tomllib.loads(path.read_text("utf-8"))["fault"]:
                found.append(Fault(path.stem, **{**entry, "tests": tuple(entry["tests"])}))
    return found


def changed_files(ref: str) -> set[str]:
    """What differs from the commit at which the work on top of `ref` began."""
    base = _git("merge-base", ref, "HEAD")[0]
    return {*_git("diff", "--name-only", base), *_git("ls-files", "-o", "--exclude-standard")}


def _git(*argv: str) -> list[str]:
    done = subprocess.run(["git", *argv], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@contextmanager
def copied_tree() -> Iterator[Path]:
    """The files of the checkout, as they are now, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        names = _git("ls-files", "-c", "-o", "--exclude-standard")
        built = [str(p.relative_to(ROOT)) for p in ROOT.glob("fastscnn_kernels/_C*.so")]
        for name in [*names, *built]:
            if (ROOT / name).is_file():
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, Path(folder) / name)
        for layer in ("fastscnn", "fastscnn_kernels"):  # by hash: a planted fault is noticed
            how = PycInvalidationMode.CHECKED_HASH
            compileall.compile_dir(Path(folder) / layer, quiet=1, invalidation_mode=how)
        yield Path(folder)


def run_tests(tree: Path, tests: Sequence[str], timeout: float) -> int | None:
    """Exit code of pytest in a child of this process, which has torch; None: out of time."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        os.environ["PYTHONPATH"] = str(tree)
        log = os.open(tree / "pytest.log", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 3
        try:
            import pytest

            argv = ["-x", "-m", "", "-p", "no:cacheprovider", *tests]
            code = int(pytest.main(argv))
        finally:
            sys.stdout.flush()
            os._exit(code)
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, 9)
    os.waitpid(child, 0)
    return None


def build(tree: Path) -> None:
    """Compiles the extension of the tree; a fault that does not compile is an error of the list."""
    argv = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(argv, cwd=tree, env={**os.environ, "FASTSCNN_CUDA": "0"}, check=True)


def try_fault(tree: Path, fault: Fault, timeout: float) -> bool:
    """Whether a test fails (in time: a slow machine finds nothing); the tree is then as before."""
    path = tree / fault.file
    text = path.read_text("utf-8")
    compiled = fault.file.startswith("csrc/")
    kept = [(p, p.read_bytes()) for p in tree.glob("fastscnn_kernels/_C*.so") if compiled]
    path.write_text(fault.planted(text), "utf-8")
    try:
        if compiled:
            build(tree)
        return run_tests(tree, fault.tests, timeout) not in (0, None)
    finally:
        path.write_text(text, "utf-8")
        for library, content in kept:
            library.unlink()  # a process that has it open keeps the old one
            library.write_bytes(content)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rooms", nargs="*", help="lists to run, such as training (default: all)")
    parser.add_argument(
        "--changed", nargs="?", const="main", metavar="REF",
        help="only faults whose file or tests differ from REF (%(const)s)",
    )  # fmt: skip
    parser.add_argument("-k", default="", help="only faults whose name holds this text")
    parser.add_argument("--build", action="store_true", help="also those in csrc, each compiled")
    parser.add_argument("--timeout", type=float, default=180, help="seconds a fault may take")
    args = parser.parse_args()
    chosen = [f for f in faults(args.rooms) if args.k in f.name]
    if args.changed:
        touched = changed_files(args.changed)
        chosen = [f for f in chosen if {f.file, *(t.split("::")[0] for t in f.tests)} & touched]
    chosen = [f for f in chosen if args.build or not f.file.startswith("csrc/")]
    if not chosen:
        print("no fault to plant")
        return 0
    sys.dont_write_bytecode = True
    os.environ.update(PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1")
    for package in HEAVY:  # here once, not in every child
        if importlib.util.find_spec(package.partition(".")[0]):
            importlib.import_module(package)
    with copied_tree() as tree:
        tests = sorted({t for f in chosen for t in f.tests})
        if run_tests(tree, tests, 20 * args.timeout) != 0:
            print((tree / "pytest.log").read_text()[-3000:])
            print("these tests fail without any fault")
            return 2
        results = {}
        for fault in chosen:
            begin = time.perf_counter()
            results[fault.key] = found = try_fault(tree, fault, args.timeout)
            record(results)
            seconds = time.perf_counter() - begin
            print(f"{'found ' if found else 'MISSED'} {seconds:5.1f} s  {fault.key}", flush=True)
    print_table()
    return 0 if all(results.values()) else 1


def record(results: dict[str, bool]) -> None:
    """Brings results.json up to date, one line a fault; faults no longer kept are dropped."""
    known = {f.key for f in faults()}
    kept = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    kept = {k: v for k, v in sorted({**kept, **results}.items()) if k in known}
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", "utf-8")
    os.replace(temporary, RESULTS)


def print_table() -> None:
    """By room: the faults kept, those tried so far, and those found."""
    results = json.loads(RESULTS.read_text("utf-8"))
    print(f"\n{'room':14} {'kept':>6} {'tried':>6} {'found':>6}")
    every = faults()
    for room in [*dict.fromkeys(f.room for f in every), ""]:
        keys = [f.key for f in every if room in (f.room, "")]
        tried = [results[k] for k in keys if k in results]
        print(f"{room or 'all':14} {len(keys):6} {len(tried):6} {sum(tried):6}")


if __name__ == "__main__":
    sys.exit(main())
