"""What the network is built of: convolution with batch norm, DSConv, bottleneck; N x C x H x W."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastscnn.network.config import Activation, FastSCNNConfig


def activate(x: Tensor, activation: Activation) -> Tensor:
    if activation == "relu":
        return F.relu(x)
    if activation == "relu6":
        return F.relu6(x)
    return x


def resize(x: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Bilinear sampling of N x C x h x w to `size`."""
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def pool(x: Tensor, bins: int) -> Tensor:
    """Adaptive average pooling of N x C x h x w to bins x bins.

    In `torch.onnx.export` as a product with matrices of shares: ONNX has no such operation.
    """
    if not torch.onnx.is_in_onnx_export():
        return F.adaptive_avg_pool2d(x, bins)
    rows, columns = (_shares(x, axis, bins) for axis in (2, 3))
    return rows @ x @ columns.t()


def _shares(x: Tensor, axis: int, bins: int) -> Tensor:
    """What each of an axis's n cells gives to each bin: bins x n.

    Bin i of b has the cells from floor(i n / b) to ceil((i + 1) n / b).
    """
    size = x.shape[axis]
    cell = torch.arange(size, device=x.device)
    edges = torch.arange(bins, device=x.device).unsqueeze(1) * size
    begin = torch.div(edges, bins, rounding_mode="floor")
    end = torch.div(edges + size + bins - 1, bins, rounding_mode="floor")
    inside = (cell >= begin) & (cell < end)
    return inside.to(x.dtype) / (end - begin).to(x.dtype)


def same_padding(size: int) -> tuple[int, int]:
    """Zeros before and after an axis for 3x3 with stride 2 under TensorFlow's SAME rule."""
    return size % 2, 1


class ConvBN(nn.Module):
    """Convolution, batch norm (optional), activation (optional); "same" pads as TensorFlow does."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        config: FastSCNNConfig,
        *,
        stride: int = 1,
        padding: int | str = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        bn: bool = True,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.same = padding == "same"
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=0 if isinstance(padding, str) else padding,
            dilation=dilation,
            groups=groups,
            bias=bias or not bn,
        )
        self.bn = (
            nn.BatchNorm2d(out_channels, eps=config.bn_eps, momentum=config.bn_momentum)
            if bn
            else None
        )
        self.activation: Activation = activation

    def forward(self, x: Tensor) -> Tensor:
        if self.same:
            top, bottom = same_padding(x.shape[2])
            left, right = same_padding(x.shape[3])
            x = F.pad(x, (left, right, top, bottom))
        x = self.conv(x)
        if self.bn is not None:
            x = self.bn(x)
        return activate(x, self.activation)


class DSConv(nn.Module):
    """Depthwise 3x3 and pointwise convolution (section 2.2)."""

    def __init__(
        self, in_channels: int, out_channels: int, config: FastSCNNConfig, *, stride: int = 1
    ) -> None:
        super().__init__()
        bias = "dsconv" in config.conv_bias
        self.depthwise = ConvBN(
            in_channels,
            in_channels,
            3,
            config,
            stride=stride,
            padding=1,
            groups=in_channels,
            bias=bias,
            activation="relu" if config.dsconv_relu else "none",
        )
        self.pointwise = ConvBN(in_channels, out_channels, 1, config, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class Bottleneck(nn.Module):
    """Inverted residual block (Table 2) with expansion 6."""

    def __init__(
        self, in_channels: int, out_channels: int, config: FastSCNNConfig, *, stride: int = 1
    ) -> None:
        super().__init__()
        hidden = 6 * in_channels
        f = config.bottleneck_activation
        self.expand = ConvBN(in_channels, hidden, 1, config, activation=f)
        self.depthwise = ConvBN(
            hidden, hidden, 3, config, stride=stride, padding=1, groups=hidden, activation=f
        )
        self.project = ConvBN(hidden, out_channels, 1, config, activation="none")
        self.stride = stride
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y
