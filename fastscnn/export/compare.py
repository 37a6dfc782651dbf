"""A file against a model on frames: equal labels, and values within a bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastscnn.export.subject import Map, Subject, network_maps
from fastscnn.media.demo import street_scene
from fastscnn.media.frames import read_image
from fastscnn.network.blocks import resize
from fastscnn.network.model import FastSCNN
from fastscnn.network.segment import Size, resize_frames, working_size

#: Frames that a file of free size is checked on: small, odd, wide.
SIZES: tuple[Size, ...] = ((64, 96), (101, 139), (96, 256))
LABELS_EQUAL = 0.9995
NEAR = 1e-4
#: The same for files that compute in 16 bits.
LABELS_EQUAL_HALF = 0.99
NEAR_HALF = 1e-2


class ExportError(ValueError):
    """A file that does not compute what the model computes; nothing was written."""


class NotRun(ValueError):
    """A file that does not run on frames of the sizes that it declares."""


@dataclass(frozen=True)
class Row:
    """One check: the frames' shape, the share of equal labels, and the largest difference.

    `error` is relative to the range of the values, of class scores where the file gives labels
    only; None where those cannot be seen either. `half` is of files that compute in 16 bits.
    `trouble` says why the file does not run on such frames.
    """

    shape: tuple[int, int, int]
    labels: float
    error: float | None
    half: bool = False
    trouble: str = ""

    @property
    def passed(self) -> bool:
        labels, near = (LABELS_EQUAL_HALF, NEAR_HALF) if self.half else (LABELS_EQUAL, NEAR)
        return self.labels >= labels and (self.error is None or self.error <= near)

    @property
    def distance(self) -> float:
        """For ranking: 0 is equal."""
        return 1 - self.labels + min(self.error or 0.0, 1.0)

    def __str__(self) -> str:
        n, h, w = self.shape
        frames = f"{n} x {f'{h}x{w}':<9}"
        if self.trouble:
            return f"{frames} {self.trouble}"
        error = "" if self.error is None else f", values within {self.error:.1e} of their range"
        return f"{frames} {self.labels:9.4%} labels equal{error}"


def check_sizes(subject: Subject) -> Sequence[Size]:
    """The size that is fixed, or small ones and, with a working size, one that is scaled down."""
    if subject.size is not None:
        return [subject.size]
    side = subject.working_side
    if side is None:
        return SIZES
    return (*SIZES[:2], (side * 9 // 8, side * 9 // 8 + 5))


def pictures(subject: Subject, files: Sequence[Path] = ()) -> list[np.ndarray]:
    """Batches of uint8 N x H x W x 3, of one frame and of two, in every size to check.

    The frames are those of `files`, resized, or drawn.
    """
    found = [Image.fromarray(read_image(path)) for path in files]

    def one(index: int, h: int, w: int) -> np.ndarray:
        if not found:
            return street_scene(h, w, index)
        return np.asarray(found[index % len(found)].resize((w, h), Image.Resampling.BILINEAR))

    batches = (1, 2) if subject.batch is None else (subject.batch,)
    count, result = 0, []
    for h, w in check_sizes(subject):
        for n in batches:
            result.append(np.stack([one(count + i, h, w) for i in range(n)]))
            count += n
    return result


@dataclass(frozen=True)
class Reference:
    """The model that a file is held against, and how frames become its input.

    `prepare` is given the network and uint8 frames N x H x W x 3 of the size that it works at.
    """

    net: FastSCNN
    prepare: Callable[[FastSCNN, Tensor], Tensor] = FastSCNN._normalize

    def input(self, subject: Subject, frames: np.ndarray) -> Tensor:
        """What the reference computes on where the file is given these frames."""
        batch = torch.from_numpy(frames)
        if subject.working_side is not None:
            h, w = frames.shape[1:3]
            batch = resize_frames(batch, working_size((h, w), subject.working_side))
        return self.prepare(self.net, batch)


@dataclass(frozen=True)
class Seen:
    """What a file made of a batch of frames: its output, and its convolutions' if known."""

    frames: np.ndarray
    output: Tensor
    maps: list[Map]


def look(subject: Subject, net: FastSCNN, frames: np.ndarray) -> Seen:
    """Run a file; where it takes tensors, frames are normalised as `net` has it.

    Raises NotRun where it fails, and ValueError where its output is of another kind or count.
    """
    x = frames if subject.input == "frame" else Reference(net).input(subject, frames).numpy()
    n, h, w = frames.shape[:3]
    try:
        output, maps = torch.from_numpy(np.asarray(subject.run(x))), subject.maps(x)
    except Exception as error:  # of the runtimes' own kinds
        raise NotRun(" ".join(str(error).split())[:160]) from error
    floats, one = output.is_floating_point(), output.numel() == n * h * w
    if one and (not floats or (net.num_classes > 1 and torch.equal(output, output.round()))):
        output = output.reshape(n, h, w).long()  # labels, of whatever type
        classes = maps[-1][1].shape[1] if maps else net.num_classes
    elif floats and output.shape == (n, h, w, net.num_classes):
        output = output.permute(0, 3, 1, 2)  # as other frameworks lay it
        classes = net.num_classes
    elif floats and output.dim() == 4 and len(output) == n:
        classes = output.shape[1]
    else:
        raise ValueError(
            f"the file gives {list(output.shape)} for {n} x {h}x{w}: expected a label or a value "
            "of each class for every pixel"
        )
    if classes != net.num_classes:
        raise ValueError(
            f"the file has {classes} classes, the weights {net.num_classes}: give others with "
            "--against"
        )
    return Seen(frames, output, maps)


def hold(subject: Subject, net: FastSCNN, frames: np.ndarray) -> tuple[Row, Seen | None]:
    """One check, and what was seen in it: nothing where the file does not run, as the row says."""
    try:
        seen = look(subject, net, frames)
    except NotRun as error:
        n, h, w = frames.shape[:3]
        return Row((n, h, w), 0, None, trouble=f"does not run: {error}"), None
    return judge(subject, Reference(net), seen), seen


def judge(subject: Subject, reference: Reference, seen: Seen) -> Row:
    """How near the file's output is to the reference's on the same frames."""
    net, (n, h, w) = reference.net, seen.frames.shape[:3]
    align = net.config.head_align_corners
    with torch.no_grad():
        scores = net.scores(reference.input(subject, seen.frames))
        logits = resize(scores, (h, w), align)
    if not seen.output.is_floating_point():
        equal = (seen.output == logits.max(dim=1)[1]).float().mean()
        last = seen.maps[-1][1] if seen.maps else np.zeros(())
        known = last.shape[:2] == scores.shape[:2]
        error = _error(last, scores.numpy()) if known else None
        return Row((n, h, w), float(equal), error, subject.half)
    got = seen.output.float()
    if got.shape[2:] != (h, w):
        got = resize(got, (h, w), align)
    elif bool((got >= 0).all()) and torch.allclose(got.sum(1), torch.ones(()), atol=1e-2):
        logits = logits.softmax(1)
    equal = (got.max(dim=1)[1] == logits.max(dim=1)[1]).float().mean()
    return Row((n, h, w), float(equal), _error(got.numpy(), logits.numpy()), subject.half)


def first_difference(subject: Subject, net: FastSCNN, seen: Seen) -> str | None:
    """Name of the first convolution whose output differs; None where none does or none is known."""
    expected = network_maps(net, Reference(net).input(subject, seen.frames))
    pairs = list(zip(expected, seen.maps, strict=False))
    if len(expected) != len(seen.maps) or any(b[0] not in ((), a[1]) for a, b in pairs):
        return None
    near = NEAR_HALF if subject.half else NEAR
    differ = (name for (name, _, ours), (_, theirs) in pairs if _error(theirs, ours) > near)
    return next(differ, None)


def _error(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference by the expected values' range; infinite for other shapes and for NaN."""
    if got.shape != expected.shape:
        return float("inf")
    error = float(np.abs(got.astype(np.float64) - expected).max() / max(np.ptp(expected), 1e-30))
    return error if np.isfinite(error) else float("inf")
