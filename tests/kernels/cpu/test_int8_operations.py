"""The operations in int8 against integer twins bit for bit, the twins against floats and NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from int8_cases import (
    byte_values,
    dense,
    depthwise,
    int8_anywhere,  # noqa: F401 (used by every test)
    int8_values,
    rms,
    same,
    tensor,
    uneven,
)
from torch import Tensor

from fastscnn_kernels import reference
from fastscnn_kernels import reference_int8 as int8
from fastscnn_kernels.cpu import int8 as cpu_int8
from fastscnn_kernels.extension import device_info

ISAS = device_info()["cpu_int8_instruction_sets"]

# 1x1: every tap but one is padding; 7x13: no multiple of any tile; 19x53: several runs, odd.
SIZES = [(1, 1), (7, 13), (19, 53)]


# The network's own widths, and some that fill neither a block of 64 bytes nor a vector of 16 sums.
BLOCKS = [(64, 384, 64, 1), (64, 384, 96, 2), (128, 768, 128, 1), (6, 36, 6, 1), (9, 70, 21, 2)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_inverted_residual(block: tuple[int, ...], size: tuple[int, int], isa: str) -> None:
    inputs, hidden, out, stride = block
    weights = int8.inverted_residual_weights(
        *(dense(hidden, inputs), depthwise(hidden), dense(out, hidden)),
        ((-3.0, 4.0), (0.0, 3.0), (0.0, 2.0)),
    )
    packed, x = cpu_int8.InvertedResidual(weights), tensor(2, inputs, *size)
    for residual in {False, stride == 1 and inputs == out}:
        twin = int8.inverted_residual(x, weights, stride=stride, residual=residual)
        for threads in (1, 3):
            options: Any = {"stride": stride, "residual": residual, "threads": threads, "isa": isa}
            same(cpu_int8.inverted_residual(x, packed, **options), twin)
    q = torch.randint(0, 256, x.shape, dtype=torch.uint8)
    twin = int8.inverted_residual(q, weights, stride=stride)
    same(cpu_int8.inverted_residual(q, packed, stride=stride, threads=3, isa=isa), twin)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("channels", [(128, 128, 11), (40, 70, 19), (3, 65, 2)], ids=str)
def test_classifier(channels: tuple[int, int, int], size: tuple[int, int], isa: str) -> None:
    inputs, wide, out = channels
    x = torch.randint(0, 256, (2, inputs, *size), dtype=torch.uint8)
    for low in (-1.0, 0.0):  # 0: a ReLU between depthwise and pointwise
        weights = int8.classifier_weights(
            (
                *(depthwise(inputs), dense(wide, inputs), depthwise(wide), dense(wide, wide)),
                dense(out, wide),
            ),
            ((0.0, 3.0), (low, 3.0), (0.0, 2.0), (low, 2.0), (0.0, 2.0)),
        )
        packed, twin = cpu_int8.Classifier(weights), int8.classifier(x, weights)
        for threads in (1, 3):
            same(cpu_int8.classifier(x, packed, threads=threads, isa=isa), twin)


# Low map, high map: ratios at which bilinear weights are exact, so that no rounding differs.
FUSIONS = [((1, 1), (1, 1), False), ((4, 7), (16, 28), False), ((3, 14), (5, 27), True)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sizes", FUSIONS, ids=str)
@pytest.mark.parametrize("dilation", [0, 1, 4])
def test_feature_fusion(dilation: int, sizes: Any, isa: str) -> None:
    """Dilation 0: no depthwise convolution."""
    small, large, align = sizes
    for channels in ((64, 128, 128), (10, 64, 30)):
        low = torch.randint(-16, 16, (2, channels[1], *small)) / 8
        high = torch.randint(0, 256, (2, channels[0], *large), dtype=torch.uint8)
        weights = int8.feature_fusion_weights(
            depthwise(channels[1]) if dilation else None,
            *(dense(channels[2], channels[1]), dense(channels[2], channels[0])),
            ((-1.5, 2.0), (0.0, 2.0), (0.0, 4.0), (0.0, 3.0)),
        )
        packed = cpu_int8.FeatureFusion(weights)
        how: Any = {"dilation": dilation or 1, "align_corners": align}
        twin = int8.feature_fusion(high, low, weights, **how)
        for threads in (1, 3):
            same(cpu_int8.feature_fusion(high, low, packed, threads=threads, isa=isa, **how), twin)


@pytest.mark.parametrize("isa", ISAS)
def test_values_beyond_the_ranges_are_limited(isa: str) -> None:
    """Inputs, sums and biases far outside; channels without weights; ranges of nothing."""
    x = tensor(1, 64, 5, 9)
    x[0, :4, 0, 0] = torch.tensor([torch.inf, -torch.inf, 1e30, -1e30])
    expand, taps, project = dense(384, 64), depthwise(384), dense(64, 384)
    expand[0][:7] = 0
    expand[1][:7] = torch.tensor([0.0, 1e-9, -1e-9, 1e9, -1e9, 3.0, 1e30])
    for spans in ((-1.0, 1.0), (0.0, 0.1), (0.0, 0.1)), ((0.0, 0.0),) * 3:
        weights = int8.inverted_residual_weights(expand, taps, project, spans)  # type: ignore
        packed = cpu_int8.InvertedResidual(weights)
        same(cpu_int8.inverted_residual(x, packed, isa=isa), int8.inverted_residual(x, weights))


def test_twins_are_close_to_the_float_operations() -> None:
    """Else kernel and twin could share a mistake. With the ranges of the data, the error is that of
    8 bits: a few steps of 1/255."""
    x, high = tensor(2, 64, 16, 24), tensor(2, 64, 32, 48)
    e, d, p = dense(384, 64), depthwise(384), dense(64, 384)
    hidden = F.relu(F.conv2d(x, *e))
    filtered = F.relu(F.conv2d(hidden, *d, padding=1, groups=384))
    weights = int8.inverted_residual_weights(e, d, p, (span(x), span(hidden), span(filtered)))
    exact = reference.inverted_residual(x, *e, *d, *p, residual=True)
    close(int8.inverted_residual(x, weights, residual=True), exact)

    d, low, other = depthwise(64), dense(96, 64), dense(96, 64)
    up, high = F.interpolate(x, (32, 48), mode="bilinear"), high.relu()
    filtered = F.relu(F.conv2d(up, *d, padding=4, dilation=4, groups=64))
    exact = F.relu(F.conv2d(filtered, *low) + F.conv2d(high, *other))
    spans = span(up), span(filtered), span(high), span(exact)
    fusion = int8.feature_fusion_weights(d, low, other, spans)
    q = int8.quantizer(spans[2])(high).to(torch.uint8)
    got = int8.feature_fusion(q, x, fusion, dilation=4, align_corners=False)
    close(got / int8.quantizer(spans[3]).inverse, exact)

    q = torch.randint(0, 256, (2, 64, 16, 24), dtype=torch.uint8)
    d1, p1, d2, p2, last = depthwise(64), dense(32, 64), depthwise(32), dense(32, 32), dense(11, 32)
    maps = [q / 85.0]
    maps.append(F.conv2d(maps[-1], *d1, padding=1, groups=64))
    maps.append(F.relu(F.conv2d(maps[-1], *p1)))
    maps.append(F.conv2d(maps[-1], *d2, padding=1, groups=32))
    maps.append(F.relu(F.conv2d(maps[-1], *p2)))
    five: Any = ((0.0, 3.0), *map(span, maps[1:]))
    classifier = int8.classifier_weights((d1, p1, d2, p2, last), five)
    close(int8.classifier(q, classifier), F.conv2d(maps[-1], *last))


def span(x: Tensor) -> tuple[float, float]:
    return float(x.min()), float(x.max())


def close(got: Tensor, exact: Tensor) -> None:
    error = (got - exact).abs() / (exact.max() - exact.min())
    assert error.mean() < 1 / 255, float(error.mean())
    assert error.max() < 8 / 255, float(error.max())


def test_bad_input_of_operations() -> None:
    block = dense(24, 4), depthwise(24), dense(8, 24)
    with pytest.raises(ValueError, match="expected ones that start at 0"):
        int8.inverted_residual_weights(*block, ((-1.0, 1.0), (-1.0, 1.0), (0.0, 1.0)))
    weights = int8.inverted_residual_weights(*block, ((-1.0, 1.0), (0.0, 1.0), (0.0, 1.0)))
    positive: Any = ((0.0, 1.0),) * 3
    with pytest.raises(ValueError, match=r"feature_fusion_int8: ranges .* start at 0"):
        int8.feature_fusion_weights(None, *block[::2], (*positive, (-1.0, 1.0)))
    with pytest.raises(ValueError, match=r"classifier_int8: ranges .* start at 0"):
        int8.classifier_weights((*block, *block[1:]), (*positive, (0.0, 1.0), (-1.0, 1.0)))
    fusion = int8.feature_fusion_weights(None, dense(8, 24), dense(8, 4), (*positive, (0.0, 1.0)))
    with pytest.raises(ValueError, match="low has 24 channels, expected a multiple of 64"):
        cpu_int8.FeatureFusion(fusion)
    packed = cpu_int8.InvertedResidual(weights)
    x = tensor(1, 4, 5, 5)
    with pytest.raises(ValueError, match="residual with float32, stride 1 and 4 to 8"):
        cpu_int8.inverted_residual(x, packed, residual=True)
    with pytest.raises(ValueError, match="x has 5 channels, its weight expects 4"):
        cpu_int8.inverted_residual(tensor(1, 5, 5, 5), packed)
    with pytest.raises(TypeError, match=r"x is torch\.float64"):
        cpu_int8.inverted_residual(x.double(), packed)
    with pytest.raises(ValueError, match="stride=3, expected 1 or 2"):
        cpu_int8.inverted_residual(x, packed, stride=3)
    with pytest.raises(ValueError, match="'sse9' is not available here; choose one of: "):
        cpu_int8.inverted_residual(x, packed, isa="sse9")


def test_a_block_in_numpy() -> None:
    """Nothing here is the package's: integers of weights and maps, and what they stand for."""
    inputs, hidden, h, w = 16, 96, 9, 13
    e, d, p = uneven(*dense(hidden, inputs)), uneven(*depthwise(hidden)), dense(24, hidden)
    x = tensor(1, inputs, h, w)
    spans = ((-3.0, 3.5), (0.0, 2.5), (0.0, 1.5))
    block = cpu_int8.InvertedResidual(int8.inverted_residual_weights(e, d, p, spans))
    got = cpu_int8.inverted_residual(x, block)[0].numpy()

    def block_of(weights: Any, maps: Any) -> np.ndarray:
        (we, be), (wd, bd), (wp, bp) = (
            (weights(a.double().numpy()), b.double().numpy()) for a, b in (e, d, p)
        )
        y = np.einsum("oi,ihw->ohw", we[..., 0, 0], maps(x[0].double().numpy(), spans[0]))
        y = np.pad(maps(np.maximum(y + be[:, None, None], 0), spans[1]), ((0, 0), (1, 1), (1, 1)))
        taps = [(r, c) for r in range(3) for c in range(3)]
        y = sum(wd[:, 0, r, c, None, None] * y[:, r : r + h, c : c + w] for r, c in taps)
        y = maps(np.maximum(y + bd[:, None, None], 0), spans[2])
        return np.einsum("oi,ihw->ohw", wp[..., 0, 0], y) + bp[:, None, None]

    truth = block_of(int8_values, byte_values)
    noise = rms(truth - block_of(np.copy, lambda values, span: np.clip(values, *span)))
    assert rms(got - truth) < 0.2 * noise, (rms(got - truth), noise)
