"""The operations on CUDA tensors in CUDA C++, with the names and meaning of `reference.py`.

They take float16 (compute capability 7.5 and newer) and bfloat16 (8.0 and newer), sum in float32,
run on the current stream of the tensors' device and return channels_last maps. Weights are packed
in every call; who runs a network packs them once (`bind`). Every error names the operation, the
argument and what was expected. What does not fit these kernels raises `Refused`; the registered
operations (`fastscnn_kernels.dsconv` and so on) run it otherwise. These functions are called
through them (`composition`), so that an operation has one name, schema and fake, whatever runs it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastscnn_kernels import checks, extension
from fastscnn_kernels.cuda.pack import (
    DOWNSAMPLE_CHANNELS,
    TYPES,
    PackedDsconv,
    PackedFeatureFusion,
    PackedInvertedResidual,
    PackedLearningToDownsample,
    PackedPyramidPool,
    Refused,
    check_type,
    pack_dsconv,
    pack_feature_fusion,
    pack_inverted_residual,
    pack_learning_to_downsample,
    pack_pyramid_pool,
)
from fastscnn_kernels.reference import stem_padding
from fastscnn_kernels.shapes import convolved, nhwc, stem_size

BOUNDS = {
    "none": (float("-inf"), float("inf")),
    "relu": (0.0, float("inf")),
    "relu6": (0.0, 6.0),
}
OPERATIONS = (
    *("argmax_head", "dsconv", "feature_fusion", "inverted_residual", "learning_to_downsample"),
    "pyramid_pool",
)


def built() -> bool:
    """Whether the extension holds the CUDA kernels; needs no GPU."""
    return bool(extension.device_info()["cuda_built"])


def missing(device: torch.device | None = None) -> str:
    """Why the kernels cannot run (on `device`, if given) and the fix; "" where they can."""
    try:
        if not built():
            return (
                "the extension was built without CUDA; install the CUDA toolkit and run "
                f"FASTSCNN_CUDA=1 {extension.BUILD_COMMAND}"
            )
    except ImportError as error:
        return str(error)
    if device is None:
        return ""
    with torch.cuda.device(device):
        return str(extension.load().cuda_missing_code())


def bind(op: str, *weights: Any, **options: Any) -> Callable[..., Tensor]:
    """The operation with packed weights: a function of the map, for any number of calls.

    `inverted_residual` also takes `counters`, see there.
    """
    if op == "dsconv":
        head = options.pop("head", None)
        return partial(run_dsconv, packed=pack_dsconv(*weights, head=head), **options)
    if op == "inverted_residual":
        return partial(run_inverted_residual, packed=pack_inverted_residual(*weights), **options)
    if op == "learning_to_downsample":
        packed = pack_learning_to_downsample(*weights)
        return partial(run_learning_to_downsample, packed=packed, **options)
    if op == "pyramid_pool":
        packed_pool = pack_pyramid_pool(*weights, order=options.pop("order"))
        return partial(run_pyramid_pool, packed=packed_pool, **options)
    if op == "feature_fusion":
        return partial(run_feature_fusion, packed=pack_feature_fusion(*weights), **options)
    raise ValueError(f"{op}: has no weights to pack")


#: Split reductions on any GPU: fewer than half its multiprocessors.
COUNTERS = 1024


def counters(device: torch.device) -> Tensor:
    """int32 zeros for `run_inverted_residual`, which leaves them zero: launches that follow one
    another on a stream may share them, launches that may overlap must not."""
    return torch.zeros(COUNTERS, dtype=torch.int32, device=device)


def argmax_head(
    scores: Tensor,
    size: tuple[int, int],
    *,
    align_corners: bool = False,
    confidence: bool = True,
) -> tuple[Tensor, Tensor]:
    """Bilinear to `size`; uint8 labels N x H x W and the top-1 probability (empty if not asked)."""
    op = "argmax_head"
    _check_map(op, "scores", scores)
    checks.check_size(op, size, scores.shape[1])
    scores = scores.contiguous()
    n, k, h, w = scores.shape
    labels = _empty((n, *size), scores, torch.uint8)
    top = _empty((n, *size) if confidence else (0,), scores, torch.float32)
    _launch(
        "cuda_argmax_head",
        scores,
        *(TYPES[scores.dtype], _address(scores), _address(labels)),
        *(_address(top) if confidence else 0, n, k, h, w, *size, align_corners),
    )
    return labels, top


def dsconv(
    x: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor,
    *,
    stride: int = 1,
    dilation: int = 1,
    mid_activation: str = "none",
    activation: str = "relu",
    head: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Depthwise 3x3, optional activation, pointwise 1x1, activation; with `head` (weight and bias
    of a 1x1 convolution) the class scores of the result, N x K x H x W contiguous."""
    check_type("dsconv", "x", x)
    packed = pack_dsconv(
        depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias, head=head
    )
    return run_dsconv(
        x, packed, stride=stride, dilation=dilation, mid_activation=mid_activation,
        activation=activation,
    )  # fmt: skip


def run_dsconv(
    x: Tensor,
    packed: PackedDsconv,
    *,
    stride: int = 1,
    dilation: int = 1,
    mid_activation: str = "none",
    activation: str = "relu",
) -> Tensor:
    op = "dsconv"
    _check_map(op, "x", x, packed.depthwise)
    c, o, k = packed.channels
    n, _, h, w = x.shape
    checks.check_tensor(op, "x", x, (n, c, h, w))
    checks.check_step(op, stride, dilation)
    checks.check_activation(op, mid_activation, "mid_activation")
    checks.check_activation(op, activation)
    x = nhwc(x)
    oh, ow = convolved(h, stride), convolved(w, stride)
    head = packed.head is not None
    y = _empty((n, k, oh, ow) if head else (n, oh, ow, o), x)
    weights = (packed.depthwise, packed.depthwise_bias, packed.pointwise, packed.pointwise_bias)
    k_stride = 0 if packed.head is None else packed.head.shape[1]
    _launch(
        "cuda_dsconv",
        x,
        *(TYPES[x.dtype], _address(x), *map(_address, weights)),
        *(_address(packed.head), _address(packed.head_bias), _address(y), (n, h, w)),
        *((c, o, k, packed.pointwise.shape[1], k_stride), (oh, ow), stride, dilation),
        *(BOUNDS[mid_activation], BOUNDS[activation]),
    )
    return y if head else y.permute(0, 3, 1, 2)


def inverted_residual(
    x: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    project_weight: Tensor,
    project_bias: Tensor,
    *,
    stride: int = 1,
    activation: str = "relu",
    residual: bool = False,
) -> Tensor:
    """Expand 1x1, depthwise 3x3, project 1x1 without activation, optionally plus x."""
    check_type("inverted_residual", "x", x)
    packed = pack_inverted_residual(
        expand_weight, expand_bias, depthwise_weight, depthwise_bias, project_weight, project_bias
    )
    return run_inverted_residual(x, packed, stride=stride, activation=activation, residual=residual)


def run_inverted_residual(
    x: Tensor,
    packed: PackedInvertedResidual,
    *,
    stride: int = 1,
    activation: str = "relu",
    residual: bool = False,
    counters: Tensor | None = None,
) -> Tensor:
    """`counters`: zeros from `counters`, fresh ones by default (a launch of its own)."""
    op = "inverted_residual"
    _check_map(op, "x", x, packed.expand)
    c, o = packed.channels
    n, _, h, w = x.shape
    checks.check_tensor(op, "x", x, (n, c, h, w))
    checks.check_step(op, stride, 1)
    checks.check_activation(op, activation)
    if residual and (stride != 1 or c != o):
        raise ValueError(
            f"{op}: residual=True needs stride 1 and as many outputs as inputs, got stride "
            f"{stride} and {c} -> {o} channels"
        )
    x = nhwc(x)
    out = convolved(h, stride), convolved(w, stride)
    y = _empty((n, *out, o), x)
    channels = (c, o, packed.expand.shape[1])
    with _on_device(op, x):
        floats, tiles = _extension().cuda_inverted_residual_workspace(
            (n, h, w), channels, out, stride
        )
    sums = _empty((floats,), x, torch.float32)
    if counters is None:
        counters = torch.zeros(tiles, dtype=torch.int32, device=x.device)
    elif counters.numel() < tiles:
        raise ValueError(f"{op}: {counters.numel()} counters, expected at least {tiles}")
    weights = (
        *(packed.expand, packed.expand_bias, packed.depthwise, packed.depthwise_bias),
        *(packed.project, packed.project_bias),
    )
    _launch(
        "cuda_inverted_residual",
        x,
        *(TYPES[x.dtype], _address(x), *map(_address, weights), _address(y)),
        *(_address(sums), _address(counters), (n, h, w), channels, out, stride, residual),
        BOUNDS[activation],
    )
    return y.permute(0, 3, 1, 2)


def learning_to_downsample(
    frame: Tensor,
    stem_weight: Tensor,
    stem_bias: Tensor,
    dsconv1: Sequence[Tensor],
    dsconv2: Sequence[Tensor],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    padding: int | str = 1,
    mid_activation: str = "none",
) -> Tensor:
    """Stem and two stride-2 DSConvs; each of `dsconv1`, `dsconv2` is the four tensors of one.

    `frame` is uint8 N x H x W x 3, or normalised float32 N x 3 x H x W with any strides.
    """
    packed = pack_learning_to_downsample(stem_weight, stem_bias, dsconv1, dsconv2)
    return run_learning_to_downsample(
        frame, packed, mean=mean, std=std, padding=padding, mid_activation=mid_activation
    )


def run_learning_to_downsample(
    frame: Tensor,
    packed: PackedLearningToDownsample,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    padding: int | str = 1,
    mid_activation: str = "none",
) -> Tensor:
    op = "learning_to_downsample"
    stem = packed.tensors[0]
    checks.check_frame(op, frame, stem[None, None], padding)
    checks.check_activation(op, mid_activation, "mid_activation")
    is_frame = frame.dtype == torch.uint8
    frame = frame.contiguous() if is_frame else frame.float()
    n, h, w = frame.shape[:3] if is_frame else (frame.shape[0], *frame.shape[2:])
    left, _, top, _ = stem_padding(h, w, padding)
    size = stem_size(h, w, padding)
    sizes = [size]
    for _ in range(2):
        sizes.append((convolved(sizes[-1][0], 2), convolved(sizes[-1][1], 2)))
    y = _empty((n, *sizes[2], DOWNSAMPLE_CHANNELS[3]), stem)
    _launch(
        "cuda_learning_to_downsample",
        frame,
        *(TYPES[stem.dtype], _address(frame, 1 if is_frame else 4), is_frame),
        *(frame.stride(), [1 / (255 * s) for s in std]),
        [-m / s for m, s in zip(mean, std, strict=True)],
        *([_address(t) for t in packed.tensors], _address(y), (n, h, w), top, left),
        *([side for pair in sizes for side in pair], BOUNDS[mid_activation]),
    )
    return y.permute(0, 3, 1, 2)


def pyramid_pool(
    x: Tensor,
    branch_weights: Sequence[Tensor],
    branch_biases: Sequence[Tensor],
    join_weight: Tensor,
    join_bias: Tensor,
    *,
    order: Sequence[int] = (0, 1, 2, 3, 6),
    align_corners: bool = False,
) -> Tensor:
    """Adaptive average pools, 1x1 + ReLU each, bilinear back, concat in `order`, join, ReLU."""
    check_type("pyramid_pool", "x", x)
    packed = pack_pyramid_pool(branch_weights, branch_biases, join_weight, join_bias, order=order)
    return run_pyramid_pool(x, packed, align_corners=align_corners)


def run_pyramid_pool(
    x: Tensor, packed: PackedPyramidPool, *, align_corners: bool = False
) -> Tensor:
    op = "pyramid_pool"
    _check_map(op, "x", x, packed.tensors[0])
    c, _, o, _ = packed.channels
    n, _, h, w = x.shape
    checks.check_tensor(op, "x", x, (n, c, h, w))
    x = nhwc(x)
    y = _empty((n, h, w, o), x)
    sums = _empty((n, h, sum(packed.bins), c), x, torch.float32)
    _launch(
        "cuda_pyramid_pool",
        x,
        *(TYPES[x.dtype], _address(x), [_address(t) for t in packed.tensors], _address(y)),
        *(_address(sums), (n, h, w), packed.channels, packed.kernel, packed.bins, align_corners),
    )
    return y.permute(0, 3, 1, 2)


def feature_fusion(
    high: Tensor,
    low: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    low_weight: Tensor,
    low_bias: Tensor,
    high_weight: Tensor,
    high_bias: Tensor,
    *,
    dilation: int = 4,
    align_corners: bool = False,
) -> Tensor:
    """relu(low_1x1(relu(depthwise(bilinear(low)))) + high_1x1(high)); dense too."""
    check_type("feature_fusion", "high", high)
    packed = pack_feature_fusion(
        depthwise_weight, depthwise_bias, low_weight, low_bias, high_weight, high_bias
    )
    return run_feature_fusion(high, low, packed, dilation=dilation, align_corners=align_corners)


def run_feature_fusion(
    high: Tensor,
    low: Tensor,
    packed: PackedFeatureFusion,
    *,
    dilation: int = 4,
    align_corners: bool = False,
) -> Tensor:
    op = "feature_fusion"
    _check_map(op, "high", high, packed.low)
    _check_map(op, "low", low, packed.low)
    ch, cl, o, _ = packed.channels
    n, _, h, w = high.shape
    checks.check_tensor(op, "high", high, (n, ch, h, w))
    checks.check_tensor(op, "low", low, (n, cl, *low.shape[2:]))
    checks.check_step(op, 1, dilation)
    if packed.dense is not None:
        low = run_dsconv(low, packed.dense, activation="none")
    high, low = nhwc(high), nhwc(low)
    y = _empty((n, h, w, o), high)
    weights = packed.depthwise, packed.depthwise_bias, packed.low, packed.high, packed.bias
    _launch(
        "cuda_feature_fusion",
        high,
        *(TYPES[high.dtype], _address(high), _address(low), [_address(t) for t in weights]),
        *(_address(y), (n, h, w, *low.shape[2:]), packed.channels),
        *(dilation if packed.dense is None else 0, align_corners),
    )
    return y.permute(0, 3, 1, 2)


def _launch(name: str, x: Tensor, *arguments: object) -> None:
    """Calls the extension for the device of `x`, on its current stream."""
    with _on_device(name, x):
        try:
            getattr(_extension(), name)(*arguments, _stream())
        except ValueError as error:
            raise Refused(str(error)) from None


def _stream() -> int:
    return torch.cuda.current_stream().cuda_stream


def _on_device(name: str, x: Tensor) -> AbstractContextManager[Any]:
    if x.device.type != "cuda":
        raise ValueError(f"{name}: x is on {x.device}, expected an NVIDIA GPU")
    return torch.cuda.device(x.device)


@functools.cache
def _extension() -> ModuleType:
    """The extension, asked once whether it has the kernels: that takes longer than a launch."""
    if reason := missing():
        raise RuntimeError(reason)
    return extension.load()


def _address(t: Tensor | None, alignment: int = 16) -> int:
    """The address of a tensor, which must be a multiple of `alignment`; 0 for None."""
    if t is None:
        return 0
    if t.data_ptr() % alignment:
        raise Refused(f"a {tuple(t.shape)} tensor starts off a {alignment}-byte boundary; clone it")
    return t.data_ptr()


def _empty(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


def _check_map(op: str, name: str, x: Tensor, weight: Tensor | None = None) -> None:
    checks.check_map(op, name, x)
    check_type(op, name, x)
    if weight is not None and (weight.dtype != x.dtype or weight.device != x.device):
        raise ValueError(f"{op}: {name} is {x.dtype} on {x.device}, expected {weight.dtype} on "
                         f"{weight.device} as the weights")  # fmt: skip
