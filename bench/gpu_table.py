"""Prints short tables and the targets from the JSON of a GPU run.

`python bench/gpu_table.py bench/results/gpu-NAME.json`; with `--all` every row.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]
#: group -> contestant -> row
Rows = dict[str, dict[str, Row]]

TRITON, CUDA = "Triton fp16 graph", "CUDA C++ fp16 graph"
HEADLINE = "1x1024x2048"
#: Frames a second in Table 6 of the paper, "cls" and "prob": Titan X (Maxwell), Titan Xp (Pascal).
PAPER = {
    "1x1024x2048": {"": (75.3, 123.5), ", probabilities": (62.1, 106.2)},
    "1x512x1024": {"": (218.8, 285.8), ", probabilities": (197.6, 266.3)},
    "1x256x512": {"": (403.1, 485.4), ", probabilities": (372.8, 432.9)},
}


class Target(NamedTuple):
    """`value` is None where nothing was measured. `open` says what is missing, where what was
    measured meets the target but is not all that it speaks of."""

    text: str
    value: float | None
    reached: bool
    unit: str
    open: str = ""

    @property
    def met(self) -> bool:
        return self.reached and not self.open

    def __str__(self) -> str:
        if self.value is None:
            return f"  not measured  {self.text}"
        verdict = "met   " if self.met else "open  " if self.reached else "MISSED"
        missing = f" ({self.open})" if verdict == "open  " else ""
        return f"  {verdict} {self.value:9.4g} {self.unit:<4}  {self.text}{missing}"


def rows(results: dict[str, Any]) -> Rows:
    found: Rows = {}
    for b in results.get("benchmarks", []):
        found.setdefault(b["group"], {})[b["extra_info"]["contestant"]] = b["extra_info"]
    return found


def targets(found: Rows) -> list[Target]:
    """The goals of the project on one H100, and what this run says of them."""
    us = lambda name, shape: _value(found, shape, name, "us")  # noqa: E731
    made = [
        _most("Triton alone, 1024x2048: 150 us", us(TRITON, HEADLINE), 150, "us"),
        _most("with CUDA C++, 1024x2048: 100 us", us(CUDA, HEADLINE), 100, "us"),
        _most("with CUDA C++, 512x1024: 60 us", us(CUDA, "1x512x1024"), 60, "us"),
    ]
    for shape in (HEADLINE, "1x512x1024", "1x256x512"):
        for name, factor in ((TRITON, 2), (CUDA, 3)):
            text = f"{name}, {shape[2:]}: {factor} times as fast as the best peer"
            target = _least(text, lead(found, shape, name), factor, "x")
            made.append(target._replace(open=compilers_missing(found, shape, name)))
    single = lead(found, HEADLINE, "Triton fp32 graph", lambda r: r["dtype"] == "float32")
    made.append(_least("fp32, 1024x2048: twice as fast as PyTorch's fp32", single, 2, "x"))
    for name in (TRITON, CUDA):
        batch = _value(found, "16x1024x2048", name, "us")
        fps = None if batch is None else 16e6 / batch
        made.append(_least(f"{name}, batch 16: 20000 frames/s", fps, 20000, "fps"))
        share = _value(found, HEADLINE, name, "label_agreement")
        percent = None if share is None else 100 * share
        what = "real frames" if _real(found) else "drawn frames (pass DATA=)"
        made.append(_least(f"{name}: 99.9 % of fp32's labels on {what}", percent, 99.9, "%"))
        megabytes = _value(found, HEADLINE, name, "engine_memory_mb")
        made.append(_most(f"{name}: engine under 100 MB at 1024x2048", megabytes, 100, "MB"))
    first = found.get("first frame", {}).get("CUDA C++ alone", {}).get("us")
    seconds = None if first is None else first / 1e6
    made.append(_most("first labels of a process, CUDA C++ alone: 0.5 s", seconds, 0.5, "s"))
    return made


def _most(text: str, value: float | None, limit: float, unit: str) -> Target:
    return Target(text, value, value is not None and value <= limit, unit)


def _least(text: str, value: float | None, limit: float, unit: str) -> Target:
    return Target(text, value, value is not None and value >= limit, unit)


def _groups(found: Rows, shape: str) -> list[dict[str, Row]]:
    """The groups of the shipped weights at that shape."""
    return [g for name, g in found.items() if name.startswith(f"network {shape} camvid")]


def _value(found: Rows, shape: str, name: str, field: str) -> float | None:
    for group in _groups(found, shape):
        if name in group and field in group[name]:
            return float(group[name][field])
    return None


def _real(found: Rows) -> bool:
    return any("frames" in r["shows"] for g in _groups(found, HEADLINE) for r in g.values())


def lead(
    found: Rows, shape: str, name: str, peers: Callable[[Row], bool] = lambda row: True
) -> float | None:
    """How many times as fast as the best peer, each in the same interleaved group; the least."""
    leads = []
    for group in _groups(found, shape):
        others = [r["us"] for r in group.values() if not r["ours"] and peers(r)]
        if name in group and others:
            leads.append(min(others) / group[name]["us"])
    return min(leads, default=None)


def compilers_missing(found: Rows, shape: str, name: str) -> str:
    """ "" where `name` ran beside torch.compile max-autotune, the strongest peer known."""
    for group in _groups(found, shape):
        if name in group and any("max-autotune" in peer for peer in group):
            return ""
    return "torch.compile max-autotune was not measured beside it"


def table(found: Rows, everything: bool = False) -> str:
    lines: list[str] = []
    networks = [g for g in found if g.startswith("network")]
    for group in networks:
        if everything or group.startswith(f"network {HEADLINE} camvid"):
            lines += ["", *_full(group, found[group])]
    if networks and not everything:
        lines += ["", *_summary({g: found[g] for g in networks})]
    if paper := _paper(found):
        lines += ["", *paper]
    steps = {g: r for g, r in found.items() if _kind(r) == "training"}
    if steps:
        lines += ["", *_training(steps)]
    layers = {g: r for g, r in found.items() if _kind(r) == "layer"}
    if layers:
        lines += ["", *_layers(layers)]
    for name, row in found.get("first frame", {}).items():
        lines.append(f"first labels, {name}: {row['us'] / 1e6:.3f} s")
    return "\n".join(lines).strip("\n")


def _kind(group: dict[str, Row]) -> str:
    return str(next(iter(group.values()))["kind"])


def _full(name: str, group: dict[str, Row]) -> list[str]:
    lines = [
        f"{name:<46} {'us':>8} {'p99':>8} {'fps':>8} {'GB/s':>6} {'floor':>6} {'MB':>6}   labels"
    ]
    for contestant, r in sorted(group.items(), key=lambda item: item[1]["us"]):
        megabytes = r.get("engine_memory_mb", r["peak_memory_mb"])
        lines.append(
            f"  {contestant:<44} {r['us']:8.1f} {r['us_p99']:8.1f}"
            f" {1e6 * r['images'] / r['us']:8.0f} {r['bytes'] / r['us'] / 1e3:6.0f}"
            f" {r['floor_us'] / r['us']:6.1%} {megabytes:6.0f} {r['label_agreement']:8.3%}"
            f"{'  (' + r['note'] + ')' if 'note' in r else ''}"
        )
    return lines


def _summary(networks: Rows) -> list[str]:
    lines = [f"{'us':<46} {'CUDA C++':>9} {'Triton':>9} {'best peer':>9}"]
    for name, group in networks.items():
        peers = {n: r["us"] for n, r in group.items() if not r["ours"]}
        best = min(peers, key=lambda n: peers[n], default=None)
        cells = [group[n]["us"] if n in group else None for n in (CUDA, TRITON)]
        cells.append(peers[best] if best else None)
        lines.append(f"  {name:<44} {' '.join(map(_cell, cells))}  {best or ''}")
    return lines


def _layers(layers: Rows) -> list[str]:
    names = ("CUDA C++", "Triton", "torch")
    heads = " ".join(f"{n:>9}" for n in (*names, "floor"))
    lines = [f"{'layer at 1024x2048, fp16, us':<46} {heads}"]
    for layer, group in layers.items():
        cells = [group[n]["us"] if n in group else None for n in names]
        cells.append(next(iter(group.values()))["floor_us"])
        lines.append(f"  {layer:<44} {' '.join(map(_cell, cells))}")
    return lines


def _paper(found: Rows) -> list[str]:
    """Table 6 of the paper, 19 classes, beside the same work here."""
    lines = [
        f"{'Table 6 of the paper, fps':<30} {'CUDA C++':>9} {'Triton':>9} {'Titan X':>9} {'Xp':>7}"
    ]
    for shape, kinds in PAPER.items():
        for what, (maxwell, pascal) in kinds.items():
            group = found.get(f"network {shape} seeded{what}", {})
            ours = [1e6 / group[n]["us"] if n in group else None for n in (CUDA, TRITON)]
            if any(ours):
                cells = " ".join(f"{'-':>9}" if v is None else f"{v:9.0f}" for v in ours)
                name = f"{shape[2:]} {'prob' if what else 'cls'}"
                lines.append(f"  {name:<28} {cells} {maxwell:9.1f} {pascal:7.1f}")
    return lines if len(lines) > 1 else []


def _training(steps: Rows) -> list[str]:
    lines = [f"{'training step':<52} {'ms':>8} {'p99':>8} {'img/s':>8} {'MB':>7}"]
    for name, group in steps.items():
        lines.append(f"  {name.removeprefix('training step ')}")
        lines += [
            f"    {who:<48} {r['us'] / 1e3:8.2f} {r['us_p99'] / 1e3:8.2f}"
            f" {1e6 * r['images'] / r['us']:8.0f} {r['peak_memory_mb']:7.0f}"
            for who, r in sorted(group.items(), key=lambda item: item[1]["us"])
        ]
    return lines


def _cell(us: float | None) -> str:
    return f"{'-':>9}" if us is None else f"{us:9.2f}"


def report(results: dict[str, Any], everything: bool = False) -> str:
    """Everything for a person: the machine, tables, what was not measured, tests, targets."""
    found = rows(results)
    about = results.get("gpu", {})
    lines = [", ".join(f"{k} {v}" if k != "name" else v for k, v in about.items())]
    lines.append(f"commit {results.get('commit', 'unknown')}")
    lines += [table(found, everything) or "nothing was measured"]
    reasons: dict[str, list[str]] = {}
    for miss in results.get("not_measured", []):
        word = "FAILED: " if miss["failed"] else ""
        reasons.setdefault(f"{word}{miss['reason']}", []).append(miss["name"])
    for reason, names in reasons.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(f"not measured: {names[0]}{more}: {reason}")
    for stage in results.get("stages", []):
        lines.append(f"{stage['name']}: {stage['result']} ({stage['seconds']:.0f} s)")
    lines += ["targets for one H100:", *map(str, targets(found))]
    return "\n".join(lines)


if __name__ == "__main__":
    print(report(json.loads(Path(sys.argv[1]).read_text()), "--all" in sys.argv))
