"""Light and camera by chance: what the same street looks like at another hour, another lens."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image, ImageFilter
from torch import Tensor

Uniform = Callable[[float, float], float]

#: Weights of R, G and B in a pixel's brightness (ITU-R BT.601).
LUMA = torch.tensor([0.299, 0.587, 0.114])
#: A shadow's depth, as the share of light that it lets through.
SHADOW = (0.3, 0.8)


@dataclass(frozen=True)
class Photometric:
    """Random changes of an image's light and quality; the defaults change nothing.

    `gamma` is the range of the exponent on values of 0 to 1, drawn uniformly in its logarithm;
    `contrast` and `saturation` are largest relative changes about the mean and about grey; `hue` is
    the largest turn of the colours, in degrees. `noise` is the largest deviation of a pixel's
    noise in grey levels and `blur` that of a Gaussian in pixels; half of the images get each.
    `jpeg` is the lowest quality, 1 to 100, at which half of the images are compressed (0: none).
    `shadow` is the share of images that get the shadow of a straight edge.
    """

    gamma: tuple[float, float] = (1.0, 1.0)
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    jpeg: int = 0
    shadow: float = 0.0

    def __call__(self, image: Tensor, draw: Uniform, generator: torch.Generator) -> Tensor:
        """uint8 3 x H x W to the same, in the order light, camera, file."""
        if self == Photometric():
            return image
        return self._filed(self._lit(image, draw, generator), draw).contiguous()

    def _lit(self, image: Tensor, draw: Uniform, generator: torch.Generator) -> Tensor:
        x = image.float() / 255
        if self.shadow and draw(0, 1) < self.shadow:
            x = x * _shadow(x.shape[1], x.shape[2], draw)
        if self.gamma != (1.0, 1.0):
            x = x ** (2 ** draw(math.log2(self.gamma[0]), math.log2(self.gamma[1])))
        if self.contrast:
            mean = x.mean()
            x = mean + (x - mean) * (1 + draw(-self.contrast, self.contrast))
        if self.saturation or self.hue:
            matrix = color_matrix(
                1 + draw(-self.saturation, self.saturation), draw(-self.hue, self.hue)
            )
            x = torch.einsum("ij,jhw->ihw", matrix, x)
        if self.noise and draw(0, 1) < 0.5:
            x = x + draw(0, self.noise / 255) * torch.randn(x.shape, generator=generator)
        return x.mul(255).round().clamp_(0, 255).byte()

    def _filed(self, image: Tensor, draw: Uniform) -> Tensor:
        blur = draw(0, self.blur) if self.blur and draw(0, 1) < 0.5 else 0.0
        quality = round(draw(self.jpeg, 95)) if self.jpeg and draw(0, 1) < 0.5 else 0
        if not blur and not quality:
            return image
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        if blur:
            picture = picture.filter(ImageFilter.GaussianBlur(blur))
        if quality:
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=quality)
            picture = Image.open(file)
        h, w = image.shape[1:]
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        return pixels.view(h, w, 3).permute(2, 0, 1)


def color_matrix(saturation: float, hue: float) -> Tensor:
    """3 x 3 matrix on R, G, B: distance from grey times `saturation`, turned by `hue` degrees.

    Greys stay as they are: the colours turn about the grey axis.
    """
    grey = LUMA.expand(3, 3)
    stretched = saturation * torch.eye(3) + (1 - saturation) * grey
    c, s = math.cos(math.radians(hue)), math.sin(math.radians(hue))
    third, root = (1 - c) / 3, s / math.sqrt(3)
    a, b, d = c + third, third - root, third + root
    turned = torch.tensor([[a, b, d], [d, a, b], [b, d, a]])
    return turned @ stretched


def gamma_table(gamma: float) -> Tensor:
    """uint8 values 0 to 255 raised to `gamma` on the range 0 to 1."""
    return (255 * (torch.arange(256) / 255) ** gamma).round().byte()


def _shadow(height: int, width: int, draw: Uniform) -> Tensor:
    """Light that passes, height x width: less on one side of a soft straight edge."""
    angle = draw(0, 2 * math.pi)
    y = torch.arange(height)[:, None] - draw(0, 1) * height
    x = torch.arange(width)[None] - draw(0, 1) * width
    distance = y * math.sin(angle) + x * math.cos(angle)
    dark = torch.sigmoid(distance / draw(1, 8))
    return 1 - (1 - draw(*SHADOW)) * dark
