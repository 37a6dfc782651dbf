"""Cases per operation: layers of the real network on small maps, and odd sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tolerance import assert_close
from torch import Tensor

from fastscnn_kernels import reference

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    """`make(dtype)` gives the arguments; `core` cases run in half precision by default."""

    op: str
    name: str
    make: Callable[[torch.dtype], Inputs]
    core: bool = False

    @property
    def id(self) -> str:
        return f"{self.op}-{self.name}"


def feature_map(n: int, c: int, h: int, w: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(n, h, w, c).to(dtype).permute(0, 3, 1, 2)


def conv(out: int, per_group: int, kernel: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A weight that keeps the variance, and a bias."""
    scale = (per_group * kernel * kernel) ** -0.5
    weight = torch.randn(out, per_group, kernel, kernel) * scale
    return weight.to(dtype), (torch.randn(out) / 4).to(dtype)


def stem(shape: tuple[int, ...], padding: int | str, dtype: torch.dtype, out: int = 32) -> Inputs:
    """uint8 frames by an N x H x W shape, normalised floats by N x 3 x H x W."""
    if len(shape) == 3:
        x = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8)
    else:
        x = torch.randn(shape)  # NCHW memory, float32: what `model(x)` gets
    return (x, *conv(out, 3, 3, dtype)), {**IMAGENET, "padding": padding}


def depthwise(shape: tuple[int, int, int, int], dtype: torch.dtype, **options: Any) -> Inputs:
    return (feature_map(*shape, dtype), *conv(shape[1], 1, 3, dtype)), options


def depthwise_of_slice(dtype: torch.dtype) -> Inputs:
    """A view into a larger tensor: every second channel and row."""
    x = feature_map(2, 64, 14, 9, dtype)[:, ::2, ::2]
    return (x, *conv(32, 1, 3, dtype)), {}


def pointwise(
    shape: tuple[int, int, int, int], out: int, dtype: torch.dtype, residual: bool = False, **o: Any
) -> Inputs:
    n, c, h, w = shape
    r = feature_map(n, out, h, w, dtype) if residual else None
    return (feature_map(*shape, dtype), *conv(out, c, 1, dtype)), {"residual": r, **o}


def separable(
    shape: tuple[int, int, int, int], out: int, dtype: torch.dtype, **options: Any
) -> Inputs:
    c = shape[1]
    weights = (*conv(c, 1, 3, dtype), *conv(out, c, 1, dtype))
    return (feature_map(*shape, dtype), *weights), options


def with_head(
    shape: tuple[int, int, int, int], out: int, classes: int, dtype: torch.dtype, **o: Any
) -> Inputs:
    args, options = separable(shape, out, dtype)
    return args, {**options, **o, "head": conv(classes, out, 1, dtype)}


def bottleneck(
    shape: tuple[int, int, int, int], out: int, dtype: torch.dtype, **options: Any
) -> Inputs:
    c, hidden = shape[1], 6 * shape[1]
    weights = (*conv(hidden, c, 1, dtype), *conv(hidden, 1, 3, dtype), *conv(out, hidden, 1, dtype))
    return (feature_map(*shape, dtype), *weights), options


def downsample(shape: tuple[int, int, int], padding: int | str, dtype: torch.dtype) -> Inputs:
    (frame, weight, bias), options = stem(shape, padding, dtype)
    first = (*conv(32, 1, 3, dtype), *conv(48, 32, 1, dtype))
    second = (*conv(48, 1, 3, dtype), *conv(64, 48, 1, dtype))
    return (frame, weight, bias, first, second), {**options, "mid_activation": "relu"}


def pyramid(
    shape: tuple[int, int, int, int], width: int, kernel: int, dtype: torch.dtype, **options: Any
) -> Inputs:
    c = shape[1]
    branches = [conv(width, c, 1, dtype) for _ in range(4)]
    weights = [list(t) for t in zip(*branches, strict=True)]
    join = conv(c, c + 4 * width, kernel, dtype)
    return (feature_map(*shape, dtype), *weights, *join), options


def fusion(
    high: tuple[int, int, int],
    low: tuple[int, int, int],
    dense: bool,
    dtype: torch.dtype,
    n: int = 1,
    **o: Any,
) -> Inputs:
    """`high` and `low` are C, H, W; the result has as many channels as `low`."""
    c, d = low[0], high[0]
    first = conv(c, c, 1, dtype) if dense else conv(c, 1, 3, dtype)
    maps = feature_map(n, *high, dtype), feature_map(n, *low, dtype)
    return (*maps, *first, *conv(c, c, 1, dtype), *conv(c, d, 1, dtype)), o


def head(
    shape: tuple[int, int, int, int], size: tuple[int, int], align: bool, dtype: torch.dtype
) -> Inputs:
    return (4 * feature_map(*shape, dtype), size), {"align_corners": align}


def case(op: str, name: str, make: Callable[..., Inputs], *args: Any, **kwargs: Any) -> Case:
    core = kwargs.pop("core", False)
    return Case(op, name, lambda dtype: partial(make, *args, dtype=dtype, **kwargs)(), core)


CASES = (
    case("stem_conv", "frame", stem, (1, 33, 65), 1, core=True),
    case("stem_conv", "no-padding", stem, (1, 34, 27), 0),
    case("stem_conv", "same-even", stem, (1, 16, 34), "same"),
    case("stem_conv", "same-odd-batch-3", stem, (3, 7, 13), "same"),
    case("stem_conv", "one-pixel", stem, (1, 3, 3), 0),
    case("stem_conv", "19-channels", stem, (1, 4, 3), 1, out=19),
    case("stem_conv", "thin-slice", stem, (1, 3, 2047), 0),  # Tramac: 1023 columns
    case("stem_conv", "float-nchw", stem, (2, 3, 17, 21), 1, core=True),
    case("depthwise_conv", "bottleneck-s2", depthwise, (1, 384, 6, 10), stride=2,
         activation="relu6", core=True),
    case("depthwise_conv", "19-channels", depthwise, (3, 19, 7, 13), activation="relu"),
    case("depthwise_conv", "one-pixel", depthwise, (1, 30, 1, 1)),
    case("depthwise_conv", "thin-slice-s2", depthwise, (1, 16, 3, 511), stride=2),
    case("depthwise_conv", "dilation-4", depthwise, (1, 96, 11, 9), dilation=4),
    case("depthwise_conv", "strided-slice", depthwise_of_slice),
    case("pointwise_conv", "expand", pointwise, (1, 64, 7, 13), 384, activation="relu", core=True),
    case("pointwise_conv", "project-residual", pointwise, (1, 768, 4, 9), 128, residual=True),
    case("pointwise_conv", "scores", pointwise, (2, 128, 5, 7), 19),
    case("pointwise_conv", "odd-channels", pointwise, (3, 30, 1, 5), 48, activation="relu6"),
    case("pointwise_conv", "one-pixel", pointwise, (1, 19, 1, 1), 1, residual=True,
         activation="relu"),
    case("dsconv", "ltd-1", separable, (1, 32, 15, 21), 48, stride=2, core=True),
    case("dsconv", "ltd-2-odd", separable, (1, 48, 33, 7), 64, stride=2, mid_activation="relu"),
    case("dsconv", "classifier", separable, (1, 128, 7, 10), 128),
    case("dsconv", "scores", with_head, (2, 24, 5, 6), 40, 19, core=True),
    case("dsconv", "odd-channels-batch-3", separable, (3, 19, 7, 13), 30, activation="relu6"),
    case("dsconv", "wide-dilated", separable, (1, 30, 1, 6), 200, dilation=2, activation="none"),
    case("inverted_residual", "residual", bottleneck, (1, 64, 5, 7), 64, residual=True, core=True),
    case("inverted_residual", "s2-relu6", bottleneck, (1, 64, 9, 7), 96, stride=2,
         activation="relu6"),
    case("inverted_residual", "one-pixel", bottleneck, (2, 8, 1, 1), 8, residual=True),
    case("learning_to_downsample", "frame", downsample, (1, 33, 49), 1, core=True),
    case("learning_to_downsample", "same", downsample, (1, 34, 20), "same"),
    case("pyramid_pool", "paper", pyramid, (1, 128, 4, 9), 32, 1, core=True),
    case("pyramid_pool", "mmseg-3x3", pyramid, (1, 48, 3, 5), 12, 3),
    case("pyramid_pool", "paddle-order", pyramid, (2, 30, 2, 7), 7, 3, order=(0, 6, 3, 2, 1),
         align_corners=True),
    case("pyramid_pool", "x-last-one-pixel", pyramid, (1, 19, 1, 1), 5, 1, order=(1, 2, 3, 6, 0)),
    case("feature_fusion", "paper", fusion, (64, 8, 8), (128, 2, 2), False, core=True),
    case("feature_fusion", "commuted", fusion, (16, 32, 36), (32, 8, 9), False, core=True),
    case("feature_fusion", "aligned-dilation-1", fusion, (30, 7, 13), (30, 2, 4), False,
         dilation=1, align_corners=True),
    case("feature_fusion", "dense", fusion, (19, 9, 8), (30, 3, 2), True, n=3, align_corners=True),
    case("argmax_head", "x8", head, (1, 19, 5, 9), (40, 72), False, core=True),
    case("argmax_head", "x8-aligned", head, (2, 11, 4, 7), (32, 56), True),
    case("argmax_head", "x4-run", head, (1, 3, 5, 8), (19, 31), False),
    case("argmax_head", "shrink", head, (1, 19, 9, 21), (4, 10), False),
    case("argmax_head", "one-class-one-pixel", head, (1, 1, 1, 1), (1, 9), True),
    case("argmax_head", "130-classes", head, (1, 130, 1, 1), (2, 8), False),
    case("softmax_head", "x8", head, (1, 5, 3, 6), (24, 47), False, core=True),
    case("softmax_head", "aligned-odd", head, (2, 7, 4, 7), (13, 20), True),
)  # fmt: skip


def to_double(value: Any) -> Any:
    """The same arguments in float64; uint8 frames stay bytes."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
        return [to_double(v) for v in value]
    return value


def check(case: Case, ours: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """`ours` against the twin in float64 and in the arguments' own dtype."""
    twin = getattr(reference, case.op)
    exact = twin(*(to_double(a) for a in args), **{k: to_double(v) for k, v in kwargs.items()})
    peer = twin(*args, **kwargs)
    if case.op == "argmax_head":
        check_labels(ours[0], args, kwargs)
        assert_close(ours[1], exact[1], peer[1])
    else:
        assert_close(ours, exact, peer.to(ours.dtype))


def check_labels(labels: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Equal to the float64 labels wherever the two best classes differ by 1e-4 of the range."""
    scores, size = args
    logits = reference.resize(scores.double(), size, kwargs["align_corners"])
    chosen = logits.gather(1, labels.cpu().long().unsqueeze(1)).squeeze(1)
    behind = (logits.amax(1) - chosen) / logits.abs().max()
    at = tuple(int(i) for i in torch.unravel_index(behind.argmax(), behind.shape))
    assert behind[at] <= 1e-4, f"label {labels[at]} at {at} is {behind[at]:.2e} behind the best"


def on_gpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.cuda()
    if isinstance(value, dict):
        return {n: on_gpu(v) for n, v in value.items()}
    if isinstance(value, list | tuple) and value and isinstance(value[0], torch.Tensor):
        return type(value)(on_gpu(v) for v in value)
    return value


def tensors(value: Any) -> tuple[torch.Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)
