"""The whole folded network on an NVIDIA GPU: frame in, labels, scores or probabilities out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import fastscnn_kernels
from fastscnn.config import FastSCNNConfig
from fastscnn.fold import Conv
from fastscnn_kernels import reference

Size = tuple[int, int]

#: (module, stride) of the nine bottlenecks in order.
BOTTLENECKS = tuple(
    (f"global_feature_extractor.bottleneck{stage}.{i}", 2 if i == 0 and stage < 3 else 1)
    for stage in (1, 2, 3)
    for i in range(3)
)


class GpuRuntime:
    """Runs `fold(model)` in `dtype` (float32 without TF32, float16 or bfloat16) on its device.

    `frame` is uint8 RGB N x H x W x 3; `x` is normalised float N x 3 x H x W; either goes wherever
    one is asked for. Every call returns new tensors. `ops` holds the operations, by the names of
    their twins.
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
        self._ops = ops
        self._folded = {name: _laid_out(conv, dtype) for name, conv in folded.items()}

    @property
    def device(self) -> torch.device:
        return self._folded["classifier.conv"].weight.device

    @property
    def weight_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for conv in self._folded.values() for t in conv)

    def labels(self, frame: Tensor, out_size: Size | None = None) -> Tensor:
        """uint8 labels N x H x W at `out_size` (default: the frame's)."""
        return self.outputs(frame, ("labels",), out_size)["labels"]

    def logits(self, x: Tensor) -> Tensor:
        """Logits N x num_classes x H x W at the size of `x`."""
        return self.outputs(x, ("logits",))["logits"]

    def probabilities(self, x: Tensor, out_size: Size | None = None) -> Tensor:
        """float32 softmax probabilities N x num_classes x H x W."""
        return self.outputs(x, ("probabilities",), out_size)["probabilities"]

    def outputs(
        self, x: Tensor, names: Sequence[str], out_size: Size | None = None
    ) -> dict[str, Tensor]:
        """Any of "labels", "confidence" (the float32 probability of each pixel's label),
        "probabilities" and "logits", from one pass; all at `out_size` (default: that of `x`)."""
        scores, size, align = (
            self.scores(x),
            out_size or frame_size(x),
            self.config.head_align_corners,
        )
        found: dict[str, Tensor] = {}
        if "labels" in names or "confidence" in names:
            found["labels"], found["confidence"] = self._ops.argmax_head(
                scores, size, align_corners=align, confidence="confidence" in names
            )
        if "probabilities" in names:
            found["probabilities"] = self._ops.softmax_head(scores, size, align_corners=align)
        if "logits" in names:
            found["logits"] = reference.resize(scores, size, align)
        return {name: found[name] for name in names}

    def scores(self, x: Tensor) -> Tensor:
        """Class scores at 1/8 of the size of `x`, N x num_classes x h x w, planar."""
        with torch.no_grad():
            high = self._learning_to_downsample(x)
            low = self._global_features(high)
            return self._classifier(self._feature_fusion(high, low))

    def _learning_to_downsample(self, x: Tensor) -> Tensor:
        y: Tensor = self._ops.learning_to_downsample(
            x,
            *self._folded["learning_to_downsample.conv"],
            self._dsconv("learning_to_downsample.dsconv1"),
            self._dsconv("learning_to_downsample.dsconv2"),
            mean=self.config.mean,
            std=self.config.std,
            padding=self.config.stem_padding,
            mid_activation=self._mid_activation,
        )
        return y

    def _global_features(self, x: Tensor) -> Tensor:
        for name, stride in BOTTLENECKS:
            parts = (self._folded[f"{name}.{part}"] for part in ("expand", "depthwise", "project"))
            tensors = [t for conv in parts for t in conv]
            x = self._ops.inverted_residual(
                x,
                *tensors,
                stride=stride,
                activation=self.config.bottleneck_activation,
                residual=stride == 1 and tensors[-1].shape[0] == x.shape[1],
            )
        branches = [
            self._folded[f"global_feature_extractor.ppm.branches.{i}"]
            for i in range(len(self.config.ppm_bins))
        ]
        y: Tensor = self._ops.pyramid_pool(
            x,
            [b.weight for b in branches],
            [b.bias for b in branches],
            *self._folded["global_feature_extractor.ppm.join"],
            order=self.config.ppm_order,
            align_corners=self.config.ppm_align_corners,
        )
        return y

    def _feature_fusion(self, high: Tensor, low: Tensor) -> Tensor:
        y: Tensor = self._ops.feature_fusion(
            high,
            low,
            *self._folded["feature_fusion.depthwise"],
            *self._folded["feature_fusion.low"],
            *self._folded["feature_fusion.high"],
            dilation=self.config.ffm_dilation,
            align_corners=self.config.ffm_align_corners,
        )
        return y

    def _classifier(self, x: Tensor) -> Tensor:
        for name in ("classifier.dsconv1", "classifier.dsconv2"):
            x = self._ops.dsconv(x, *self._dsconv(name), mid_activation=self._mid_activation)
        y: Tensor = self._ops.pointwise_conv(
            x, *self._folded["classifier.conv"], channels_last=False
        )
        return y

    def _dsconv(self, name: str) -> tuple[Tensor, ...]:
        return (*self._folded[f"{name}.depthwise"], *self._folded[f"{name}.pointwise"])

    @property
    def _mid_activation(self) -> str:
        return "relu" if self.config.dsconv_relu else "none"


def frame_size(x: Tensor) -> Size:
    """(H, W) of a uint8 frame N x H x W x 3 or of a normalised N x 3 x H x W tensor."""
    return (x.shape[1], x.shape[2]) if x.dtype == torch.uint8 else (x.shape[2], x.shape[3])


def _laid_out(conv: Conv, dtype: torch.dtype) -> Conv:
    """A copy in `dtype`, 3x3 weights stored as the kernels read them: tap by tap, then channels."""
    weight, bias = (t.detach().to(dtype, copy=True) for t in conv)
    if weight.shape[1] == 1 and weight.shape[-1] > 1:
        weight = weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    elif weight.shape[-1] > 1:
        weight = weight.contiguous(memory_format=torch.channels_last)
    return Conv(weight, bias)
