"""The whole folded network on the CPU: frame in, labels, scores, logits or probabilities out."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastscnn.inference.cpu_trunk import FloatTrunk, Int8Trunk, Ranges
from fastscnn.inference.fold import BOTTLENECKS, Conv
from fastscnn.network.config import FastSCNNConfig
from fastscnn_kernels import extension
from fastscnn_kernels.cpu import operations as cpu
from fastscnn_kernels.cpu import pack as cpu_pack

Size = tuple[int, int]

#: A named operation with everything bound but the thread count.
Step = tuple[str, Callable[[int], None]]


class CpuRuntime:
    """Runs `fold(model)` on the CPU in float32, or, with `ranges` (`fastscnn.quantize.calibrate`),
    with its trunk in int8.

    `frame` is uint8 RGB N x H x W x 3; `x` is normalised float N x 3 x H x W; either goes wherever
    one is asked for. Every call returns new tensors, and the result does not depend on `threads`
    (default: torch's setting). Weights are packed once; the maps between the operations are
    allocated at the first frame of a size and kept for the last `max_sizes` sizes. A runtime may be
    shared by Python threads, which then take turns; several runtimes run in parallel.
    """

    def __init__(
        self,
        folded: Mapping[str, Conv],
        config: FastSCNNConfig,
        num_classes: int,
        *,
        isa: str = "",
        max_sizes: int = 2,
        ranges: Ranges | None = None,
    ) -> None:
        self.config = config
        self.num_classes = num_classes
        self._isa = isa
        self._max_sizes = max_sizes
        self.weight_bytes = sum(t.nbytes for conv in folded.values() for t in conv)
        self._weights = _Weights(folded, config, isa, ranges)
        self._workspace = extension.load().Workspace()
        self._plans: OrderedDict[tuple[int, int, int], _Plan] = OrderedDict()
        self._lock = threading.Lock()

    def labels(
        self, frame: Tensor, out_size: Size | None = None, threads: int | None = None
    ) -> Tensor:
        """uint8 labels N x H x W at `out_size` (default: the frame's)."""
        return self.outputs(frame, ("labels",), out_size, threads)["labels"]

    def logits(self, x: Tensor, threads: int | None = None) -> Tensor:
        """float32 logits N x num_classes x H x W at the size of `x`."""
        return self.outputs(x, ("logits",), None, threads)["logits"]

    def probabilities(
        self, x: Tensor, out_size: Size | None = None, threads: int | None = None
    ) -> Tensor:
        """float32 softmax probabilities N x num_classes x H x W."""
        return self.outputs(x, ("probabilities",), out_size, threads)["probabilities"]

    def outputs(
        self,
        x: Tensor,
        names: Sequence[str],
        out_size: Size | None = None,
        threads: int | None = None,
    ) -> dict[str, Tensor]:
        """Any of "labels", "confidence" (the float32 probability of each pixel's label),
        "probabilities" and "logits", from one pass; all at `out_size` (default: that of `x`)."""
        size, align = out_size or _size(x), self.config.head_align_corners
        found: dict[str, Tensor] = {}
        with self._lock:
            scores = self._scores(x, threads)
            how: Any = {"threads": threads, "isa": self._isa, "workspace": self._workspace}
            if "labels" in names or "confidence" in names:
                sure = "confidence" in names
                labels, top = cpu.argmax_head(
                    scores, size, align_corners=align, confidence=sure, **how
                )
                found["labels"] = labels
                if top is not None:
                    found["confidence"] = top
            if "probabilities" in names:
                found["probabilities"] = cpu.softmax_head(scores, size, align_corners=align, **how)
            if "logits" in names:
                found["logits"] = cpu.resize(scores, size, align, **how)
        return {name: found[name] for name in names}

    def scores(self, x: Tensor, threads: int | None = None) -> Tensor:
        """float32 class scores at 1/8 of the size of `x` or of a uint8 frame, channels_last."""
        with self._lock:
            return self._scores(x, threads)

    def _scores(self, x: Tensor, threads: int | None) -> Tensor:
        threads = cpu_pack.check_threads("scores", threads)
        steps, scores = self.steps(x)
        for _, run in steps:
            run(threads)
        return scores

    def steps(self, x: Tensor) -> tuple[list[Step], Tensor]:
        """The operations that `scores(x)` runs, by name and in order, and the tensor they fill.

        For looking at single operations; they share the runtime's maps, so nothing else may run
        meanwhile.
        """
        w = self._weights
        stem, source, size = cpu_pack.stem(
            *("scores", x, w.stem, self.config.mean, self.config.std),
            *(self.config.stem_padding, "relu"),
        )
        n = source.shape[0]
        h, wide = (cpu_pack.strided(cpu_pack.strided(s, 2), 2) for s in size)
        scores = cpu_pack.empty_nhwc(n, self.num_classes, h, wide)
        return self._plan(n, h, wide).steps(stem, source, scores), scores

    def workspace_bytes(self) -> int:
        """Memory held besides the weights: scratch and the maps of the sizes seen last."""
        return self._workspace.bytes + sum(p.bytes for p in self._plans.values())

    def _plan(self, n: int, h: int, w: int) -> _Plan:
        key = (n, h, w)
        plan = self._plans.pop(key, None)
        if plan is None:
            while len(self._plans) >= self._max_sizes:
                self._plans.popitem(last=False)
            plan = _Plan(self._weights, self.config, self._workspace, n, h, w)
        self._plans[key] = plan
        return plan


class _Weights:
    """The network's convolutions, packed for one instruction set."""

    def __init__(
        self,
        folded: Mapping[str, Conv],
        config: FastSCNNConfig,
        isa: str,
        ranges: Ranges | None = None,
    ) -> None:
        def conv(name: str) -> Conv:
            return Conv(*(t.detach().float() for t in folded[name]))

        def matrix(name: str, kernel: int = 1) -> Any:
            return cpu_pack.matrix("CpuRuntime", f"{name}.", *conv(name), isa, kernel)

        def taps(name: str) -> Any:
            return cpu_pack.taps("CpuRuntime", f"{name}.", *conv(name), isa)

        def dsconv(name: str) -> tuple[Any, Any]:
            return taps(f"{name}.depthwise"), matrix(f"{name}.pointwise")

        extractor = "global_feature_extractor"
        self.stem = matrix("learning_to_downsample.conv", kernel=3)
        self.downsample = [dsconv(f"learning_to_downsample.dsconv{i}") for i in (1, 2)]
        branches = [conv(f"{extractor}.ppm.branches.{i}") for i in range(len(config.ppm_bins))]
        self.pyramid = cpu_pack.Pyramid(
            "CpuRuntime",
            [b.weight for b in branches],
            [b.bias for b in branches],
            *conv(f"{extractor}.ppm.join"),
            config.ppm_order,
            128,
            isa,
        )
        self.dense = matrix("feature_fusion.depthwise") if config.ffm_kernel == "dense" else None
        self.last = matrix("classifier.conv")
        self.trunk = (
            Int8Trunk(conv, config, ranges, isa) if ranges else FloatTrunk(matrix, taps, config)
        )


class _Plan:
    """The operations for one size, with their maps; h x w is the size at 1/8."""

    def __init__(
        self, weights: _Weights, config: FastSCNNConfig, workspace: Any, n: int, h: int, w: int
    ) -> None:
        self._maps: list[Tensor] = []
        self._weights, self._config, self._workspace = weights, config, workspace
        self._shape = (n, h, w)
        self._mid = cpu_pack.bounds("", "", "relu" if config.dsconv_relu else "none")
        self._high = self._map(64, h, w)
        self._steps, low, low_h, low_w = self._global_features(h, w)
        self._steps += self._fusion(low, low_h, low_w)

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for t in self._maps)

    def steps(self, stem: Any, source: Tensor, scores: Tensor) -> list[Step]:
        """From `source`, to which `stem` points, to scores."""
        ext, w, relu = extension.load(), self._weights, cpu_pack.ACTIVATIONS["relu"]

        def first(threads: int, _alive: Tensor = source) -> None:
            ext.learning_to_downsample(
                *(stem, *w.downsample[0], *w.downsample[1], self._mid, relu, self._high),
                *(threads, self._workspace),
            )

        classifier = w.trunk.classifier(
            self._fused, self._between, self._shape, w.last, scores.data_ptr()
        )
        last = [self._step(name, *operation) for name, operation in classifier]
        return [("learning_to_downsample", first), *self._steps, *last]

    def _map(self, channels: int, h: int, w: int) -> int:
        """Address of a new map that lives as long as the plan."""
        self._maps.append(torch.empty(self._shape[0] * h * w * channels, dtype=torch.float32))
        return self._maps[-1].data_ptr()

    def _step(self, name: str, operation: Callable[..., None], args: tuple[Any, ...]) -> Step:
        return name, lambda threads: operation(*args, threads, self._workspace)

    def _global_features(self, h: int, w: int) -> tuple[list[Step], int, int, int]:
        """Steps from the high-resolution map to the pooled global map, its address and size."""
        ext, n = extension.load(), self._shape[0]
        steps: list[Step] = []
        x = self._high
        for i in range(9):
            out_h, out_w = (cpu_pack.strided(size, BOTTLENECKS[i][1]) for size in (h, w))
            y = self._map((64, 96, 128)[i // 3], out_h, out_w)
            block = self._weights.trunk.bottleneck(i, x, n, h, w, y)
            steps.append(self._step(f"bottleneck{i // 3 + 1}.{i % 3}", *block))
            x, h, w = y, out_h, out_w
        y = self._map(128, h, w)
        pyramid = self._weights.pyramid.arguments(h, w, self._config.ppm_align_corners)
        args = (x, n, h, w, 128, *pyramid, y)
        steps.append(self._step("pyramid_pool", ext.pyramid_pool, args))
        return steps, y, h, w

    def _fusion(self, low: int, low_h: int, low_w: int) -> list[Step]:
        """Steps from both maps to the fused one, and the memory of the classifier."""
        ext, weights, config = extension.load(), self._weights, self._config
        n, h, w = self._shape
        steps: list[Step] = []
        if weights.dense:  # commutes with the sampling
            x, low = low, self._map(128, low_h, low_w)
            args = (x, 0, n * low_h * low_w, weights.dense, cpu_pack.ACTIVATIONS["none"], low)
            steps.append(self._step("feature_fusion.dense", ext.pointwise_conv, args))
        axes = [ext.Axis(*s, config.ffm_align_corners) for s in ((low_h, h), (low_w, w))]
        self._fused = self._map(128, h, w)
        self._between = self._map(128, h, w) if weights.trunk.between else 0
        fusion = weights.trunk.fusion(self._high, low, n, axes, self._fused)
        return [*steps, self._step("feature_fusion", *fusion)]


def _size(x: Tensor) -> Size:
    """(H, W) of a uint8 frame N x H x W x 3 or of a normalised N x 3 x H x W tensor."""
    return (x.shape[1], x.shape[2]) if x.dtype == torch.uint8 else (x.shape[2], x.shape[3])
