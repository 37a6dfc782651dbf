"""Any file against any weights: equal, or where and by what slip they differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fastscnn.checkpoints.files import config_differences
from fastscnn.export.compare import Reference, Row, first_difference, judge, look, pictures
from fastscnn.export.slips import Slip, explain
from fastscnn.export.subject import open_subject
from fastscnn.load import load
from fastscnn.network.model import FastSCNN


@dataclass(frozen=True)
class Report:
    """What `verify` found; for a file that differs also where, and which slips explain it."""

    rows: list[Row]
    #: Name of the first convolution whose output differs, where the file's can be seen.
    where: str | None = None
    slips: tuple[Slip, ...] = ()
    #: Differences of two checkpoints that can be read off: config fields, tensors.
    read_off: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        return all(row.passed for row in self.rows)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield from map(str, self.rows)
        if self.equal:
            yield "equal"
            return
        yield f"different, first after {self.where}" if self.where else "different"
        yield from (f"it looks like {slip}" for slip in self.slips)
        if not self.slips:
            yield "no known slip alone explains it"
        yield from self.read_off


def verify(path: Path, against: str = "camvid", frames: Sequence[Path] = ()) -> Report:
    """Hold an .onnx, a .pt2 or a checkpoint against the weights `against`.

    On drawn frames of several sizes, or on image files resized to them. Raises ValueError, OSError
    or ImportError where the two cannot be compared.
    """
    subject = open_subject(path)
    net = load(against, fused=False, device="cpu")
    with torch.no_grad():
        seen = [look(subject, net, batch) for batch in pictures(subject, frames)]
        rows = [judge(subject, Reference(net), one) for one in seen]
        if all(row.passed for row in rows):
            return Report(rows)
        failed = [one for one, row in zip(seen, rows, strict=True) if not row.passed]
        where = first_difference(subject, net, failed[0])
        few = [one for one in seen if len(one.frames) == 1][:2] or seen[:2]
        slips = explain(subject, net, few)
    return Report(rows, where, tuple(slips), tuple(_read_off(subject.net, net)))


def _read_off(other: FastSCNN | None, net: FastSCNN) -> Iterator[str]:
    if other is None:
        return
    differ = config_differences(other.config, net.config)
    if differ:
        yield f"configs differ: {'; '.join(differ)}"
    own = net.state_dict()
    for name, value in other.state_dict().items():
        if name in own and (value.shape != own[name].shape or not torch.equal(value, own[name])):
            yield f"weights differ, first: {name}"
            return
