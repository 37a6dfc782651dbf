"""Markdown tables from the JSON of the CPU benchmarks.

`python bench/report.py FILE.json...` prints them; `--readme` renews the README's numbers and those
of docs/benchmarks.md and docs/training.md.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpu_table import PAPER

README = Path(__file__).parent.parent / "README.md"
DETAIL = README.parent / "docs" / "benchmarks.md"
TRAINING = README.parent / "docs" / "training.md"
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
    "argmax_head": (0.0, 2.5 + 2.1),
}


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def median_ms(entry: dict[str, Any]) -> float:
    return 1e3 * entry["stats"]["median"]


WEIGHTS = {
    "camvid": "Shipped weights (11 classes), a real frame",
    "seeded": "Seeded weights (19 classes), a drawn frame",
}

INTRODUCTION = """\
Frame in, labels out, on the CPU; medians. All rows of a column are measured in turns; in brackets,
how many times the time of ours of the same precision. Peers get the cheapest exact graph that is
known (`fastscnn/benchmark/peers.py`); `+ our head` is their trunk before our C++ head. int8 is
calibrated on three other frames of the same kind, never on the one that is judged; the last column
is the least of its row. glibc's allocator is told to keep memory, by which PyTorch gains most.
With one thread the clock is the CPU time of the process; with two it is
wall time, which other work stretches: there, read the ratios."""

Column = tuple[str, int]  # frame, threads

#: What the README shows of the shipped weights.
SHORT_COLUMNS: tuple[Column, ...] = (("1024x2048", 1), ("1024x2048", 2), ("256x512", 1))
SHORT_ROWS = (
    *("ours", "ours bf16", "ours int8", "channels_last", "onnxruntime", "openvino"),
    *("openvino bf16", "onnxruntime int8", "openvino int8"),
    *("onnxruntime + our head", "openvino bf16 + our head", "openvino int8 + our head"),
)
SHORT_INTRODUCTION = """\
Frame in, labels out, on a CPU; shipped weights (11 classes), a real frame; medians of rounds in
turns, and in brackets how many times the time of ours of the same precision. `channels_last` is
PyTorch; `+ our head` a peer's trunk before our C++ head; int8 is calibrated on other frames."""


def of_kind(files: Iterable[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [
        e["extra_info"]
        for file in files
        for e in file["benchmarks"]
        if e["extra_info"].get("kind") == kind
    ]


def columns(infos: Iterable[dict[str, Any]]) -> dict[Column, dict[str, dict[str, Any]]]:
    """By frame and thread count, what each provider did."""
    found: dict[Column, dict[str, dict[str, Any]]] = {}
    for info in infos:
        key = ("x".join(map(str, info["size"])), info["threads"])
        found.setdefault(key, {})[info["provider"]] = info
    return dict(sorted(found.items(), key=lambda c: (c[0][1], -int(c[0][0].split("x")[0]))))


def rival_of(provider: str) -> str:
    """Ours of the same precision."""
    return next((f"ours {p}" for p in ("int8", "bf16") if p in provider), "ours")


def short(infos: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What of it the README shows, in its order."""
    shown = [i for i in in_short_columns(infos) if i["provider"] in SHORT_ROWS]
    return sorted(shown, key=lambda i: SHORT_ROWS.index(i["provider"]))


def in_short_columns(infos: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [i for i in infos if ("x".join(map(str, i["size"])), i["threads"]) in SHORT_COLUMNS]


def networks(infos: list[dict[str, Any]]) -> str:
    """One row per provider: median ms, and how many times the time of ours of its precision."""
    found = columns(infos)
    names = list(dict.fromkeys(info["provider"] for info in infos))
    rows = []
    for name in names:
        cells, agreed = [], []
        for row in found.values():
            info, rival = row.get(name), row.get(rival_of(name))
            if info is None:
                cells.append("-")
                continue
            agreed.append(info["equal"])
            ms = f"{info['ms']:.1f}"
            if name.startswith("ours"):
                cells.append(f"**{ms}**")
            elif rival is None:
                cells.append(ms)
            else:
                faster = ", faster than ours" if info["ms"] < rival["ms"] else ""
                cells.append(f"{ms} ({info['ms'] / rival['ms']:.2f}x{faster})")
        rows.append([name, *cells, f"{100 * min(agreed):.2f} %"])
    head = [f"{frame}, {threads} thread{'s' * (threads > 1)}" for frame, threads in found]
    return table(["ms", *head, "equal labels"], rows)


def slower_somewhere(infos: list[dict[str, Any]]) -> str:
    """Who is faster than our float32, and where: the sentence that the table owes its reader."""
    where: dict[str, list[str]] = {}
    found = columns(infos)
    for (frame, threads), row in found.items():
        for name, info in row.items():
            if not name.startswith("ours") and info["ms"] < row["ours"]["ms"]:
                at = f"{frame} on {threads} thread{'s' * (threads > 1)}"
                where.setdefault(name, []).append(at)
    said = [
        f"{name} ({'everywhere' if len(at) == len(found) else ', '.join(at)})"
        for name, at in where.items()
    ]
    return textwrap.fill(f"Faster than our float32: {'; '.join(said) or 'none of them'}.", 100)


def paper(infos: list[dict[str, Any]]) -> str:
    """Table 6, of which a Titan Xp's figures are shown; "cls" are labels, "prob" probabilities."""
    rows = []
    for info in infos:
        frame, output = "x".join(map(str, info["size"])), info["output"]
        theirs = PAPER[f"1x{frame}"]["" if output == "labels" else f", {output}"][1]
        ours = [f"{info['mean_fps']:.1f}", f"{info['median_ms']:.1f}"]
        rows.append([frame, output, f"{info['threads']} threads", *ours, f"{theirs:.1f}"])
    head = ["frame", "output", "CPU", "ours, fps", "ours, median ms", "paper on a Titan Xp, fps"]
    return table(head, rows)


def accuracy(infos: list[dict[str, Any]]) -> str:
    rows = [
        [i["provider"], *(f"{100 * i[k]:.2f} %" for k in ("miou", "equal", "worst"))] for i in infos
    ]
    return table(["", "mIoU", "equal labels", "of the worst frame"], rows)


def results() -> dict[str, dict[str, Any]]:
    """The committed results of the CPU, by file name."""
    return {p.name: json.loads(p.read_text()) for p in sorted(RESULTS.glob("cpu-*.json"))}


def readme_numbers() -> str:
    """The README's block: the table that most readers want."""
    infos = [i for i in of_kind(results().values(), "network") if i["weights"] == "camvid"]
    commits = {f["commit_info"]["id"][:7] for f in results().values()}
    return "\n\n".join(
        [
            SHORT_INTRODUCTION,
            networks(short(infos)),
            slower_somewhere(in_short_columns(infos)),
            textwrap.fill(
                "A 2-core Zen 4 virtual machine with other work on it; with two threads, which are "
                f"timed by the wall clock, read the ratios. Commit {', '.join(sorted(commits))}; "
                "everything else: [docs/benchmarks.md](docs/benchmarks.md). No GPU figure has been "
                "measured yet.",
                100,
            )
            + "\n",
        ]
    )


def detail_numbers() -> str:
    """The block of docs/benchmarks.md: everything."""
    files = list(results().values())
    parts = [INTRODUCTION]
    for weights, title in WEIGHTS.items():
        infos = [i for i in of_kind(files, "network") if i.get("weights", "seeded") == weights]
        if infos:
            parts.append(f"{title}:\n\n{networks(infos)}\n\n{slower_somewhere(infos)}")
    single = [i for i in of_kind(files, "operations") if i["threads"] == 1]
    if single:
        parts.append(
            "Where a frame of 1024x2048 spends its time on one thread; GB/s counts every "
            f"operation's inputs and\noutputs once:\n\n{operations(single[0]['ms'])}"
        )
    if of_kind(files, "paper"):
        parts.append(
            "The paper's Table 6 by its protocol (batch one, 100 frames of burn-in, mean of 100):"
            f"\n\n{paper(of_kind(files, 'paper'))}"
        )
    if rounded := of_kind(files, "accuracy"):
        parts.append(
            f"What rounding costs on CamVid's {rounded[0]['frames']} validation frames, which the "
            "shipped weights have seen;\nint8 calibrated on 30 training frames, labels held "
            f"against PyTorch's float32:\n\n{accuracy(rounded)}"
        )
    commits = {f["commit_info"]["id"][:7] for f in files}
    notes = {f["machine_info"]["note"] for f in files}
    names = ", ".join(f"`bench/results/{name}`" for name in results())
    said = (
        f"Measured in {names}: {'; '.join(sorted(notes))}; commit {', '.join(sorted(commits))}. "
        "Renew with `make bench` and `python bench/report.py --readme`. "
        "No GPU figure has been measured yet."
    )
    parts.append(textwrap.fill(said, 100, break_on_hyphens=False) + "\n")
    return "\n\n".join(parts)


def renew(document: Path, numbers: str) -> None:
    start, end = "<!-- numbers -->\n", "<!-- /numbers -->"
    before, _, rest = document.read_text().partition(start)
    document.write_text(before + start + numbers + end + rest.partition(end)[2])


def training_numbers() -> str:
    """The block of `docs/training.md`: every committed result's steps and heads."""
    parts = []
    for path in sorted(RESULTS.glob("training-*.json")):
        data = json.loads(path.read_text())
        parts.append(
            f"{training(data['benchmarks'])}\n\nMeasured in `bench/results/{path.name}`: "
            f"{data['machine_info']['note']}, commit {data['commit_info']['id'][:7]}.\n"
        )
    return "\n".join(parts)


def operations(ms: dict[str, float]) -> str:
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


def training(entries: list[dict[str, Any]]) -> str:
    """One row per case and provider: milliseconds, megabytes and how often ours fits into each."""
    cases: dict[str, dict[str, dict[str, Any]]] = {}
    for e in entries:
        cases.setdefault(e["group"], {})[e["extra_info"]["provider"]] = e
    rows = []
    for group, row in cases.items():
        ours, least = median_ms(row["ours"]), row["ours"]["extra_info"]["peak_bytes"]
        for name, e in row.items():
            ms, peak = median_ms(e), e["extra_info"]["peak_bytes"]
            factor = "" if name == "ours" else f" ({ms / ours:.2f}x)"
            more = "" if name == "ours" or not least else f" ({peak / least:.1f}x)"
            rows.append([group, name, f"{ms:.1f}{factor}", f"{peak / 1e6:.0f}{more}"])
    return table(["", "provider", "ms", "peak MB"], rows)


def main(paths: list[str]) -> None:
    for path in paths:
        data = json.loads(Path(path).read_text())
        machine = data["machine_info"]["cpu"].get("brand_raw", "unknown CPU")
        print(
            f"## {Path(path).stem}: {machine}, {data['machine_info']['cpu'].get('count')} cores\n"
        )
        for weights in WEIGHTS:
            found = [i for i in of_kind([data], "network") if i["weights"] == weights]
            if found:
                print(f"{WEIGHTS[weights]}:\n\n{networks(found)}\n")
        for info in of_kind([data], "operations"):
            if set(info["ms"]) <= set(WORK):
                print(f"{info['threads']} threads:\n\n{operations(info['ms'])}\n")
        if rounded := of_kind([data], "accuracy"):
            print(accuracy(rounded) + "\n")
        if of_kind([data], "paper"):
            print(paper(of_kind([data], "paper")) + "\n")
        kinds: dict[str, list[dict[str, Any]]] = {}
        for e in data["benchmarks"]:
            kinds.setdefault(e["extra_info"].get("kind", ""), []).append(e)
        if steps := [e for kind in ("training head", "training") for e in kinds.get(kind, [])]:
            print(training(steps) + "\n")
        if "head" in kinds:
            print(heads(kinds["head"]) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["--readme"]:
        renew(README, readme_numbers())
        renew(DETAIL, detail_numbers())
        renew(TRAINING, training_numbers())
    else:
        main(sys.argv[1:])
