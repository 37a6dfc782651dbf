"""`segment --cluster`: as without it; workers that die lose nothing; a second run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastscnn.cli import main
from fastscnn.media.demo import street_scene
from fastscnn.predict import cluster

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(6):
        Image.fromarray(street_scene(96, 128, seed=i)).save(folder / f"{i}.png")
    return folder


def same(a: Path, b: Path) -> bool:
    with Image.open(a) as x, Image.open(b) as y:
        return bool(np.array_equal(np.asarray(x), np.asarray(y)))


def needs_ray() -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'fastscnn[ray]'")


def command(*arguments: object) -> list[str]:
    options = ["--labels", "--device", "cpu", "--size", "96x128"]
    return [sys.executable, "-m", "fastscnn", "segment", *map(str, arguments), *options]


@pytest.mark.parametrize(
    ("address", "words"),
    [("127.0.0.1:1", "is `ray start --head` running"), ("photo.jpg", "expected HOST:PORT")],
)
def test_no_such_cluster(address: str, words: str) -> None:
    with pytest.raises((OSError, ValueError), match=words):
        cluster._reach(address)


def test_bucket_without_a_cluster(frames: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", str(frames), "-o", "s3://bucket/out"]) == 2
    assert "a bucket is for --cluster" in capsys.readouterr().err


def test_without_ray(
    frames: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["segment", str(frames), "-o", str(frames / "out"), "--cluster"]) == 2
    assert "pip install 'fastscnn[ray]'" in capsys.readouterr().err
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_plan_refuses_two_of_one_name(frames: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow, which comes with Ray")
    Image.open(frames / "0.png").save(frames / "0.bmp")
    with pytest.raises(ValueError, match="would both be written as"):
        cluster._plan([frames.as_uri()], frames / "out", ["labels"])


def test_plan_of_a_bucket(frames: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow, which comes with Ray")
    Image.open(frames / "0.png").save(frames.parent / "near.png")
    inputs = [frames.as_uri(), str(frames.parent / "near.png")]
    rows = cluster._plan(inputs, "s3://b/out/", ["color"])
    assert rows[0]["source"] == inputs[1]
    assert json.loads(rows[0]["targets"]) == {"color": "s3://b/out/near_color.png"}
    assert [r["source"] for r in rows[1:]] == [f"{frames.as_uri()}/{i}.png" for i in range(6)]


@pytest.mark.slow
def test_cluster_equals_one_machine_and_goes_on(frames: Path, tmp_path: Path) -> None:
    """Also by way of URIs, and with a broken file among them."""
    needs_ray()
    (frames / "broken.png").write_bytes(b"nothing")
    assert main(command(frames, "-o", tmp_path / "one")[3:]) == 1
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "0_labels.png").write_bytes(b"finished before")
    done = subprocess.run(
        command(frames.as_uri(), "-o", (tmp_path / "many").as_uri(), "--cluster"),
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "1 input(s) done before" in done.stderr
    assert "broken.png: not an image format known here" in done.stderr
    assert "5 of 6 input(s) written" in done.stdout
    assert (tmp_path / "many" / "0_labels.png").read_bytes() == b"finished before"
    names = sorted(p.name for p in (tmp_path / "many").iterdir())
    assert names == [f"{i}_labels.png" for i in range(6)], "nothing half-written is left"
    for name in names[1:]:
        assert same(tmp_path / "one" / name, tmp_path / "many" / name)


def workers_of(driver: int) -> list[int]:
    """Ray's worker processes below a process, by what Linux tells."""
    parents, found = {}, []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
            if b"ray::MapWorker" in (stat.parent / "cmdline").read_bytes():
                found.append(int(stat.parent.name))
        except OSError:  # it ended meanwhile
            continue

    def below(process: int) -> bool:
        return process == driver or (process in parents and below(parents[process]))

    return [p for p in found if below(p)]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_a_killed_worker_loses_nothing(frames: Path, tmp_path: Path) -> None:
    needs_ray()
    for i in range(6, 400):
        Image.fromarray(street_scene(96, 128, seed=i % 6)).save(frames / f"{i}.png")
    run = subprocess.Popen(
        command(frames, "-o", tmp_path / "out", "--cluster"),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out/*_labels.png")):
        assert time.monotonic() < deadline
        assert run.poll() is None
        time.sleep(0.01)
    victim = workers_of(run.pid)[0]
    os.kill(victim, signal.SIGKILL)
    before = len(list(tmp_path.glob("out/*_labels.png")))
    output, _ = run.communicate(timeout=240)
    assert before < 400, "the worker was killed after the end"
    assert run.returncode == 0, output
    assert "400 of 400 input(s) written" in output
    assert "400 frame(s)" in output
    assert len(list(tmp_path.glob("out/*_labels.png"))) == 400
