"""Argument checks of the operations: every error names the operation, the argument, the fix."""

from __future__ import annotations

import torch
from torch import Tensor

ACTIVATIONS = ("none", "relu", "relu6")
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_map(op: str, name: str, x: Tensor) -> None:
    """`x` is a non-empty float N x C x H x W."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} is a {type(x).__name__}, expected a torch.Tensor")
    if x.device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"{op}: {name} is on {x.device}, expected the CPU or an NVIDIA GPU")
    if x.dtype not in FLOATS or (x.dtype == torch.float64 and x.device.type == "cuda"):
        raise TypeError(f"{op}: {name} is {x.dtype}, expected float32, float16 or bfloat16")
    if x.dim() != 4 or 0 in x.shape:
        raise ValueError(
            f"{op}: {name} has shape {tuple(x.shape)}, expected non-empty N x C x H x W"
        )


def check_tensor(
    op: str, name: str, t: Tensor, shape: tuple[int, ...], like: Tensor | None = None
) -> None:
    """`t` has exactly `shape` and the dtype and device of `like`."""
    if tuple(t.shape) != shape:
        raise ValueError(f"{op}: {name} has shape {tuple(t.shape)}, expected {shape}")
    if like is None:
        return
    if t.dtype != like.dtype:
        raise TypeError(f"{op}: {name} is {t.dtype}, expected {like.dtype} as the other tensors")
    if t.device != like.device:
        raise ValueError(f"{op}: {name} is on {t.device}, expected {like.device} as the others")


def check_conv(
    op: str, name: str, weight: Tensor, bias: Tensor, shape: tuple[int, ...], like: Tensor
) -> None:
    """A convolution's weight and bias."""
    check_tensor(op, f"{name}weight", weight, shape, like)
    check_tensor(op, f"{name}bias", bias, (shape[0],), like)


def check_activation(op: str, activation: str, name: str = "activation") -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: {name}={activation!r}, expected 'none', 'relu' or 'relu6'")


def check_step(op: str, stride: int, dilation: int) -> None:
    if stride not in (1, 2):
        raise ValueError(f"{op}: stride={stride}, expected 1 or 2")
    if dilation < 1:
        raise ValueError(f"{op}: dilation={dilation}, expected 1 or more")


def check_size(op: str, size: tuple[int, int], classes: int) -> None:
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"{op}: size={tuple(size)}, expected (height, width) of at least 1")
    if classes > 255:
        raise ValueError(f"{op}: scores has {classes} channels, expected at most 255 classes")


def check_labels(op: str, target: Tensor, scores: Tensor) -> None:
    """`target` is uint8 or int64 N x H x W on the device of `scores`, for as many images."""
    if not isinstance(target, Tensor):
        raise TypeError(f"{op}: target is a {type(target).__name__}, expected a torch.Tensor")
    if target.dtype not in (torch.uint8, torch.int64):
        raise TypeError(
            f"{op}: target is {target.dtype}, expected torch.uint8 or torch.int64; "
            "use target.long()"
        )
    if target.dim() != 3 or 0 in target.shape or target.shape[0] != scores.shape[0]:
        raise ValueError(
            f"{op}: target has shape {tuple(target.shape)}, expected N x H x W with "
            f"N = {scores.shape[0]} as scores"
        )
    if target.device != scores.device:
        raise ValueError(f"{op}: target is on {target.device}, expected {scores.device} as scores")


def check_frame(op: str, frame: Tensor, weight: Tensor, padding: int | str) -> None:
    """`frame` is uint8 N x H x W x 3 or float N x 3 x H x W, at least 3x3."""
    is_bytes = isinstance(frame, Tensor) and frame.dtype == torch.uint8
    if is_bytes:
        if frame.dim() != 4 or frame.shape[3] != 3 or 0 in frame.shape:
            raise ValueError(
                f"{op}: frame has shape {tuple(frame.shape)}, expected uint8 N x H x W x 3"
            )
    else:
        check_map(op, "frame", frame)
        if frame.shape[1] != 3:
            raise ValueError(
                f"{op}: frame has shape {tuple(frame.shape)}, expected float N x 3 x H x W"
            )
    check_map(op, "weight", weight)
    if frame.device != weight.device:
        raise ValueError(f"{op}: weight is on {weight.device}, expected {frame.device}")
    if padding not in (0, 1, "same"):
        raise ValueError(f'{op}: padding={padding!r}, expected 0, 1 or "same"')
    h, w = frame.shape[1:3] if is_bytes else frame.shape[2:4]
    if min(h, w) < 3:
        raise ValueError(f"{op}: frame is {h}x{w}, expected at least 3x3")
