"""Int8 weights of the fused blocks, and the plain PyTorch twins of the operations that use them.

A tensor of range low..high is stored as bytes q = round(v / step) + zero. Weights are int8, with a
step of their own for every output channel; sums are int32. Everything in between is fixed here, so
that the integers are the same wherever they are computed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Range = tuple[float, float]
Weight = tuple[Tensor, Tensor]  # weight and bias of a convolution, batch norm folded in

#: Bias in steps of a sum: floats up to here are exact, and sums stay far from the ends of int32.
_MAX_START = 2.0**24


class Quantizer(NamedTuple):
    """Floats as bytes: round(v * inverse) + zero, ties to even, limited to 0..255."""

    inverse: float
    zero: int

    @property
    def step(self) -> float:
        return 1 / self.inverse

    def __call__(self, x: Tensor) -> Tensor:
        """The bytes of float32 `x`, as float32."""
        q = (x * torch.tensor(self.inverse, dtype=torch.float32)).round() + self.zero
        return q.clamp(0, 255)


def quantizer(span: Range, at_least: float = 0.0) -> Quantizer:
    """Bytes for values in `span`, which is widened to hold 0; `at_least` bounds the step."""
    low, high = min(0.0, span[0]), max(0.0, span[1])
    step = max((high - low) / 255, at_least, 1e-12)
    inverse = float(torch.tensor(1 / step, dtype=torch.float32))
    return Quantizer(inverse, round(-low * inverse))


class Product(NamedTuple):
    """A convolution of bytes. sum = start + weight * q; round(sum * scale) are bytes, or, where
    there is a bias, sum * scale + bias are floats."""

    weight: Tensor  # int8 (out, in, 1, 1) or (channels, 1, 3, 3)
    start: Tensor  # int32 (out)
    scale: Tensor  # float32 (out)
    bias: Tensor | None  # float32 (out)


def _weights(weight: Tensor, bias: Tensor, source: Quantizer) -> tuple[Tensor, Tensor]:
    """Integer weights and the value of a sum's unit per channel, both float64."""
    w, b = weight.double(), bias.double()
    unit = w.abs().flatten(1).amax(1) / 127 * source.step
    unit = torch.maximum(unit, b.abs() / _MAX_START).clamp_min(1e-30)
    q = (w * source.step / unit.reshape(-1, 1, 1, 1)).round()
    return q, unit


def to_floats(weight: Tensor, bias: Tensor, source: Quantizer) -> Product:
    """Folded `weight` and `bias` of a convolution of bytes that gives floats."""
    q, unit = _weights(weight, bias, source)
    start = -source.zero * q.flatten(1).sum(1)
    return Product(q.to(torch.int8), start.to(torch.int32), unit.float(), bias.float())


def to_bytes(
    weight: Tensor, bias: Tensor, source: Quantizer, span: Range
) -> tuple[Product, Quantizer]:
    """Folded `weight` and `bias` of a convolution from bytes to bytes of values in `span`.

    A span that starts at 0 makes it a ReLU. Returns the product and what its bytes stand for.
    """
    q, unit = _weights(weight, bias, source)
    target = quantizer(span, at_least=float(unit.max()))
    start = (bias.double() + target.zero * target.step) / unit - source.zero * q.flatten(1).sum(1)
    scale = (unit * target.inverse).float()
    return Product(q.to(torch.int8), start.round().to(torch.int32), scale, None), target


class InvertedResidual(NamedTuple):
    source: Quantizer
    expand: Product
    depthwise: Product
    project: Product


def inverted_residual_weights(
    expand: Weight, depthwise: Weight, project: Weight, spans: tuple[Range, Range, Range]
) -> InvertedResidual:
    """Int8 weights of a bottleneck with ReLU or ReLU6; `spans` are the ranges of the inputs of its
    three convolutions, the last two from 0, which makes them the activation."""
    if min(spans[1][0], spans[2][0]) < 0:
        raise ValueError(
            f"inverted_residual_int8: hidden ranges {spans[1]} and {spans[2]}, expected ones that "
            "start at 0 (behind ReLU or ReLU6)"
        )
    source = quantizer(spans[0])
    first, hidden = to_bytes(*expand, source, spans[1])
    second, filtered = to_bytes(*depthwise, hidden, spans[2])
    return InvertedResidual(source, first, second, to_floats(*project, filtered))


class FeatureFusion(NamedTuple):
    low_source: Quantizer
    depthwise: Product | None
    both: Product  # inputs: `low_channels` of the low branch, then the other's
    low_channels: int


def feature_fusion_weights(
    depthwise: Weight | None,
    low: Weight,
    high: Weight,
    spans: tuple[Range, Range, Range, Range],
) -> FeatureFusion:
    """Int8 weights of the feature fusion; `spans` are the ranges of the upsampled low branch, of
    the input of its 1x1, of the high branch, and of the output, the last three from 0. Without a
    `depthwise` the first two are one, and the second is used.

    Both 1x1 become one: the weights of the high branch are scaled as if its bytes had the steps of
    the low one's.
    """
    if min(span[0] for span in spans[1:]) < 0:
        raise ValueError(
            f"feature_fusion_int8: ranges {spans[1:]}, expected ones that start at 0 (behind ReLU)"
        )
    high_source = quantizer(spans[2])
    if depthwise is None:
        source = filtered = quantizer(spans[1])
        first = None
    else:
        source = quantizer(spans[0])
        first, filtered = to_bytes(*depthwise, source, spans[1])
    scaled = (high[0].double() * (high_source.step / filtered.step)).float()
    weight, bias = torch.cat([low[0], scaled], 1), low[1] + high[1]
    both, _ = to_bytes(weight, bias, filtered, spans[3])
    return FeatureFusion(source, first, both, low[0].shape[1])


class Classifier(NamedTuple):
    depthwise1: Product
    pointwise1: Product
    depthwise2: Product
    pointwise2: Product
    last: Product


def classifier_weights(
    convs: tuple[Weight, Weight, Weight, Weight, Weight],
    spans: tuple[Range, Range, Range, Range, Range],
) -> Classifier:
    """Int8 weights of two DSConvs and a 1x1; `spans` are the ranges of the inputs of the five
    convolutions, those of the depthwise ones and of the last from 0, which makes them a ReLU."""
    if min(spans[i][0] for i in (0, 2, 4)) < 0:
        raise ValueError(
            f"classifier_int8: ranges {spans[::2]}, expected ones that start at 0 (behind ReLU)"
        )
    source, products = quantizer(spans[0]), []
    for conv, span in zip(convs[:4], spans[1:], strict=True):
        product, source = to_bytes(*conv, source, span)
        products.append(product)
    first, second, third, fourth = products
    return Classifier(first, second, third, fourth, to_floats(*convs[4], source))


def _bytes(
    q: Tensor, product: Product, *, outside: int = 0, stride: int = 1, dilation: int = 1
) -> Tensor:
    """Bytes to bytes; beyond the map a depthwise convolution sees the byte `outside`."""
    if product.weight.shape[-1] == 3:
        q = F.pad(q, [dilation] * 4, value=float(outside))
    sums = _sums(q, product, stride, dilation)
    return (sums * product.scale.reshape(-1, 1, 1)).round().clamp(0, 255)


def _floats(q: Tensor, product: Product) -> Tensor:
    assert product.bias is not None
    return _sums(q, product) * product.scale.reshape(-1, 1, 1) + product.bias.reshape(-1, 1, 1)


def _sums(q: Tensor, product: Product, stride: int = 1, dilation: int = 1) -> Tensor:
    """Integer sums, exact in float64, as float32."""
    weight, start = product.weight.double(), product.start.double()
    groups = q.shape[1] if weight.shape[-1] == 3 else 1
    return F.conv2d(q.double(), weight, start, stride, 0, dilation, groups).float()


def inverted_residual(
    x: Tensor, weights: InvertedResidual, *, stride: int = 1, residual: bool = False
) -> Tensor:
    """float32, or uint8 that stand for it by `weights.source`, N x C x H x W to float32; see
    `inverted_residual_weights`."""
    q = x.float() if x.dtype == torch.uint8 else weights.source(x)
    hidden = _bytes(q, weights.expand)
    y = _floats(_bytes(hidden, weights.depthwise, stride=stride), weights.project)
    return y + x if residual else y


def feature_fusion(
    high: Tensor, low: Tensor, weights: FeatureFusion, *, dilation: int, align_corners: bool
) -> Tensor:
    """uint8 N x C x H x W (high) and float32 N x D x h x w (low) to uint8."""
    low = F.interpolate(low, high.shape[2:], mode="bilinear", align_corners=align_corners)
    q = weights.low_source(low)
    if weights.depthwise is not None:
        zero = weights.low_source.zero
        q = _bytes(q, weights.depthwise, outside=zero, dilation=dilation)
    both = torch.cat([q, high.float()], 1)
    return _bytes(both, weights.both).to(torch.uint8)


def classifier(x: Tensor, weights: Classifier) -> Tensor:
    """uint8 N x C x H x W to float32 scores; see `classifier_weights`."""
    q = x.float()
    for product in weights[:4]:
        q = _bytes(q, product)
    return _floats(q, weights.last)
