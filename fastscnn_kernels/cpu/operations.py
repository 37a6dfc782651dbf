"""The operations on CPU tensors in C++, with the names and meaning of `reference.py`.

They take float32 tensors on the CPU. Two keywords are added to the twins': `threads` (default:
torch's setting; the result does not depend on it, to the bit) and `isa`, the instruction set (""
is the machine's best; `extension.device_info()` lists them). Inputs that are not channels_last are
copied into that layout; outputs are channels_last where not said otherwise. Other dtypes raise
TypeError: half precision is slower than float32 on nearly every CPU. Weights are packed in every
call; who runs a network packs them once (`cpu_pack`, as `fastscnn.inference.cpu_runtime` does).

Every operation raises TypeError or ValueError that names the argument and what was expected.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastscnn_kernels import extension
from fastscnn_kernels.cpu import pack as pack
from fastscnn_kernels.cpu.heads import argmax_head, resize, softmax_head
from fastscnn_kernels.cpu.pictures import colorize, overlay, resize_frame

__all__ = [
    "argmax_head",
    "colorize",
    "depthwise_conv",
    "dsconv",
    "feature_fusion",
    "inverted_residual",
    "learning_to_downsample",
    "overlay",
    "pointwise_conv",
    "pyramid_pool",
    "resize",
    "resize_frame",
    "softmax_head",
    "stem_conv",
]


def stem_conv(
    frame: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    padding: int | str = 1,
    activation: str = "relu",
    threads: int | None = None,
    isa: str = "",
) -> Tensor:
    """3x3 stride-2 convolution of a uint8 frame N x H x W x 3 (normalised inside), or of normalised
    N x 3 x H x W floats."""
    ext, op = extension.load(), "stem_conv"
    w = pack.matrix(op, "", weight, bias, isa, kernel=3)
    pack.check_same(op, "weight's input channels", weight.shape[1], 3)
    stem, source, size = pack.stem(op, frame, w, mean, std, padding, activation)
    y = pack.empty_nhwc(source.shape[0], weight.shape[0], *size)
    ext.stem_conv(stem, w, y.data_ptr(), pack.check_threads(op, threads), pack.workspace())
    return y


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int = 1,
    dilation: int = 1,
    activation: str = "none",
    threads: int | None = None,
    isa: str = "",
) -> Tensor:
    """3x3 depthwise convolution with padding = dilation; stride 1 or 2."""
    ext, op = extension.load(), "depthwise_conv"
    x = pack.nhwc(op, "x", x, weight.shape[0])
    pack.check_stride(op, stride, dilation)
    n, c, h, w = x.shape
    y = pack.empty_nhwc(n, c, pack.strided(h, stride), pack.strided(w, stride))
    ext.depthwise_conv(
        *(x.data_ptr(), n, h, w, stride, dilation, pack.taps(op, "", weight, bias, isa)),
        *(pack.bounds(op, "activation", activation), y.data_ptr()),
        *(pack.check_threads(op, threads), pack.workspace()),
    )
    return y


def pointwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
    threads: int | None = None,
    isa: str = "",
) -> Tensor:
    """1x1 convolution; the residual is added before the activation."""
    ext, op = extension.load(), "pointwise_conv"
    x = pack.nhwc(op, "x", x, weight.shape[1])
    n, _, h, w = x.shape
    y = pack.empty_nhwc(n, weight.shape[0], h, w)
    if residual is not None:
        residual = pack.nhwc(op, "residual", residual)
        if residual.shape != y.shape:
            raise ValueError(
                f"{op}: residual has shape {tuple(residual.shape)}, expected {tuple(y.shape)}"
            )
    ext.pointwise_conv(
        *(x.data_ptr(), 0 if residual is None else residual.data_ptr(), n * h * w),
        *(pack.matrix(op, "", weight, bias, isa), pack.bounds(op, "activation", activation)),
        *(y.data_ptr(), pack.check_threads(op, threads), pack.workspace()),
    )
    return y


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
    threads: int | None = None,
    isa: str = "",
) -> Tensor:
    """Depthwise 3x3, optional activation, pointwise 1x1, activation, optional 1x1 to class scores;
    what lies between stays in L1."""
    ext, op = extension.load(), "dsconv"
    x = pack.nhwc(op, "x", x, depthwise_weight.shape[0])
    pack.check_stride(op, stride, dilation)
    pack.check_same(op, "pointwise_weight's inputs", pointwise_weight.shape[1], x.shape[1])
    n, _, h, w = x.shape
    out, last = pointwise_weight.shape[0], None
    if head is not None:
        pack.check_same(op, "head weight's inputs", head[0].shape[1], out)
        out, last = head[0].shape[0], pack.matrix(op, "head ", *head, isa)
    y = pack.empty_nhwc(n, out, pack.strided(h, stride), pack.strided(w, stride))
    ext.dsconv(
        *(x.data_ptr(), n, h, w, stride, dilation),
        pack.taps(op, "depthwise_", depthwise_weight, depthwise_bias, isa),
        pack.bounds(op, "mid_activation", mid_activation),
        pack.matrix(op, "pointwise_", pointwise_weight, pointwise_bias, isa),
        *(pack.bounds(op, "activation", activation), last, y.data_ptr()),
        *(pack.check_threads(op, threads), pack.workspace()),
    )
    return y


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
    threads: int | None = None,
    isa: str = "",
) -> Tensor:
    """Expand 1x1, depthwise 3x3, project 1x1 without activation, optionally plus x; the hidden
    tensor stays in L2."""
    ext, op = extension.load(), "inverted_residual"
    x = pack.nhwc(op, "x", x, expand_weight.shape[1])
    pack.check_stride(op, stride)
    hidden, out = expand_weight.shape[0], project_weight.shape[0]
    pack.check_same(op, "depthwise_weight's channels", depthwise_weight.shape[0], hidden)
    pack.check_same(op, "project_weight's inputs", project_weight.shape[1], hidden)
    n, c, h, w = x.shape
    if residual and (stride != 1 or c != out):
        raise ValueError(
            f"{op}: residual=True needs stride 1 and as many outputs as inputs, got stride "
            f"{stride} and {c} -> {out} channels"
        )
    y = pack.empty_nhwc(n, out, pack.strided(h, stride), pack.strided(w, stride))
    ext.inverted_residual(
        *(x.data_ptr(), n, h, w, stride),
        pack.matrix(op, "expand_", expand_weight, expand_bias, isa),
        pack.taps(op, "depthwise_", depthwise_weight, depthwise_bias, isa),
        pack.matrix(op, "project_", project_weight, project_bias, isa),
        *(pack.bounds(op, "activation", activation), residual, y.data_ptr()),
        *(pack.check_threads(op, threads), pack.workspace()),
    )
    return y


def pyramid_pool(
    x: Tensor,
    branch_weights: Sequence[Tensor],
    branch_biases: Sequence[Tensor],
    join_weight: Tensor,
    join_bias: Tensor,
    *,
    order: Sequence[int] = (0, 1, 2, 3, 6),
    align_corners: bool = False,
    threads: int | None = None,
    isa: str = "",
) -> Tensor:
    """Adaptive average pools, 1x1 + ReLU each, bilinear back, concat in `order`, join, ReLU.

    Up to four branches, by ascending bin; 0 in `order` stands for x itself. A 1x1 join is applied
    to the pooled pixels before they are sampled back, which is the same and 18 times less work.
    """
    ext, op = extension.load(), "pyramid_pool"
    x = pack.nhwc(op, "x", x)
    n, c, h, w = x.shape
    pyramid = pack.Pyramid(op, branch_weights, branch_biases, join_weight, join_bias, order, c, isa)
    y = pack.empty_nhwc(n, join_weight.shape[0], h, w)
    ext.pyramid_pool(
        *(x.data_ptr(), n, h, w, c, *pyramid.arguments(h, w, align_corners)),
        *(y.data_ptr(), pack.check_threads(op, threads), pack.workspace()),
    )
    return y


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
    threads: int | None = None,
    isa: str = "",
) -> Tensor:
    """relu(low_1x1(relu(depthwise(bilinear(low)))) + high_1x1(high)).

    A 1x1 `depthwise_weight` (C x C x 1 x 1) stands for the dense variant; it is applied before the
    sampling, with which it commutes.
    """
    ext, op = extension.load(), "feature_fusion"
    high = pack.nhwc(op, "high", high, high_weight.shape[1])
    pack.check_stride(op, 1, dilation)
    pack.check_same(op, "high_weight's outputs", high_weight.shape[0], low_weight.shape[0])
    taps = None
    if depthwise_weight.shape[-1] == 1:
        low = pointwise_conv(low, depthwise_weight, depthwise_bias, threads=threads, isa=isa)
    else:
        taps = pack.taps(op, "depthwise_", depthwise_weight, depthwise_bias, isa)
        pack.check_same(
            op, "depthwise_weight's channels", depthwise_weight.shape[0], low_weight.shape[1]
        )
    low = pack.nhwc(op, "low", low, low_weight.shape[1])
    n, _, h, w = high.shape
    pack.check_same(op, "images in low", low.shape[0], n)
    y = pack.empty_nhwc(n, low_weight.shape[0], h, w)
    ext.feature_fusion(
        *(high.data_ptr(), low.data_ptr(), n),
        *(ext.Axis(low.shape[2], h, align_corners), ext.Axis(low.shape[3], w, align_corners)),
        *(taps, dilation, pack.matrix(op, "low_", low_weight, low_bias, isa)),
        *(pack.matrix(op, "high_", high_weight, high_bias, isa), y.data_ptr()),
        *(pack.check_threads(op, threads), pack.workspace()),
    )
    return y


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
    threads: int | None = None,
    isa: str = "",
) -> Tensor:
    """Stem and two stride-2 DSConvs in one pass; each of `dsconv1`, `dsconv2` is the four tensors
    of one (depthwise weight and bias, pointwise weight and bias)."""
    ext, op = extension.load(), "learning_to_downsample"
    channels = stem_weight.shape[0]
    for i, d in enumerate((dsconv1, dsconv2), 1):
        pack.check_same(op, f"dsconv{i}'s depthwise channels", d[0].shape[0], channels)
        pack.check_same(op, f"dsconv{i}'s pointwise inputs", d[2].shape[1], channels)
        channels = d[2].shape[0]
    w = pack.matrix(op, "stem_", stem_weight, stem_bias, isa, kernel=3)
    stem, source, size = pack.stem(op, frame, w, mean, std, padding, "relu")
    packed = [
        p
        for i, d in enumerate((dsconv1, dsconv2), 1)
        for p in (
            pack.taps(op, f"dsconv{i} depthwise_", d[0], d[1], isa),
            pack.matrix(op, f"dsconv{i} pointwise_", d[2], d[3], isa),
        )
    ]
    h, w3 = (pack.strided(pack.strided(s, 2), 2) for s in size)
    y = pack.empty_nhwc(source.shape[0], channels, h, w3)
    ext.learning_to_downsample(
        *(stem, *packed, pack.bounds(op, "mid_activation", mid_activation)),
        *(pack.ACTIVATIONS["relu"], y.data_ptr()),
        *(pack.check_threads(op, threads), pack.workspace()),
    )
    return y
