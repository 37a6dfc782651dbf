"""The whole folded network on an NVIDIA GPU: frame in, labels, scores or probabilities out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

import fastscnn_kernels
from fastscnn.inference.fold import BOTTLENECKS, Conv
from fastscnn.network.config import FastSCNNConfig
from fastscnn_kernels import reference
from fastscnn_kernels.composition import Composition

Size = tuple[int, int]


class GpuRuntime:
    """Runs `fold(model)` in `dtype` (float32 without TF32, float16 or bfloat16) on its device.

    `frame` is uint8 RGB N x H x W x 3; `x` is normalised float N x 3 x H x W; either goes wherever
    one is asked for. Every call returns new tensors. `ops` holds the operations, by the names of
    their twins: a `Composition`, or a module. Weights are laid out for it once, here.
    """

    def __init__(
        self,
        folded: Mapping[str, Conv],
        config: FastSCNNConfig,
        num_classes: int,
        dtype: torch.dtype,
        *,
        ops: Any = fastscnn_kernels,
    ) -> None:
        self.config = config
        self.num_classes = num_classes
        self.dtype = dtype
        self.ops = ops if isinstance(ops, Composition) else Composition(ops)
        weights = {name: _laid_out(conv, dtype) for name, conv in folded.items()}
        self.device = weights["classifier.conv"].weight.device
        self.weight_bytes = sum(t.nbytes for conv in weights.values() for t in conv)
        self._bind(weights)

    def _bind(self, weights: Mapping[str, Conv]) -> None:
        config, bind = self.config, self.ops.bind
        mid = "relu" if config.dsconv_relu else "none"

        def dsconv(name: str) -> tuple[Tensor, ...]:
            return (*weights[f"{name}.depthwise"], *weights[f"{name}.pointwise"])

        self._downsample = bind(
            "learning_to_downsample",
            *weights["learning_to_downsample.conv"],
            dsconv("learning_to_downsample.dsconv1"),
            dsconv("learning_to_downsample.dsconv2"),
            mean=config.mean,
            std=config.std,
            padding=config.stem_padding,
            mid_activation=mid,
        )
        self._bottlenecks = []
        for name, stride in BOTTLENECKS:
            parts = (weights[f"{name}.{part}"] for part in ("expand", "depthwise", "project"))
            tensors = [t for conv in parts for t in conv]
            self._bottlenecks.append(
                bind(
                    "inverted_residual",
                    *tensors,
                    stride=stride,
                    activation=config.bottleneck_activation,
                    residual=stride == 1 and tensors[0].shape[1] == tensors[-1].shape[0],
                )
            )
        extractor = "global_feature_extractor"
        branches = [weights[f"{extractor}.ppm.branches.{i}"] for i in range(len(config.ppm_bins))]
        self._pyramid = bind(
            "pyramid_pool",
            [b.weight for b in branches],
            [b.bias for b in branches],
            *weights[f"{extractor}.ppm.join"],
            order=config.ppm_order,
            align_corners=config.ppm_align_corners,
        )
        self._fusion = bind(
            "feature_fusion",
            *weights["feature_fusion.depthwise"],
            *weights["feature_fusion.low"],
            *weights["feature_fusion.high"],
            dilation=config.ffm_dilation,
            align_corners=config.ffm_align_corners,
        )
        first, second = (dsconv(f"classifier.dsconv{i}") for i in (1, 2))
        self._classifier1 = bind("dsconv", *first, mid_activation=mid)
        self._classifier2 = bind(
            "dsconv", *second, mid_activation=mid, head=weights["classifier.conv"]
        )

    def labels(self, frame: Tensor, out_size: Size | None = None) -> Tensor:
        """uint8 labels N x H x W at `out_size` (default: the frame's)."""
        return self.outputs(frame, ("labels",), out_size)["labels"]

    def logits(self, x: Tensor) -> Tensor:
        """Logits N x num_classes x H x W at the size of `x`."""
        return self.outputs(x, ("logits",))["logits"]

    def probabilities(self, x: Tensor, out_size: Size | None = None) -> Tensor:
        """float32 softmax probabilities N x num_classes x H x W."""
        return self.outputs(x, ("probabilities",), out_size)["probabilities"]

    def counters(self) -> Tensor | None:
        """What passes that follow one another may share (see `cuda.counters`), if CUDA C++ runs
        the bottlenecks; passes that may overlap need their own."""
        runs = any(block.implementation == "cuda" for block in self._bottlenecks)
        return self.ops.counters(self.device) if runs else None

    def outputs(
        self,
        x: Tensor,
        names: Sequence[str],
        out_size: Size | None = None,
        counters: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Any of "labels", "confidence" (the float32 probability of each pixel's label),
        "probabilities" and "logits", from one pass; all at `out_size` (default: that of `x`).
        `counters`: from `counters`, fresh ones by default (a launch of its own)."""
        size, align = out_size or frame_size(x), self.config.head_align_corners
        found: dict[str, Tensor] = {}
        with _on_device_of(x):
            scores = self.scores(x, counters)
            if "labels" in names or "confidence" in names:
                found["labels"], found["confidence"] = self.ops.argmax_head(
                    scores, size, align_corners=align, confidence="confidence" in names
                )
            if "probabilities" in names:
                found["probabilities"] = self.ops.softmax_head(scores, size, align_corners=align)
            if "logits" in names:
                found["logits"] = reference.resize(scores, size, align)
        return {name: found[name] for name in names}

    def scores(self, x: Tensor, counters: Tensor | None = None) -> Tensor:
        """Class scores at 1/8 of the size of `x`, N x num_classes x h x w, planar."""
        with torch.no_grad(), _on_device_of(x):
            high = self._downsample.run(x)
            low = self._pyramid.run(self._global_features(high, counters))
            y: Tensor = self._classifier1.run(self._fusion.run(high, low))
            scores: Tensor = self._classifier2.run(y)
            return scores

    def _global_features(self, x: Tensor, counters: Tensor | None) -> Tensor:
        """The bottlenecks; those in CUDA C++ share one set of counters."""
        if counters is None:
            counters = self.counters()
        for block in self._bottlenecks:
            shared = {"counters": counters} if block.implementation == "cuda" else {}
            x = block.run(x, **shared)
        return x


def frame_size(x: Tensor) -> Size:
    """(H, W) of a uint8 frame N x H x W x 3 or of a normalised N x 3 x H x W tensor."""
    return (x.shape[1], x.shape[2]) if x.dtype == torch.uint8 else (x.shape[2], x.shape[3])


def _on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Kernels go to the current device; in a trace the registered operations see to it."""
    return nullcontext() if torch.compiler.is_compiling() else torch.cuda.device_of(x)


def _laid_out(conv: Conv, dtype: torch.dtype) -> Conv:
    """A copy in `dtype`, 3x3 weights stored as the kernels read them: tap by tap, then channels."""
    weight, bias = (t.detach().to(dtype, copy=True) for t in conv)
    if weight.shape[1] == 1 and weight.shape[-1] > 1:
        weight = weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    elif weight.shape[-1] > 1:
        weight = weight.contiguous(memory_format=torch.channels_last)
    return Conv(weight, bias)
