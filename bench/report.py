"""Markdown tables from the JSON of the CPU benchmarks.

`python bench/report.py FILE.json...` prints them; `--readme` renews the README's numbers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

README = Path(__file__).parent.parent / "README.md"
RESULTS = Path(__file__).parent / "results"

#: Operations of the paper's network at 1024x2048: (millions of multiply-adds, MB read and written
#: where every fused operation reads its inputs and writes its output once).
WORK = {
    "learning_to_downsample": (806.88, 6.3 + 8.4),
    "bottleneck1.0": (1034.9, 8.4 + 2.1),
    "bottleneck1.1": (430.97, 4.2),
    "bottleneck1.2": (430.97, 4.2),
    "bottleneck2.0": (283.91, 2.1 + 0.8),
    "bottleneck2.1": (237.12, 1.6),
    "bottleneck2.2": (237.12, 1.6),
    "bottleneck3.0": (274.86, 0.8 + 1.0),
    "bottleneck3.1": (416.82, 2.1),
    "bottleneck3.2": (416.82, 2.1),
    "pyramid_pool": (33.8, 2.1),
    "feature_fusion": (843.05, 8.4 + 1.0 + 16.8),
    "classifier": (1228.93, 16.8 + 2.5),
    "classifier.dsconv1": (574.62, 33.6),
    "classifier.dsconv2+scores": (654.31, 16.8 + 2.5),
    "argmax_head": (0.0, 2.5 + 2.1),
}


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def median_ms(entry: dict[str, Any]) -> float:
    return 1e3 * entry["stats"]["median"]


def networks(entries: list[dict[str, Any]]) -> str:
    """One row per size and thread count; medians in ms, and our factor over each."""
    cells: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for e in entries:
        info = e["extra_info"]
        key = ("x".join(map(str, info["size"])), info["threads"])
        cells.setdefault(key, {})[info["provider"]] = e
    providers = sorted({p for row in cells.values() for p in row} - {"ours", "ours_int8"})
    rows = []
    for (size, threads), row in cells.items():
        ours = median_ms(row["ours"])
        info = row["ours"]["extra_info"]
        line = [size, str(threads), f"**{ours:.1f}** ({info['q20_ms']:.1f}..{info['q80_ms']:.1f})"]
        line.append(f"{median_ms(row['ours_int8']):.1f}" if "ours_int8" in row else "-")
        for p in providers:
            ms = median_ms(row[p]) if p in row else None
            line.append("-" if ms is None else f"{ms:.1f} ({ms / ours:.2f}x)")
        rows.append([*line, f"{100 * info['agreement']:.2f} %"])
    ours_columns = ["ours, ms (20..80 %)", "in int8"]
    return table(["frame", "threads", *ours_columns, *providers, "labels equal to torch"], rows)


def readme_numbers() -> str:
    """The README's block: the whole network and its operations on the CPU, from the committed
    results."""
    files = [json.loads(p.read_text()) for p in sorted(RESULTS.glob("cpu-*.json"))]
    entries = [
        e for f in files for e in f["benchmarks"] if e["extra_info"].get("kind") == "network"
    ]
    (single,) = (
        e
        for f in files
        for e in f["benchmarks"]
        if e["extra_info"].get("kind") == "operations" and e["extra_info"]["threads"] == 1
    )
    sources = "; ".join(
        f"`bench/results/{p.name}`: {f['machine_info']['note']}, "
        f"commit {f['commit_info']['id'][:7]}"
        for p, f in zip(sorted(RESULTS.glob("cpu-*.json")), files, strict=True)
    )
    return (
        "Frame in, labels out, fp32, seeded 19-class weights; medians of interleaved runs, and "
        "in brackets\nhow many times our time that is. `eager` is the reference as a user first "
        "runs it; `in int8` is\nours after `fastscnn quantize`.\n\n"
        f"{networks(entries)}\n\nWhere a frame of 1024x2048 spends its time on one thread; GB/s "
        "counts every operation's inputs and\noutputs once:\n\n"
        f"{operations(single)}\n\nMeasured in {sources}.\nRenew with `make bench` and "
        "`python bench/report.py --readme`. No GPU figure has been measured yet.\n"
    )


def renew_readme() -> None:
    text = README.read_text()
    start, end = "<!-- numbers -->\n", "<!-- /numbers -->"
    before, _, rest = text.partition(start)
    README.write_text(before + start + readme_numbers() + end + rest.partition(end)[2])


def operations(entry: dict[str, Any]) -> str:
    ms = entry["extra_info"]["ms"]
    whole = sum(ms.values())
    rows = []
    for name, t in ms.items():
        macs, megabytes = WORK[name]
        rate = f"{2 * macs / t:.0f}" if macs else "-"  # 1e6 per ms = 1e9 per s
        rows.append([name, f"{t:.2f}", rate, f"{megabytes / t:.1f}", f"{100 * t / whole:.1f} %"])
    return table(["operation", "ms", "GFLOP/s", "GB/s", "share"], rows)


def heads(entries: list[dict[str, Any]]) -> str:
    rows = [
        [e["extra_info"]["scores"], e["extra_info"]["provider"], f"{median_ms(e):.2f}"]
        for e in entries
    ]
    return table(["scores", "provider", "ms"], sorted(rows))


def main(paths: list[str]) -> None:
    for path in paths:
        data = json.loads(Path(path).read_text())
        kinds: dict[str, list[dict[str, Any]]] = {}
        for e in data["benchmarks"]:
            kinds.setdefault(e["extra_info"].get("kind", ""), []).append(e)
        machine = data["machine_info"]["cpu"].get("brand_raw", "unknown CPU")
        print(
            f"## {Path(path).stem}: {machine}, {data['machine_info']['cpu'].get('count')} cores\n"
        )
        if "network" in kinds:
            print(networks(kinds["network"]) + "\n")
        for e in kinds.get("operations", []):
            if set(e["extra_info"]["ms"]) == set(WORK):
                print(f"{e['extra_info']['threads']} threads:\n\n{operations(e)}\n")
        if "head" in kinds:
            print(heads(kinds["head"]) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["--readme"]:
        renew_readme()
    else:
        main(sys.argv[1:])
