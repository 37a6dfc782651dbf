"""The int8 operations of the C++ extension on CPU tensors; their twins are in `int8`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastscnn_kernels import extension
from fastscnn_kernels import reference_int8 as int8
from fastscnn_kernels.cpu import pack as cpu_pack


def pays() -> bool:
    """Whether int8 is faster than float32 on this CPU: with AVX-512, best with its VNNI
    (docs/int8.md). AVX2 and the portable path give the same integers, but no gain."""
    fastest: str = extension.device_info()["cpu_int8_instruction_sets"][0]
    return fastest.startswith("avx512")


def _matrix(product: int8.Product) -> Any:
    """Packs a 1x1 convolution."""
    weight = product.weight.contiguous()
    bias = 0 if product.bias is None else product.bias.data_ptr()
    return extension.load().MatrixInt8(
        *(weight.data_ptr(), product.start.data_ptr(), product.scale.data_ptr(), bias),
        *weight.shape[:2],
    )


def _taps(product: int8.Product) -> Any:
    """Packs a 3x3 depthwise convolution."""
    weight = product.weight.contiguous()
    return extension.load().TapsInt8(
        *(weight.data_ptr(), product.start.data_ptr(), product.scale.data_ptr()), weight.shape[0]
    )


class InvertedResidual:
    """Packed weights of `inverted_residual`."""

    def __init__(self, weights: int8.InvertedResidual) -> None:
        self.channels = weights.expand.weight.shape[1]
        self.out = weights.project.weight.shape[0]
        #: What the extension takes behind the stride.
        self.arguments = (
            *(tuple(weights.source), _matrix(weights.expand), _taps(weights.depthwise)),
            _matrix(weights.project),
        )


class Dsconv:
    """Packed weights of `dsconv`."""

    def __init__(self, weights: int8.Dsconv) -> None:
        self.channels = weights.depthwise.weight.shape[0]
        self.out = weights.pointwise.weight.shape[0]
        #: What the extension takes behind the width.
        self.arguments = (
            *(tuple(weights.source), _taps(weights.depthwise)),
            _matrix(weights.pointwise),
        )


class FeatureFusion:
    """Packed weights of `feature_fusion`."""

    def __init__(self, weights: int8.FeatureFusion) -> None:
        self.high, self.low = weights.high.weight.shape[1], weights.low.weight.shape[1]
        self.out = weights.low.weight.shape[0]
        #: What the extension takes behind the dilation.
        self.arguments = (
            *(tuple(weights.high_source), tuple(weights.low_source)),
            None if weights.depthwise is None else _taps(weights.depthwise),
            *(_matrix(weights.low), _matrix(weights.high)),
        )


def inverted_residual(
    x: Tensor,
    weights: InvertedResidual,
    *,
    stride: int = 1,
    residual: bool = False,
    threads: int | None = None,
    isa: str = "",
) -> Tensor:
    """float32 N x C x H x W to float32; equals `int8.inverted_residual` bit for bit."""
    op = "inverted_residual_int8"
    x = cpu_pack.nhwc(op, "x", x, weights.channels)
    cpu_pack.check_stride(op, stride)
    n, channels, h, w = x.shape
    if residual and (stride != 1 or channels != weights.out):
        raise ValueError(
            f"{op}: residual with stride {stride} and {channels} to {weights.out} channels, "
            "expected stride 1 and equal channels"
        )
    y = cpu_pack.empty_nhwc(
        n, weights.out, cpu_pack.strided(h, stride), cpu_pack.strided(w, stride)
    )
    extension.load().inverted_residual_int8(
        *(x.data_ptr(), n, h, w, stride, *weights.arguments, residual, y.data_ptr(), isa),
        *(cpu_pack.check_threads(op, threads), cpu_pack.workspace()),
    )
    return y


def dsconv(
    x: Tensor,
    weights: Dsconv,
    *,
    activation: str = "relu",
    threads: int | None = None,
    isa: str = "",
) -> Tensor:
    """float32 N x C x H x W to float32; equals `int8.dsconv` bit for bit."""
    op = "dsconv_int8"
    x = cpu_pack.nhwc(op, "x", x, weights.channels)
    n, _, h, w = x.shape
    y = cpu_pack.empty_nhwc(n, weights.out, h, w)
    bounds = cpu_pack.bounds(op, "activation", activation)
    extension.load().dsconv_int8(
        *(x.data_ptr(), n, h, w, *weights.arguments, bounds, None, y.data_ptr(), isa),
        *(cpu_pack.check_threads(op, threads), cpu_pack.workspace()),
    )
    return y


def feature_fusion(
    high: Tensor,
    low: Tensor,
    weights: FeatureFusion,
    *,
    dilation: int,
    align_corners: bool,
    threads: int | None = None,
    isa: str = "",
) -> Tensor:
    """float32 N x C x H x W (high) and N x D x h x w (low) to float32; equals
    `int8.feature_fusion` up to the rounding of the upsampling."""
    op = "feature_fusion_int8"
    high = cpu_pack.nhwc(op, "high", high, weights.high)
    low = cpu_pack.nhwc(op, "low", low, weights.low)
    cpu_pack.check_stride(op, 1, dilation)
    cpu_pack.check_same(op, "batch of low", low.shape[0], high.shape[0])
    n, _, h, w = high.shape
    axis = extension.load().Axis
    axes = [axis(low.shape[2], h, align_corners), axis(low.shape[3], w, align_corners)]
    y = cpu_pack.empty_nhwc(n, weights.out, h, w)
    extension.load().feature_fusion_int8(
        *(high.data_ptr(), low.data_ptr(), n, *axes, dilation, *weights.arguments, y.data_ptr()),
        *(isa, cpu_pack.check_threads(op, threads), cpu_pack.workspace()),
    )
    return y
