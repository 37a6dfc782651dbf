"""Holds a run of the CPU benchmarks against committed ones, by ratios that survive other machines.

    python bench/compare.py NEW.json [OLD.json...]      (default: bench/results/cpu-*.json)

Ours is compared with a peer of the same run; what fell by more than both runs' noise is named.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
#: Whose time in the same run ours is divided into, the first that was measured in both.
PEERS = ("onnxruntime", "openvino", "channels_last", "eager")

Key = tuple[str, int, str]  # frame, threads, weights
Entries = dict[Key, dict[str, dict[str, Any]]]


class Change(NamedTuple):
    """`ratio` is the peer's time over ours; `noise` what both runs spread by, relative."""

    where: str
    old: float
    new: float
    noise: float

    @property
    def fell(self) -> bool:
        return self.new < self.old * (1 - self.noise)

    def __str__(self) -> str:
        verdict = "FELL" if self.fell else "held"
        return f"{verdict} {self.where}: {self.old:.2f}x -> {self.new:.2f}x, noise {self.noise:.0%}"


def networks(files: Iterable[Path]) -> Entries:
    """What was measured of the whole network, by provider."""
    found: Entries = {}
    for file in files:
        for entry in json.loads(file.read_text())["benchmarks"]:
            info = entry["extra_info"]
            if info.get("kind") == "network":
                size = "x".join(map(str, info["size"]))
                key = (size, info["threads"], info.get("weights", "seeded"))
                found.setdefault(key, {})[info["provider"]] = info
    return found


def changes(old: Entries, new: Entries) -> list[Change]:
    """Of each of our ways that both measured with the same peer."""
    found = []
    for key, row in new.items():
        before = old.get(key, {})
        common = [name for name in row if name in before]
        peer = next((name for name in PEERS if name in common), None)
        for name in common:
            if peer and name in ("ours", "ours bf16", "ours int8"):
                pairs = [(run[peer], run[name]) for run in (before, row)]
                ratios = [p["ms"] / o["ms"] for p, o in pairs]
                noise = max(spread(e) for pair in pairs for e in pair)
                where = f"{key[0]}, {key[1]} threads, {key[2]}, {name} against {peer}"
                found.append(Change(where, *ratios, noise))
    return found


def spread(info: dict[str, Any]) -> float:
    """What lies between the 20 % and the 80 % quantile, relative, and 2 % at the least."""
    return max(0.02, (info["q80_ms"] - info["q20_ms"]) / info["ms"])


def main(arguments: list[str]) -> int:
    if not arguments:
        print(__doc__)
        return 2
    files = [Path(a) for a in arguments[1:]] or sorted(RESULTS.glob("cpu-*.json"))
    found = changes(networks(files), networks([Path(arguments[0])]))
    print("\n".join(map(str, found)) or "no size, thread count and weights in common")
    return 1 if any(c.fell for c in found) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
