"""The reference Fast-SCNN in plain PyTorch, in the order of the paper (Poudel et al. 2019).

One class per box of the paper's Figure 1, built of `blocks`. Activations are N x C x H x W.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastscnn.network.blocks import Bottleneck, ConvBN, DSConv, activate, pool, resize
from fastscnn.network.config import Activation, FastSCNNConfig
from fastscnn.network.segment import MIN_SIZE, Segmenter


class LearningToDownsample(nn.Module):
    """Frame to 1/8 of its size, 64 channels (Table 1, rows 1 to 3)."""

    def __init__(self, config: FastSCNNConfig) -> None:
        super().__init__()
        self.conv = ConvBN(
            3,
            32,
            3,
            config,
            stride=2,
            padding=config.stem_padding,
            bias="stem" in config.conv_bias,
        )
        self.dsconv1 = DSConv(32, 48, config, stride=2)
        self.dsconv2 = DSConv(48, 64, config, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.dsconv2(self.dsconv1(self.conv(x)))


class PyramidPooling(nn.Module):
    """Pools to the bins, mixes, samples back, joins with the input ([29] of the paper)."""

    def __init__(self, config: FastSCNNConfig, channels: int = 128) -> None:
        super().__init__()
        bias = "ppm" in config.conv_bias
        self.bins = config.ppm_bins
        self.order = config.ppm_order
        self.align_corners = config.ppm_align_corners
        branch = channels // len(self.bins)
        self.branches = nn.ModuleList(
            ConvBN(channels, branch, 1, config, bias=bias) for _ in self.bins
        )
        k = config.ppm_join_kernel
        self.join = ConvBN(2 * channels, channels, k, config, padding=k // 2, bias=bias)

    def check_batch(self, x: Tensor) -> None:
        """Batch norm of the 1x1 branch needs two images to train."""
        if self.training and x.shape[0] < 2:
            raise ValueError(
                "training needs a batch of 2 or more: the 1x1 pooling branch has one value per "
                "image and channel, and batch norm needs two; got a batch of 1 (use model.eval() "
                "or a larger batch, drop_last=True in the DataLoader)"
            )

    def forward(self, x: Tensor) -> Tensor:
        self.check_batch(x)
        size = (x.shape[2], x.shape[3])
        maps = {0: x}
        for bins, branch in zip(self.bins, self.branches, strict=True):
            maps[bins] = resize(branch(pool(x, bins)), size, self.align_corners)
        return self.join(torch.cat([maps[b] for b in self.order], dim=1))


class GlobalFeatureExtractor(nn.Module):
    """Nine bottlenecks to 1/32, then pyramid pooling (Table 1, rows 4 to 7)."""

    def __init__(self, config: FastSCNNConfig) -> None:
        super().__init__()

        def stage(cin: int, cout: int, stride: int) -> nn.Sequential:
            first = Bottleneck(cin, cout, config, stride=stride)
            return nn.Sequential(first, *(Bottleneck(cout, cout, config) for _ in range(2)))

        self.bottleneck1 = stage(64, 64, 2)
        self.bottleneck2 = stage(64, 96, 2)
        self.bottleneck3 = stage(96, 128, 1)
        self.ppm = PyramidPooling(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.ppm(self.bottleneck3(self.bottleneck2(self.bottleneck1(x))))


class FeatureFusion(nn.Module):
    """Adds the upsampled global features to the high-resolution ones (Table 3).

    `zero_skip` leaves the high-resolution branch out, as in the ablation of section 3.2.
    """

    def __init__(self, config: FastSCNNConfig, *, zero_skip: bool = False) -> None:
        super().__init__()
        bias = "ffm" in config.conv_bias
        self.align_corners = config.ffm_align_corners
        self.zero_skip = zero_skip
        if config.ffm_kernel == "dense":
            self.depthwise = ConvBN(128, 128, 1, config)
        else:
            d = config.ffm_dilation
            self.depthwise = ConvBN(128, 128, 3, config, padding=d, dilation=d, groups=128)
        self.low = ConvBN(128, 128, 1, config, bias=bias, bn=config.ffm_bn, activation="none")
        self.high = ConvBN(64, 128, 1, config, bias=bias, bn=config.ffm_bn, activation="none")
        self.activation: Activation = "relu"  # of the sum

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        low = resize(low, (high.shape[2], high.shape[3]), self.align_corners)
        y = self.low(self._filter(low))
        if not self.zero_skip:
            y = y + self.high(high)
        return activate(y, self.activation)

    def _filter(self, low: Tensor) -> Tensor:
        # torch 2.13 computes a wrong bf16 weight gradient for a dilated depthwise convolution on
        # the CPU (values up to 1e31), so this layer stays in fp32 there under autocast.
        if low.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return self.depthwise(low.float())
        return self.depthwise(low)


class Classifier(nn.Module):
    """Two DSConvs, dropout, and the 1x1 convolution to class scores (Table 1, last rows)."""

    def __init__(self, num_classes: int, config: FastSCNNConfig) -> None:
        super().__init__()
        self.dsconv1 = DSConv(128, 128, config)
        self.dsconv2 = DSConv(128, 128, config)
        self.dropout = nn.Dropout(config.dropout)
        self.conv = nn.Conv2d(128, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.dropout(self.dsconv2(self.dsconv1(x))))


class AuxiliaryHead(nn.Sequential):
    """Small head for an auxiliary loss (section 3.1): 3x3 to 32 channels, dropout, 1x1."""

    def __init__(self, in_channels: int, num_classes: int, config: FastSCNNConfig) -> None:
        super().__init__(
            ConvBN(in_channels, 32, 3, config, padding=1),
            nn.Dropout(config.dropout),
            nn.Conv2d(32, num_classes, 1),
        )


class Backbone(nn.Module):
    """Learning to downsample and global features: what segmentation and pre-training share."""

    def __init__(self, config: FastSCNNConfig | None) -> None:
        super().__init__()
        self.config = config or FastSCNNConfig.paper()
        self.learning_to_downsample = LearningToDownsample(self.config)
        self.global_feature_extractor = GlobalFeatureExtractor(self.config)

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """High-resolution features (1/8, 64 channels) and global features (1/32, 128 channels)."""
        check_input(x)
        high = self.learning_to_downsample(x)
        return high, self.global_feature_extractor(high)


class FastSCNN(Segmenter, Backbone):
    """Fast-SCNN for semantic segmentation (Table 1 of the paper).

    `forward` takes normalised RGB, N x 3 x H x W with H, W >= 32 (N >= 2 in training), and
    returns logits N x num_classes x H x W. With `aux=True` the two auxiliary heads of section 3.1
    exist and `forward_aux` returns their logits too. `zero_skip=True` is the ablation of
    section 3.2. Up to 255 classes; label 255 means "ignore" everywhere.
    """

    def __init__(
        self,
        num_classes: int = 19,
        *,
        config: FastSCNNConfig | None = None,
        aux: bool = False,
        zero_skip: bool = False,
    ) -> None:
        check_num_classes(num_classes)
        super().__init__(config)
        self.num_classes = num_classes
        self.feature_fusion = FeatureFusion(self.config, zero_skip=zero_skip)
        self.classifier = Classifier(num_classes, self.config)
        self.aux = (
            nn.ModuleDict(
                {
                    "high": AuxiliaryHead(64, num_classes, self.config),
                    "low": AuxiliaryHead(128, num_classes, self.config),
                }
            )
            if aux
            else None
        )

    def scores(self, x: Tensor) -> Tensor:
        """Class scores at 1/8 of the input size, N x num_classes x h x w."""
        high, low = self._features(x)
        return self.classifier(self.feature_fusion(high, low))

    def forward(self, x: Tensor) -> Tensor:
        return self._upsample(self.scores(x), x)

    def forward_aux(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, auxiliary logits after learning to downsample, and after global features.

        All N x num_classes x H x W. Needs `aux=True`.
        """
        a, b, c = (self._upsample(s, x) for s in self.scores_aux(x))
        return a, b, c

    def scores_aux(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward_aux`, each at its own resolution: 1/8, 1/8 and 1/32 of the input."""
        if self.aux is None:
            raise RuntimeError(
                "auxiliary scores need auxiliary heads: build the model with aux=True"
            )
        high, low = self._features(x)
        main = self.classifier(self.feature_fusion(high, low))
        return main, self.aux["high"](high), self.aux["low"](low)

    def _upsample(self, scores: Tensor, x: Tensor) -> Tensor:
        return resize(scores, (x.shape[2], x.shape[3]), self.config.head_align_corners)


class FastSCNNClassifier(Backbone):
    """Image classifier for pre-training (section 3.4): fusion replaced by average pooling.

    `forward` takes normalised RGB N x 3 x H x W and returns logits N x num_classes. Its
    `learning_to_downsample` and `global_feature_extractor` load into `FastSCNN` as they are.
    """

    def __init__(self, num_classes: int = 1000, *, config: FastSCNNConfig | None = None) -> None:
        super().__init__(config)
        self.num_classes = num_classes
        self.dropout = nn.Dropout(self.config.dropout)
        self.linear = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        _, low = self._features(x)
        return self.linear(self.dropout(low.mean(dim=(2, 3))))


def check_num_classes(num_classes: int) -> None:
    if not 1 <= num_classes <= 255:
        raise ValueError(
            f"num_classes={num_classes}: expected 1..255 (labels are uint8 and 255 means ignore)"
        )


def check_input(x: Tensor) -> None:
    if x.dim() != 4 or x.shape[1] != 3:
        raise ValueError(
            f"x has shape {tuple(x.shape)}: expected N x 3 x H x W, normalised RGB "
            "(model.preprocess(frame) makes it from a uint8 frame)"
        )
    if not x.is_floating_point():
        raise TypeError(
            f"x has dtype {x.dtype}: expected normalised floating point; "
            "use model.segment(frame) or model.preprocess(frame) for uint8 frames"
        )
    n, _, h, w = x.shape
    if n == 0:
        raise ValueError("x has a batch of 0 images: expected 1 or more")
    if h < MIN_SIZE or w < MIN_SIZE:
        raise ValueError(
            f"x is {h}x{w}: expected height and width of at least {MIN_SIZE}; "
            f"resize or pad it to {max(h, MIN_SIZE)}x{max(w, MIN_SIZE)}"
        )
