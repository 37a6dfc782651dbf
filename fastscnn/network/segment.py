"""Frames in, labels out: what a user calls, on any model that gives class scores."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fastscnn.network.config import FastSCNNConfig
from fastscnn_kernels.cpu import operations as cpu

if TYPE_CHECKING:
    from fastscnn.checkpoints.card import Card

MIN_SIZE = 32
MAX_SIZE = 32768
Size = tuple[int, int]


class Segmenter:
    """Adds `segment`, `preprocess` and `probabilities` to a module with `scores(x)`."""

    config: FastSCNNConfig
    num_classes: int
    #: What is known about the weights; set by `fastscnn.load`.
    card: Card | None = None

    def segment(
        self,
        frame: Any,
        *,
        size: Size | None = None,
        channels: str = "rgb",
        threads: int | None = None,
    ) -> Any:
        """Labels of a uint8 frame: H x W x 3 to uint8 H x W, or N x H x W x 3 to N x H x W.

        `frame` is a numpy array, a tensor on any device, or anything with `__dlpack__`; the labels
        come back as the same kind, at the frame's size. A PIL image or the path of an image file
        gives a numpy array, and a list of frames of any kinds and sizes gives a list.

        `size=(height, width)` is the network's input size (the frame is resized to it bilinearly);
        None means the working size that the checkpoint's card names, scaled to the frame's aspect,
        or else the frame's own size.
        `channels="bgr"` takes OpenCV's order. `threads` is the number of CPU threads; None means
        torch's setting.

        Raises TypeError or ValueError naming what was expected for anything else.
        """
        self._check_call(threads)
        if isinstance(frame, (list, tuple)):
            if any(isinstance(one, (list, tuple)) for one in frame):
                raise TypeError("frame is a list of lists: expected a list of frames")
            how: Any = {"size": size, "channels": channels, "threads": threads}
            return [self.segment(one, **how) for one in frame]
        frames, restore = to_frames(frame, channels)
        out = (frames.shape[1], frames.shape[2])
        with torch.no_grad():
            frames = frames.to(self._device())
            return restore(self._labels(frames, self.input_size(out, size), out, threads))

    def preprocess(self, frame: Any, *, size: Size | None = None, channels: str = "rgb") -> Tensor:
        """The normalised float N x 3 x H x W that `model(x)` takes, on the model's device.

        Same `frame`, `size` and `channels` as `segment`.
        """
        frames, _ = to_frames(frame, channels)
        out = (frames.shape[1], frames.shape[2])
        frames = resize_frames(frames.to(self._device()), self.input_size(out, size))
        return self._normalize(frames)

    def probabilities(self, x: Tensor) -> Tensor:
        """Softmax class probabilities N x C x H x W of a normalised N x 3 x H x W ("prob")."""
        with torch.no_grad():
            return torch.softmax(self(x).float(), dim=1)  # type: ignore[operator]

    def _check_call(self, threads: int | None) -> None:
        if self.training:  # type: ignore[attr-defined]
            raise RuntimeError(
                "segment needs eval mode: call model.eval() first (in training mode batch norm "
                "would use, and change, this frame's statistics)"
            )
        if threads is not None and (not isinstance(threads, int) or not 1 <= threads <= 1024):
            raise ValueError(f"threads={threads}: expected 1 to 1024, or None for torch's setting")

    def input_size(self, frame: Size, size: Size | None = None) -> Size:
        """(height, width) that the network sees for a frame of that size; see `segment`."""
        if size is None:
            size = frame
            if self.card is not None and self.card.size is not None:
                size = working_size(frame, min(self.card.size))
                if max(size) > MAX_SIZE:
                    raise ValueError(
                        f"frame {frame[0]}x{frame[1]} would be scaled to {size[0]}x{size[1]}, the "
                        f"working size of these weights: give a size with sides up to {MAX_SIZE}"
                    )
        if (
            not isinstance(size, (tuple, list))
            or len(size) != 2
            or not all(isinstance(s, int) for s in size)
        ):
            raise TypeError(f"size={size!r}: expected (height, width), two whole numbers")
        height, width = size
        if not (MIN_SIZE <= height <= MAX_SIZE and MIN_SIZE <= width <= MAX_SIZE):
            h, w = (min(max(s, MIN_SIZE), MAX_SIZE) for s in size)
            raise ValueError(
                f"size {height}x{width}: expected height and width of at least {MIN_SIZE} and at "
                f"most {MAX_SIZE}; use ({h}, {w})"
            )
        return height, width

    def _normalize(self, frames: Tensor) -> Tensor:
        """uint8 N x H x W x 3 to normalised N x 3 x H x W in the model's dtype."""
        mean, std = (
            torch.tensor(v, dtype=torch.float32, device=frames.device)
            for v in (self.config.mean, self.config.std)
        )
        x = (frames.float() / 255 - mean) / std
        return x.permute(0, 3, 1, 2).to(self._dtype())

    def _labels(self, frames: Tensor, size: Size, out: Size, threads: int | None = None) -> Tensor:
        """uint8 N x H x W x 3 on the model's device, resized to `size`, to uint8 labels N x out."""
        with torch_threads(threads):
            frames = resize_frames(frames, size)
            scores: Tensor = self.scores(self._normalize(frames))  # type: ignore[attr-defined]
            logits = F.interpolate(
                scores.float(), out, mode="bilinear", align_corners=self.config.head_align_corners
            )
            return logits.max(dim=1)[1].to(torch.uint8)

    def _device(self) -> torch.device:
        return self._first().device

    def _dtype(self) -> torch.dtype:
        return self._first().dtype

    def _first(self) -> Tensor:
        return next(self.parameters())  # type: ignore[attr-defined]


def working_size(frame: Size, side: int) -> Size:
    """That frame's size scaled to a shorter side; exact until it is rounded, ties to even."""
    shorter = min(frame)
    return round(frame[0] * side / shorter), round(frame[1] * side / shorter)


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Runs the body with that many torch threads; None leaves the setting alone."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if threads is not None:
            torch.set_num_threads(before)


def resize_frames(frames: Tensor, size: Size) -> Tensor:
    """Bilinear resize of uint8 N x H x W x 3, rounded to uint8; unchanged if it has that size.

    On the CPU as `fastscnn_kernels.reference.resize_frame` says; a GPU may differ by one level.
    """
    if (frames.shape[1], frames.shape[2]) == size:
        return frames
    if frames.device.type == "cpu":
        return cpu.resize_frame(frames, size)
    x = frames.permute(0, 3, 1, 2).float()
    y = F.interpolate(x, size, mode="bilinear", align_corners=False)
    return y.round().byte().permute(0, 2, 3, 1).contiguous()


def to_frames(frame: Any, channels: str = "rgb") -> tuple[Tensor, Callable[[Tensor], Any]]:
    """A frame or batch as an RGB tensor N x H x W x 3, and how its labels become the same kind."""
    if channels not in ("rgb", "bgr"):
        raise ValueError(f'channels={channels!r}: expected "rgb" or "bgr"')
    if isinstance(frame, (str, Path, Image.Image)):
        if channels == "bgr":
            raise ValueError('channels="bgr" is of arrays: files and PIL images say so themselves')
        frame = _read(frame)
    tensor, back = _as_tensor(frame)
    if tensor.dtype != torch.uint8:
        raise TypeError(
            f"frame has dtype {str(tensor.dtype).removeprefix('torch.')}: expected uint8 values "
            "0..255; for normalised floats call model(x)"
        )
    if tensor.dim() not in (3, 4) or tensor.shape[-1] != 3:
        raise ValueError(
            f"frame has shape {tuple(tensor.shape)}: expected H x W x 3 or N x H x W x 3"
            + _shape_hint(tuple(tensor.shape))
        )
    if tensor.numel() == 0:
        raise ValueError(f"frame has shape {tuple(tensor.shape)}: expected at least one pixel")
    single = tensor.dim() == 3
    frames = tensor[None] if single else tensor
    device = tensor.device
    if channels == "bgr" and device.type == "cpu":  # a tenth of the time of torch's flip
        frames = cpu.resize_frame(frames, (frames.shape[1], frames.shape[2]), bgr=True, threads=1)
    elif channels == "bgr":
        frames = frames.flip(-1)

    def restore(labels: Tensor) -> Any:
        return back((labels[0] if single else labels).to(device))

    return frames.contiguous(), restore


def _read(picture: str | Path | Image.Image) -> np.ndarray:
    from fastscnn.media.frames import read_image, to_rgb

    if isinstance(picture, Image.Image):
        return np.asarray(to_rgb(picture))
    return read_image(Path(picture))


def _as_tensor(frame: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    if isinstance(frame, Tensor):
        return frame.detach(), lambda labels: labels
    if isinstance(frame, np.ndarray):
        if frame.dtype != np.uint8:
            raise TypeError(
                f"frame has dtype {frame.dtype}: expected uint8 values 0..255; "
                "for normalised floats call model(x)"
            )
        array = np.ascontiguousarray(frame)
        if not array.flags.writeable:  # torch has no read-only tensors
            array = array.copy()
        return torch.from_numpy(array), lambda labels: labels.numpy()
    if hasattr(frame, "__dlpack__"):
        library = importlib.import_module(type(frame).__module__.partition(".")[0])
        back = getattr(library, "from_dlpack", None)
        return torch.from_dlpack(frame), back or (lambda labels: labels)
    raise TypeError(
        f"frame is {type(frame).__name__}: expected a numpy array, a torch tensor, an object with "
        "__dlpack__, a PIL image or the path of an image"
    )


def _shape_hint(shape: tuple[int, ...]) -> str:
    if len(shape) >= 3 and shape[-3] == 3:
        return "; this looks like 3 x H x W: move the channels last (permute(1, 2, 0))"
    if len(shape) >= 3 and shape[-1] == 4:
        return "; drop the alpha channel: frame[..., :3]"
    if len(shape) == 2 or shape[-1:] == (1,):
        return "; repeat a grayscale image three times along the last axis"
    return ""
