"""The int8 operations of the C++ extension on CPU tensors; their twins are in `int8`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastscnn_kernels import extension
from fastscnn_kernels import reference_int8 as int8
from fastscnn_kernels.cpu import pack as cpu_pack

#: Maps of bytes have their channels rounded up to this.
BLOCK = 64


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


class FeatureFusion:
    """Packed weights of `feature_fusion`; its low branch has a multiple of 64 channels."""

    def __init__(self, weights: int8.FeatureFusion) -> None:
        self.out, inputs = weights.both.weight.shape[:2]
        self.low, self.high = weights.low_channels, inputs - weights.low_channels
        if self.low % BLOCK:
            raise ValueError(
                f"feature_fusion_int8: low has {self.low} channels, expected a multiple of {BLOCK}"
            )
        #: What the extension takes behind the dilation.
        self.arguments = (
            tuple(weights.low_source),
            None if weights.depthwise is None else _taps(weights.depthwise),
            _matrix(weights.both),
        )


class Classifier:
    """Packed weights of `classifier`."""

    def __init__(self, weights: int8.Classifier) -> None:
        self.channels, self.out = weights.depthwise1.weight.shape[0], weights.last.weight.shape[0]
        #: What the extension takes behind the width.
        self.arguments = (
            *(_taps(weights.depthwise1), _matrix(weights.pointwise1)),
            *(_taps(weights.depthwise2), _matrix(weights.pointwise2)),
            _matrix(weights.last),
        )


def blocks(op: str, name: str, x: Tensor, channels: int) -> Tensor:
    """uint8 N x C x H x W as the extension takes it: N x H x W x whole blocks."""
    cpu_pack.check_same(op, f"channels of {name}", x.shape[1], channels)
    x = cpu_pack.dense_bytes(op, name, x, tuple(x.shape))
    return F.pad(x.permute(0, 2, 3, 1), (0, -channels % BLOCK)).contiguous()


def inverted_residual(
    x: Tensor,
    weights: InvertedResidual,
    *,
    stride: int = 1,
    residual: bool = False,
    threads: int | None = None,
    isa: str = "",
) -> Tensor:
    """float32, or uint8 without a residual, N x C x H x W to float32; equals
    `int8.inverted_residual` bit for bit."""
    op = "inverted_residual_int8"
    cpu_pack.check_stride(op, stride)
    n, channels, h, w = x.shape
    bytes_ = x.dtype == torch.uint8
    x = (blocks if bytes_ else cpu_pack.nhwc)(op, "x", x, weights.channels)
    if residual and (stride != 1 or channels != weights.out or bytes_):
        raise ValueError(
            f"{op}: residual with {'uint8' if bytes_ else 'float32'}, stride {stride} and "
            f"{channels} to {weights.out} channels, expected float32, stride 1 and equal channels"
        )
    y = cpu_pack.empty_nhwc(
        n, weights.out, cpu_pack.strided(h, stride), cpu_pack.strided(w, stride)
    )
    extension.load().inverted_residual_int8(
        *(x.data_ptr(), bytes_, n, h, w, stride, *weights.arguments, residual, y.data_ptr(), isa),
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
    """uint8 N x C x H x W (high) and float32 N x D x h x w (low) to uint8; equals
    `int8.feature_fusion` up to the rounding of the upsampling."""
    op = "feature_fusion_int8"
    high = blocks(op, "high", high, weights.high)
    low = cpu_pack.nhwc(op, "low", low, weights.low)
    cpu_pack.check_stride(op, 1, dilation)
    cpu_pack.check_same(op, "batch of low", low.shape[0], high.shape[0])
    n, h, w, _ = high.shape
    axis = extension.load().Axis
    axes = [axis(low.shape[2], h, align_corners), axis(low.shape[3], w, align_corners)]
    y = torch.empty((n, h, w, -(-weights.out // BLOCK) * BLOCK), dtype=torch.uint8)
    extension.load().feature_fusion_int8(
        *(high.data_ptr(), low.data_ptr(), n, weights.low, weights.high, *axes, dilation),
        *(*weights.arguments, y.data_ptr(), isa),
        *(cpu_pack.check_threads(op, threads), cpu_pack.workspace()),
    )
    return y.permute(0, 3, 1, 2)[:, : weights.out]


def classifier(
    x: Tensor, weights: Classifier, *, threads: int | None = None, isa: str = ""
) -> Tensor:
    """uint8 N x C x H x W to float32 scores; equals `int8.classifier` bit for bit."""
    op = "classifier_int8"
    x = blocks(op, "x", x, weights.channels)
    n, h, w, _ = x.shape
    y = cpu_pack.empty_nhwc(n, weights.out, h, w)
    extension.load().classifier_int8(
        *(x.data_ptr(), n, h, w, *weights.arguments, y.data_ptr(), isa),
        *(cpu_pack.check_threads(op, threads), cpu_pack.workspace()),
    )
    return y
