"""`segment --cluster` with 1 and 2 workers of one thread, beside one process without Ray.

    python bench/cluster.py [--frames 160] [--rounds 1]

512x1024 JPEGs to label maps, decode and PNG included. A rate counts from the first to the last
answer: what Ray takes to start is told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from fastscnn.media.demo import street_scene
from fastscnn.predict.cluster import Worker, _answers, _plan

OPTIONS = {"weights": "camvid", "device": "cpu", "threads": 1, "size": (512, 1024), "opacity": 0.5}


def alone(rows: list[dict[str, str]]) -> tuple[float, float]:
    """Frames per second of one worker without Ray, and seconds until its first."""
    begun = time.perf_counter()
    worker = Worker(OPTIONS)
    times = []
    for row in rows:
        answer = worker({"source": [row["source"]], "targets": [row["targets"]]})
        assert not answer["error"][0]
        times.append(time.perf_counter())
    return (len(rows) - 1) / (times[-1] - times[0]), times[0] - begun


def over_ray(rows: list[dict[str, str]], workers: int) -> tuple[float, float]:
    """The same over Ray Data with `workers` processes."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    begun = time.perf_counter()
    ray.init(num_cpus=workers, include_dashboard=False, logging_level="error")
    context: Any = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    times = []
    for row in _answers(ray, rows, OPTIONS):
        assert not row["error"], row["error"]
        times.append(time.perf_counter())
    ray.shutdown()
    assert len(times) == len(rows)
    after_first_task = [t for t in times if t - times[0] > 0.02]  # a task's answers come together
    rate = len(after_first_task) / (times[-1] - times[0])
    return rate, times[0] - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        for i in range(args.frames):
            path = folder / "in" / f"{i}.jpg"
            Image.fromarray(street_scene(512, 1024, seed=i % 8)).save(path, quality=92)
        rows = _plan([str(folder / "in")], folder / "out", ["labels"])
        found: dict[str, list[float]] = {}
        for _ in range(args.rounds):
            for label, run in (
                ("without Ray", lambda: alone(rows)),
                ("1 worker", lambda: over_ray(rows, 1)),
                ("2 workers", lambda: over_ray(rows, 2)),
            ):
                rate, start = run()
                found.setdefault(label, []).append(rate)
                print(f"{label}: {rate:.2f} frames/s, first answer after {start:.1f} s", flush=True)
        print(json.dumps({k: round(statistics.median(v), 2) for k, v in found.items()}))


if __name__ == "__main__":
    main()
