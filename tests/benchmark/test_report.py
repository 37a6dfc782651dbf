"""Tables of the benchmarks say who is faster than ours, and where."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import report


def infos(threads: int = 1, **ms: float) -> list[dict[str, Any]]:
    size = [256, 512]
    return [
        {
            "provider": name.replace("_", " "),
            "size": size,
            "threads": threads,
            "ms": t,
            "equal": 0.99,
        }
        for name, t in ms.items()
    ]


def test_every_peer_is_held_against_ours_of_its_precision() -> None:
    found = infos(
        **{"ours": 10.0, "ours_bf16": 7.0, "ours_int8": 4.0},
        **{"openvino": 25.0, "openvino_bf16": 14.0, "openvino_int8": 6.0},
    )
    lines = report.networks(found).splitlines()
    assert lines[0] == "| ms | 256x512, 1 thread | equal labels |"
    assert lines[2:] == [
        "| ours | **10.0** | 99.00 % |",
        "| ours bf16 | **7.0** | 99.00 % |",
        "| ours int8 | **4.0** | 99.00 % |",
        "| openvino | 25.0 (2.50x) | 99.00 % |",
        "| openvino bf16 | 14.0 (2.00x) | 99.00 % |",
        "| openvino int8 | 6.0 (1.50x) | 99.00 % |",
    ]
    said = report.slower_somewhere(found)
    assert said == "Faster than our float32: openvino int8 (everywhere)."


def test_a_faster_peer_is_named_in_its_row() -> None:
    found = [*infos(ours=10.0, openvino=25.0), *infos(2, ours=9.0, openvino=8.1)]
    row = report.networks(found).splitlines()[-1]
    assert row == "| openvino | 25.0 (2.50x) | 8.1 (0.90x, faster than ours) | 99.00 % |"
    said = report.slower_somewhere(found)
    assert said == "Faster than our float32: openvino (256x512 on 2 threads)."
    assert report.slower_somewhere(infos(ours=1.0)) == "Faster than our float32: none of them."


def test_the_short_table_has_its_own_rows_and_columns() -> None:
    found = report.short([*infos(openvino=2.0, ncnn=3.0, ours=1.0), *infos(2, ours=1.0)])
    assert [(i["provider"], i["threads"]) for i in found] == [("ours", 1), ("openvino", 1)]


def test_the_papers_figures_stand_beside_ours() -> None:
    row = {"size": [512, 1024], "output": "labels", "threads": 2, "mean_fps": 41.26}
    rows = [{**row, "median_ms": 24.18}, {**row, "output": "probabilities", "median_ms": 30.0}]
    assert report.paper(rows).splitlines()[2:] == [
        "| 512x1024 | labels | 2 threads | 41.3 | 24.2 | 285.8 |",
        "| 512x1024 | probabilities | 2 threads | 41.3 | 30.0 | 266.3 |",
    ]


def test_accuracy_is_shown_in_per_cent() -> None:
    row = {"provider": "ours int8", "miou": 0.7453, "equal": 0.9978, "worst": 0.996}
    last = report.accuracy([row]).splitlines()[-1]
    assert last == "| ours int8 | 74.53 % | 99.78 % | 99.60 % |"
