"""The blocks behind learning to downsample on the CPU, in float32 or in int8.

Both trunks have the same methods. Each gives an operation of the extension and its arguments up to
the thread count and the workspace; maps are float32 N x H x W x C and given by their addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastscnn.inference.fold import BOTTLENECKS, Conv
from fastscnn.network.config import FastSCNNConfig
from fastscnn_kernels import extension
from fastscnn_kernels import reference_int8 as int8
from fastscnn_kernels.cpu import int8 as cpu_int8
from fastscnn_kernels.cpu import pack as cpu_pack

DSCONVS = ["classifier.dsconv1", "classifier.dsconv2"]

#: Lowest and highest value of the input of a convolution, by the convolution's name.
Ranges = Mapping[str, tuple[float, float]]

Operation = tuple[Callable[..., None], tuple[Any, ...]]


def int8_inputs(config: FastSCNNConfig) -> list[str]:
    """Names of the convolutions whose inputs are bytes in an `Int8Trunk`."""
    fusion = ["low", "high"] if config.ffm_kernel == "dense" else ["depthwise", "low", "high"]
    return [
        *(
            f"{name}.{part}"
            for name, _ in BOTTLENECKS
            for part in ("expand", "depthwise", "project")
        ),
        *(f"feature_fusion.{part}" for part in fusion),
        *(f"{name}.{part}" for name in DSCONVS for part in ("depthwise", "pointwise")),
    ]


def check_ranges(ranges: Ranges, config: FastSCNNConfig) -> None:
    """Raises ValueError where a network of that config cannot run in int8 with these ranges."""
    for name in int8_inputs(config):
        if name not in ranges:
            raise ValueError(
                f"its int8 ranges lack {name}: calibrate the checkpoint anew (fastscnn quantize)"
            )


class FloatTrunk:
    """In float32; `matrix` and `taps` pack a convolution by name."""

    def __init__(
        self, matrix: Callable[[str], Any], taps: Callable[[str], Any], config: FastSCNNConfig
    ) -> None:
        self._config = config
        self._blocks = [
            (matrix(f"{name}.expand"), taps(f"{name}.depthwise"), matrix(f"{name}.project"))
            for name, _ in BOTTLENECKS
        ]
        dense = config.ffm_kernel == "dense"
        self._fusion_taps = None if dense else taps("feature_fusion.depthwise")
        self._fusion = matrix("feature_fusion.low"), matrix("feature_fusion.high")
        self._dsconvs = [
            (taps(f"{name}.depthwise"), matrix(f"{name}.pointwise")) for name in DSCONVS
        ]

    def bottleneck(self, i: int, x: int, n: int, h: int, w: int, y: int) -> Operation:
        """Block i of nine, from the n x h x w map x to y."""
        act = cpu_pack.ACTIVATIONS[self._config.bottleneck_activation]
        args = (x, n, h, w, BOTTLENECKS[i][1], *self._blocks[i], act, i % 3 > 0, y)
        return extension.load().inverted_residual, args

    def fusion(self, high: int, low: int, n: int, axes: Sequence[Any], y: int) -> Operation:
        """Both maps to y; behind a dense first convolution, only its ReLU is left of it."""
        args = (high, low, n, *axes, self._fusion_taps, self._config.ffm_dilation, *self._fusion, y)
        return extension.load().feature_fusion, args

    #: Whether `classifier` needs memory between its operations.
    between = False

    def classifier(
        self, x: int, _between: int, shape: tuple[int, int, int], last: Any, y: int
    ) -> list[tuple[str, Operation]]:
        """Both DSConvs and the 1x1 `last`, from the n x h x w map x to scores y, by name."""
        mid = cpu_pack.ACTIVATIONS["relu" if self._config.dsconv_relu else "none"]
        weights = (*self._dsconvs[0], *self._dsconvs[1], last)
        args = (x, *shape, *weights, mid, cpu_pack.ACTIVATIONS["relu"], y)
        return [("classifier", (extension.load().classifier, args))]


class Int8Trunk:
    """In int8 between float32 maps; `conv` gives a folded convolution by name."""

    def __init__(
        self, conv: Callable[[str], Conv], config: FastSCNNConfig, ranges: Ranges, isa: str
    ) -> None:
        check_ranges(ranges, config)
        self._config, self._isa = config, isa

        def block(name: str) -> cpu_int8.InvertedResidual:
            a, b, c = (f"{name}.{part}" for part in ("expand", "depthwise", "project"))
            spans = ranges[a], ranges[b], ranges[c]
            return cpu_int8.InvertedResidual(
                int8.inverted_residual_weights(conv(a), conv(b), conv(c), spans)
            )

        def dsconv(name: str) -> cpu_int8.Dsconv:
            a, b = f"{name}.depthwise", f"{name}.pointwise"
            return cpu_int8.Dsconv(int8.dsconv_weights(conv(a), conv(b), (ranges[a], ranges[b])))

        self._blocks = [block(name) for name, _ in BOTTLENECKS]
        low, high = "feature_fusion.low", "feature_fusion.high"
        first = None if config.ffm_kernel == "dense" else "feature_fusion.depthwise"
        self._fusion = cpu_int8.FeatureFusion(
            int8.feature_fusion_weights(
                *(conv(first) if first else None, conv(low), conv(high)),
                (ranges[first or low], ranges[low], ranges[high]),
            )
        )
        self._dsconvs = [dsconv(name) for name in DSCONVS]

    def bottleneck(self, i: int, x: int, n: int, h: int, w: int, y: int) -> Operation:
        """Block i of nine, from the n x h x w map x to y."""
        args = (x, n, h, w, BOTTLENECKS[i][1], *self._blocks[i].arguments, i % 3 > 0, y, self._isa)
        return extension.load().inverted_residual_int8, args

    def fusion(self, high: int, low: int, n: int, axes: Sequence[Any], y: int) -> Operation:
        """Both maps to y; behind a dense first convolution, only its ReLU is left of it."""
        dilation = self._config.ffm_dilation
        args = (high, low, n, *axes, dilation, *self._fusion.arguments, y, self._isa)
        return extension.load().feature_fusion_int8, args

    #: Whether `classifier` needs memory between its operations.
    between = True

    def classifier(
        self, x: int, between: int, shape: tuple[int, int, int], last: Any, y: int
    ) -> list[tuple[str, Operation]]:
        """Both DSConvs and the float 1x1 `last`, from the n x h x w map x to scores y, by name;
        `between` is a map of the size of x."""
        operation, relu = extension.load().dsconv_int8, cpu_pack.ACTIVATIONS["relu"]
        first, second = (d.arguments for d in self._dsconvs)
        return [
            (DSCONVS[0], (operation, (x, *shape, *first, relu, None, between, self._isa))),
            (
                f"{DSCONVS[1]}+scores",
                (operation, (between, *shape, *second, relu, last, y, self._isa)),
            ),
        ]
