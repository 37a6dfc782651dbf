"""Prints a short table from the JSON of bench/test_gpu.py: medians over all passes."""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any


def rows(results: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """(group, provider) -> facts and the microseconds per call of all rounds of all passes."""
    found: dict[tuple[str, str], dict[str, Any]] = defaultdict(lambda: {"us": []})
    for b in results["benchmarks"]:
        info = b["extra_info"]
        row = found[b["group"], info["provider"]]
        row.update(info)
        row["us"] += [1e6 * t / info["calls"] for t in b["stats"]["data"]]
    return dict(found)


def table(results: dict[str, Any]) -> str:
    lines, last = [], ""
    for (group, provider), row in sorted(rows(results).items(), key=_order):
        if group != last:
            lines += ["", f"{group:<34} {'us':>8} {'p80':>8} {'fps':>8} {'GB/s':>6} "
                          f"{'TF/s':>6} {'floor':>6} {'MB':>6} {'labels':>8}"]  # fmt: skip
            last = group
        us = statistics.median(row["us"])
        p80 = sorted(row["us"])[int(0.8 * (len(row["us"]) - 1))]
        line = f"  {provider:<32} {us:8.1f} {p80:8.1f} {1e6 * row['images'] / us:8.0f}"
        if "floor_us" in row:
            line += (
                f" {row['bytes'] / us / 1e3:6.0f} {row['flops'] / us / 1e6:6.1f}"
                f" {row['floor_us'] / us:6.0%} {row['peak_memory_mb']:6.0f}"
                f" {row['label_agreement']:8.3%}"
            )
        lines.append(line)
    return "\n".join(lines[1:])


def _order(item: tuple[tuple[str, str], dict[str, Any]]) -> tuple[str, float]:
    (group, _), row = item
    return group, statistics.median(row["us"])


if __name__ == "__main__":
    data = json.loads(Path(sys.argv[1]).read_text())
    info = data["benchmarks"][0]["extra_info"]
    print(f"{info['gpu']}, CUDA {info['cuda']}, torch {info['torch']}, triton {info['triton']}")
    print(table(data))
