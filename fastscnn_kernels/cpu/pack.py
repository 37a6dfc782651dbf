"""Checks, memory layouts and weight packing of the C++ operations on CPU tensors."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastscnn_kernels import extension, reference

Bounds = tuple[float, float]
Size = tuple[int, int]

#: Lowest and highest value behind a convolution.
ACTIVATIONS: dict[str, Bounds] = {
    "none": (-math.inf, math.inf),
    "relu": (0.0, math.inf),
    "relu6": (0.0, 6.0),
}


_workspaces = threading.local()


def workspace() -> Any:
    """Scratch memory and helper threads of the calling Python thread, kept between calls."""
    if not hasattr(_workspaces, "one"):
        _workspaces.one = extension.load().Workspace()
    return _workspaces.one


def bounds(op: str, argument: str, activation: str) -> Bounds:
    """Bounds of an activation by name."""
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"{op}: {argument}={activation!r}, expected one of {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[activation]


def dense(op: str, name: str, x: Tensor, dims: int = 4) -> Tensor:
    """`x` as a contiguous float32 CPU tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} is a {type(x).__name__}, expected a torch.Tensor")
    if x.device.type != "cpu":
        raise ValueError(f"{op}: {name} is on {x.device}, expected a CPU tensor; use {name}.cpu()")
    if x.dtype != torch.float32:
        raise TypeError(f"{op}: {name} is {x.dtype}, expected torch.float32; use {name}.float()")
    if x.dim() != dims or 0 in x.shape:
        raise ValueError(
            f"{op}: {name} has shape {tuple(x.shape)}, expected {dims} non-empty dimensions"
        )
    return x.detach().contiguous()


def dense_bytes(op: str, name: str, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`x` as a contiguous uint8 CPU tensor of that shape."""
    if not isinstance(x, Tensor) or x.dtype != torch.uint8:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{op}: {name} is {got}, expected a torch.Tensor of torch.uint8")
    if x.device.type != "cpu":
        raise ValueError(f"{op}: {name} is on {x.device}, expected a CPU tensor; use {name}.cpu()")
    if tuple(x.shape) != shape:
        raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}, expected {shape}")
    return x.contiguous()


def nhwc(op: str, name: str, x: Tensor, channels: int | None = None) -> Tensor:
    """`x` as a dense channels_last float32 CPU tensor; the same memory where it is one already."""
    if isinstance(x, Tensor) and x.dim() == 4:
        # permute().contiguous() instead of memory_format: strides of axes of size 1 matter too
        x = x.permute(0, 2, 3, 1)
    x = dense(op, name, x).permute(0, 3, 1, 2)
    if channels is not None and x.shape[1] != channels:
        raise ValueError(f"{op}: {name} has {x.shape[1]} channels, its weight expects {channels}")
    return x


def empty_nhwc(n: int, channels: int, h: int, w: int) -> Tensor:
    """Uninitialised N x C x H x W float32 tensor in channels_last memory."""
    return torch.empty((n, h, w, channels), dtype=torch.float32).permute(0, 3, 1, 2)


def matrix(op: str, name: str, weight: Tensor, bias: Tensor, isa: str, kernel: int = 1) -> Any:
    """Packs a dense convolution: weight (out, in, kernel, kernel) and bias (out)."""
    weight, bias = dense(op, f"{name}weight", weight), dense(op, f"{name}bias", bias, 1)
    out, inputs, *k = weight.shape
    if k != [kernel, kernel]:
        raise ValueError(
            f"{op}: {name}weight has a kernel of {k[0]}x{k[1]}, expected {kernel}x{kernel}"
        )
    _check_bias(op, name, bias, out)
    return extension.load().Matrix(
        weight.data_ptr(), bias.data_ptr(), out, inputs, kernel * kernel, isa
    )


def taps(op: str, name: str, weight: Tensor, bias: Tensor, isa: str) -> Any:
    """Packs a 3x3 depthwise convolution: weight (channels, 1, 3, 3) and bias (channels)."""
    weight, bias = dense(op, f"{name}weight", weight), dense(op, f"{name}bias", bias, 1)
    if tuple(weight.shape[1:]) != (1, 3, 3):
        raise ValueError(
            f"{op}: {name}weight has shape {tuple(weight.shape)}, expected (channels, 1, 3, 3)"
        )
    _check_bias(op, name, bias, weight.shape[0])
    return extension.load().Taps(weight.data_ptr(), bias.data_ptr(), weight.shape[0], isa)


def _check_bias(op: str, name: str, bias: Tensor, out: int) -> None:
    if bias.shape[0] != out:
        raise ValueError(f"{op}: {name}bias has {bias.shape[0]} values, expected {out}")


class Pyramid:
    """Packed weights of a pyramid pooling module."""

    def __init__(
        self,
        op: str,
        branch_weights: Sequence[Tensor],
        branch_biases: Sequence[Tensor],
        join_weight: Tensor,
        join_bias: Tensor,
        order: Sequence[int],
        channels: int,
        isa: str,
    ) -> None:
        self.bins = sorted(b for b in order if b)
        if order.count(0) != 1 or not 1 <= len(self.bins) <= 4:
            raise ValueError(f"{op}: order={tuple(order)}, expected 0 once and one to four bins")
        for name, got in (("branch_weights", branch_weights), ("branch_biases", branch_biases)):
            check_same(op, f"number of {name}", len(got), len(self.bins))
        self.branches = []
        widths = {0: channels}
        for b, weight, bias in zip(self.bins, branch_weights, branch_biases, strict=True):
            check_same(op, f"inputs of bin {b}'s weight", weight.shape[1], channels)
            self.branches.append(matrix(op, f"bin {b}'s ", weight, bias, isa))
            widths[b] = weight.shape[0]
        check_same(op, "join_weight's inputs", join_weight.shape[1], sum(widths.values()))
        first = {b: sum(widths[o] for o in order[: order.index(b)]) for b in order}
        self.kernel = join_weight.shape[-1]
        self.slices: list[Any] = []
        self.offsets: list[int] = []
        if self.kernel == 1:
            part = {b: join_weight[:, first[b] : first[b] + widths[b]] for b in order}
            none = torch.zeros_like(join_bias)
            self.join = matrix(op, "join_", part[0], join_bias, isa)
            self.slices = [matrix(op, "join_", part[b], none, isa) for b in self.bins]
        else:
            self.join = matrix(op, "join_", join_weight, join_bias, isa, kernel=3)
            self.offsets = [first[b] for b in (*self.bins, 0)]

    def arguments(self, h: int, w: int, align_corners: bool) -> tuple[Any, ...]:
        """What `_C.pyramid_pool` takes between the input and the output, for an h x w map."""
        axis = extension.load().Axis
        rows = [axis(b, h, align_corners) for b in self.bins]
        cols = [axis(b, w, align_corners) for b in self.bins]
        return self.branches, rows, cols, self.kernel, self.join, self.slices, self.offsets


def stem_size(h: int, w: int, padding: int | str) -> tuple[Size, Size]:
    """((rows above, columns before), output size) of the 3x3 stride-2 stem."""
    left, right, top, bottom = reference.stem_padding(h, w, padding)
    return (top, left), ((h + top + bottom - 3) // 2 + 1, (w + left + right - 3) // 2 + 1)


def stem(
    op: str,
    frame: Tensor,
    weight: Any,
    mean: Sequence[float],
    std: Sequence[float],
    padding: int | str,
    activation: str,
) -> tuple[Any, Tensor, Size]:
    """(Stem, the tensor it points to, output size) for uint8 N x H x W x 3 or N x 3 x H x W."""
    if padding not in (0, 1, "same"):
        raise ValueError(f'{op}: padding={padding!r}, expected 0, 1 or "same"')
    is_frame = isinstance(frame, Tensor) and frame.dtype == torch.uint8
    if is_frame:
        if frame.device.type != "cpu":
            raise ValueError(f"{op}: frame is on {frame.device}, expected a CPU tensor")
        if frame.dim() != 4 or frame.shape[3] != 3 or 0 in frame.shape:
            raise ValueError(
                f"{op}: frame has shape {tuple(frame.shape)}, expected uint8 N x H x W x 3"
            )
        source = frame.contiguous()
        n, h, w, _ = source.shape
    else:
        source = nhwc(op, "frame", frame, 3)
        n, _, h, w = source.shape
    if min(h, w) < 3:
        raise ValueError(f"{op}: frame is {h}x{w}, expected at least 3x3")
    (top, left), size = stem_size(h, w, padding)
    scale = [1 / (255 * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    params = extension.load().Stem(
        *(source.data_ptr(), is_frame, scale, shift, n, h, w, top, left),
        *(*size, weight, bounds(op, "activation", activation)),
    )
    return params, source, size


def strided(size: int, stride: int) -> int:
    """Output size of a 3x3 convolution with padding = dilation."""
    return (size - 1) // stride + 1


def check_stride(op: str, stride: int, dilation: int = 1) -> None:
    """What the depthwise kernels can do."""
    if stride not in (1, 2):
        raise ValueError(f"{op}: stride={stride}, expected 1 or 2")
    if dilation < 1:
        raise ValueError(f"{op}: dilation={dilation}, expected 1 or more")


def check_same(op: str, what: str, got: int, expected: int) -> None:
    """Channel counts of neighbouring weights."""
    if got != expected:
        raise ValueError(f"{op}: {what}: got {got}, expected {expected}")


def check_threads(op: str, threads: int | None) -> int:
    """The thread count to use; None is torch's setting."""
    if threads is None:
        return torch.get_num_threads()
    if threads < 1:
        raise ValueError(
            f"{op}: threads={threads}, expected 1 or more, or None for torch's setting"
        )
    return threads
