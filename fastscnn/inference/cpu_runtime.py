"""The whole folded network on the CPU: frames in; labels, scores, logits, pictures out.

A thin face of the C++ object (csrc/cpu/network.h): checks tensors, allocates results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastscnn.inference.fold import Conv
from fastscnn.inference.ranges import Ranges, check_ranges
from fastscnn.network.config import FastSCNNConfig
from fastscnn_kernels import extension
from fastscnn_kernels.cpu import pack as cpu_pack

Size = tuple[int, int]

#: A named operation with everything bound but the thread count.
Step = tuple[str, Callable[[int], None]]

#: Steps that do nothing where only labels of a frame at the working size are wanted.
IDLE = ("resize_frame", "overlay", "softmax_head", "resize")


class CpuRuntime:
    """Runs `fold(model)` on the CPU in float32, or, with `ranges` (`fastscnn.quantize.calibrate`),
    with its trunk in int8.

    A frame is uint8 RGB N x H x W x 3, or normalised float N x 3 x H x W; either goes wherever one
    is asked for. Every call returns new tensors, and the result does not depend on `threads`
    (default: torch's setting). Weights are packed once; the maps between the operations lie in one
    arena per size, which is kept for the last `max_sizes` sizes. A runtime may be shared by Python
    threads, which then take turns; several runtimes run in parallel.
    """

    def __init__(
        self,
        folded: Mapping[str, Conv],
        config: FastSCNNConfig,
        num_classes: int,
        *,
        isa: str = "",
        max_sizes: int = 2,
        ranges: Ranges | None = None,
    ) -> None:
        self.config = config
        self.num_classes = num_classes
        self.weight_bytes = sum(t.nbytes for conv in folded.values() for t in conv)
        if ranges:
            check_ranges(ranges, config)
        packed = {  # alive until the C++ object has read them
            name: [cpu_pack.dense("CpuRuntime", name, t.float(), t.dim()) for t in conv]
            for name, conv in folded.items()
        }
        addresses = {
            name: (w.data_ptr(), b.data_ptr(), list(w.shape)) for name, (w, b) in packed.items()
        }
        self._network = extension.load().Network(
            config.to_dict(), num_classes, addresses, dict(ranges or {}), isa, max_sizes
        )

    def labels(
        self,
        frame: Tensor,
        out_size: Size | None = None,
        threads: int | None = None,
        *,
        size: Size | None = None,
    ) -> Tensor:
        """uint8 labels N x H x W at `out_size` (default: the frame's)."""
        return self.outputs(frame, ("labels",), out_size, threads, size=size)["labels"]

    def logits(self, x: Tensor, threads: int | None = None) -> Tensor:
        """float32 logits N x num_classes x H x W at the size of `x`."""
        return self.outputs(x, ("logits",), None, threads)["logits"]

    def probabilities(
        self, x: Tensor, out_size: Size | None = None, threads: int | None = None
    ) -> Tensor:
        """float32 softmax probabilities N x num_classes x H x W."""
        return self.outputs(x, ("probabilities",), out_size, threads)["probabilities"]

    def scores(self, x: Tensor, threads: int | None = None) -> Tensor:
        """float32 class scores at 1/8 of the size of `x` or of a uint8 frame, channels_last."""
        return self.outputs(x, ("scores",), None, threads)["scores"]

    def outputs(
        self,
        x: Tensor,
        names: Sequence[str],
        out_size: Size | None = None,
        threads: int | None = None,
        *,
        size: Size | None = None,
        colors: Sequence[Sequence[int]] = (),
        opacity: float = 0.5,
    ) -> dict[str, Tensor]:
        """Any of "labels", "confidence" (the float32 probability of each pixel's label),
        "probabilities", "logits", "color" and "overlay" (uint8 N x H x W x 3: the labels in the
        classes' `colors`, alone or over the frame), all at `out_size` (default: that of `x`), and
        "scores", from one pass.

        `size` is what the network sees; a uint8 frame is resized to it (default: as it is).
        """
        threads = cpu_pack.check_threads("CpuRuntime", threads)
        frame, source = _frame(x)
        n, *own = frame[2:5]
        inside, out = size or (own[0], own[1]), out_size or (own[0], own[1])
        found = {name: self._empty(name, n, inside, out) for name in names}
        to = {name: t.data_ptr() for name, t in found.items()}
        if colors:
            cpu_pack.check_same("CpuRuntime", "colors", len(colors), self.num_classes)
            palette = torch.tensor(colors, dtype=torch.uint8)
            to["colors"] = palette.data_ptr()
        self._network.run(frame, inside, out, to, opacity, threads)
        del source  # alive until here
        if "scores" in found:
            found["scores"] = found["scores"].permute(0, 3, 1, 2)
        return found

    def steps(self, x: Tensor) -> list[Step]:
        """The operations that `labels(x)` runs, by name and in order, for looking at single ones;
        nothing else may run meanwhile."""
        frame, source = _frame(x)
        n, h, w = frame[2:5]
        labels = self._empty("labels", n, (h, w), (h, w))

        def step(i: int) -> Callable[[int], None]:
            def run(threads: int, _alive: Tensor = source) -> None:
                to = {"labels": labels.data_ptr()}
                self._network.run_step(i, frame, (h, w), (h, w), to, threads)

            return run

        names = self._network.steps(frame, (h, w), (h, w))
        return [(name, step(i)) for i, name in enumerate(names) if name not in IDLE]

    def workspace_bytes(self) -> int:
        """Memory held besides the weights: the arenas of the sizes seen last."""
        held: int = self._network.bytes
        return held

    def _empty(self, name: str, n: int, inside: Size, out: Size) -> Tensor:
        if name in ("labels", "color", "overlay"):
            colors = () if name == "labels" else (3,)
            return torch.empty((n, *out, *colors), dtype=torch.uint8)
        if name == "confidence":
            return torch.empty((n, *out))
        if name in ("probabilities", "logits"):
            return torch.empty((n, self.num_classes, *out))
        if name == "scores":
            return torch.empty((n, *self._network.scores_size(inside), self.num_classes))
        raise ValueError(f"no output {name!r}: expected labels, confidence, probabilities, ...")


def _frame(x: Tensor) -> tuple[tuple[Any, ...], Tensor]:
    """What `_C.Network` takes as frames, and the tensor that it points to."""
    op = "CpuRuntime"
    if not isinstance(x, Tensor) or x.dtype != torch.uint8:
        x = cpu_pack.nhwc(op, "frame", x, 3)
        n, _, h, w = x.shape
        return (x.data_ptr(), False, n, h, w, 0, False), x
    if x.dim() != 4 or x.shape[3] != 3 or 0 in x.shape:
        raise ValueError(f"{op}: frame has shape {tuple(x.shape)}, expected uint8 N x H x W x 3")
    x = cpu_pack.dense_bytes(op, "frame", x, tuple(x.shape))
    n, h, w, _ = x.shape
    return (x.data_ptr(), True, n, h, w, 3 * w, False), x
