"""Any file against any weights: equal, or where and by what slip they differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fastscnn.checkpoints.files import config_differences
from fastscnn.export.compare import Row, Seen, first_difference, hold, pictures
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
    #: Differences that can be read off: sizes; of two checkpoints config fields, tensors.
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
        if all(row.passed or row.trouble for row in self.rows):
            yield "different: it does not run on all of these frames; on the others it is equal"
            return
        yield f"different, first after {self.where}" if self.where else "different"
        yield from (f"it looks like {slip}" for slip in self.slips)
        if not self.slips and not self.read_off:
            yield "no known slip explains it: other weights?"
        yield from self.read_off


def verify(path: Path, against: str = "camvid", frames: Sequence[Path] = ()) -> Report:
    """Hold an .onnx, a .pt2, a .fscnn or a checkpoint against the weights `against`.

    On drawn frames of several sizes, or on image files resized to them. Raises ValueError, OSError
    or ImportError where the two cannot be compared.
    """
    subject = open_subject(path)
    net = load(against, fused=False, device="cpu")
    with torch.no_grad():
        checks = [hold(subject, net, batch) for batch in pictures(subject, frames)]
        rows = [row for row, _ in checks]
        seen = [one for _, one in checks if one]
        failed = [one for row, one in checks if one and not row.passed]
        if not seen:
            raise ValueError(f"{path} {rows[0].trouble}")
        if not failed:
            return Report(rows)
        where = first_difference(subject, net, failed[0])
        few = [one for one in seen if len(one.frames) == 1][:2] or seen[:2]
        slips = explain(subject, net, few)
    return Report(rows, where, tuple(slips), (*_one_size(seen), *_read_off(subject.net, net)))


def _one_size(seen: Sequence[Seen]) -> Iterator[str]:
    """Whether the output has the size of frames that it was traced with, whatever it is given."""
    given = {one.frames.shape[1:3] for one in seen}
    sizes = {tuple(one.output.shape[-2:]) for one in seen}
    if len(sizes) == 1 and len(given) > 1:
        h, w = sizes.pop()
        yield f"it gives {h}x{w} for frames of every size: it was made for one"


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
