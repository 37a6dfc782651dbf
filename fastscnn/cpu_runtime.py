"""The whole folded network on the CPU: frame in, labels, scores, logits or probabilities out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastscnn.config import FastSCNNConfig
from fastscnn.fold import Conv
from fastscnn_kernels import cpu, reference

Size = tuple[int, int]


class CpuRuntime:
    """Runs `fold(model)` in float32 on the CPU.

    `frame` is uint8 RGB N x H x W x 3; `x` is normalised float N x 3 x H x W. Every call returns
    new tensors, and the result does not depend on `threads` (default: torch's setting).
    """

    def __init__(
        self,
        folded: Mapping[str, Conv],
        config: FastSCNNConfig,
        num_classes: int,
        *,
        isa: str = "",
    ) -> None:
        self.config = config
        self.num_classes = num_classes
        self._isa = isa
        self._folded = {k: Conv(*(t.detach().float() for t in v)) for k, v in folded.items()}

    def labels(
        self,
        frame: Tensor,
        out_size: Size | None = None,
        threads: int | None = None,
        confidence: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """uint8 labels N x H x W at `out_size` (default: the frame's) and, where asked for, the
        float32 probability of each pixel's label, else None. `frame` may also be an `x`."""
        return cpu.argmax_head(
            self.scores(frame, threads),
            out_size or _size(frame),
            align_corners=self.config.head_align_corners,
            confidence=confidence,
            threads=threads,
            isa=self._isa,
        )

    def logits(self, x: Tensor, threads: int | None = None) -> Tensor:
        """float32 logits N x num_classes x H x W at the size of `x` (or of a uint8 frame)."""
        return cpu.resize(
            self.scores(x, threads),
            _size(x),
            self.config.head_align_corners,
            threads=threads,
            isa=self._isa,
        )

    def probabilities(
        self, x: Tensor, out_size: Size | None = None, threads: int | None = None
    ) -> Tensor:
        """float32 softmax probabilities N x num_classes x H x W."""
        return cpu.softmax_head(
            self.scores(x, threads),
            out_size or _size(x),
            align_corners=self.config.head_align_corners,
            threads=threads,
            isa=self._isa,
        )

    def scores(self, x: Tensor, threads: int | None = None) -> Tensor:
        """float32 class scores at 1/8 of the size of `x` or of a uint8 frame, channels_last."""
        with torch.no_grad():
            return self._scores(x)

    def _scores(self, x: Tensor) -> Tensor:
        config, folded = self.config, self._folded
        mid = "relu" if config.dsconv_relu else "none"

        def ds(name: str) -> tuple[Tensor, ...]:
            return (*folded[f"{name}.depthwise"], *folded[f"{name}.pointwise"])

        def stage(x: Tensor, name: str, stride: int) -> Tensor:
            for i in range(3):
                block = f"global_feature_extractor.{name}.{i}"
                tensors = [
                    t
                    for part in ("expand", "depthwise", "project")
                    for t in folded[f"{block}.{part}"]
                ]
                x = reference.inverted_residual(
                    x,
                    *tensors,
                    stride=stride if i == 0 else 1,
                    activation=config.bottleneck_activation,
                    residual=i > 0,
                )
            return x

        high = reference.learning_to_downsample(
            x,
            *folded["learning_to_downsample.conv"],
            ds("learning_to_downsample.dsconv1"),
            ds("learning_to_downsample.dsconv2"),
            mean=config.mean,
            std=config.std,
            padding=config.stem_padding,
            mid_activation=mid,
        )
        low = stage(stage(stage(high, "bottleneck1", 2), "bottleneck2", 2), "bottleneck3", 1)
        branches = [folded[f"global_feature_extractor.ppm.branches.{i}"] for i in range(4)]
        low = reference.pyramid_pool(
            low,
            [b.weight for b in branches],
            [b.bias for b in branches],
            *folded["global_feature_extractor.ppm.join"],
            order=config.ppm_order,
            align_corners=config.ppm_align_corners,
        )
        y = reference.feature_fusion(
            high,
            low,
            *folded["feature_fusion.depthwise"],
            *folded["feature_fusion.low"],
            *folded["feature_fusion.high"],
            dilation=config.ffm_dilation,
            align_corners=config.ffm_align_corners,
        )
        for name in ("classifier.dsconv1", "classifier.dsconv2"):
            y = reference.dsconv(y, *ds(name), mid_activation=mid)
        return reference.pointwise_conv(y, *folded["classifier.conv"])


def _size(x: Tensor) -> Size:
    """(H, W) of a uint8 frame N x H x W x 3 or of a normalised N x 3 x H x W tensor."""
    return (x.shape[1], x.shape[2]) if x.dtype == torch.uint8 else (x.shape[2], x.shape[3])
