"""Training augmentation of section 3.1: resize 0.5 to 2, crop, flip, channel noise, brightness."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from fastscnn.classes import IGNORE
from fastscnn.training.photometric import Photometric, Uniform

#: Grey level outside the image; masks are ignored there.
OUTSIDE = 127


def uniform(generator: torch.Generator) -> Uniform:
    """A function that draws one number from a range."""
    return lambda low, high: low + (high - low) * float(torch.rand((), generator=generator))


@dataclass(frozen=True)
class Augment:
    """Random geometry of one image and its mask, and its random colour as three factors.

    `crop` is (height, width) of the result; `scale` the range of the random resize. `brightness`
    is the largest relative change of all channels together, `channel_noise` that of each channel.
    The factors are for `normalize`, on the device that trains; `photometric` changes the crop.
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    brightness: float = 0.3
    channel_noise: float = 0.1
    photometric: Photometric = field(default_factory=Photometric)

    def __call__(
        self, image: Tensor, mask: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 3 x H x W and H x W to uint8 3 x crop and crop, and the factors (3)."""
        draw = uniform(generator)
        scale = 2 ** draw(math.log2(self.scale[0]), math.log2(self.scale[1]))
        x, y = self._window(image, mask, scale, draw(0, 1), draw(0, 1))
        if self.flip and draw(0, 1) < 0.5:
            x, y = x.flip(-1), y.flip(-1)
        x = self.photometric(x, draw, generator)
        return x, y, self.factors(draw, generator)

    def factors(self, draw: Uniform, generator: torch.Generator) -> Tensor:
        """Random factors of R, G and B."""
        noise = 2 * torch.rand(3, generator=generator) - 1
        return 1 + draw(-self.brightness, self.brightness) + self.channel_noise * noise

    def _window(
        self, image: Tensor, mask: Tensor, scale: float, top: float, left: float
    ) -> tuple[Tensor, Tensor]:
        """The crop from the resized pair; only the source pixels that it needs are resized."""
        (h, w), (ch, cw) = mask.shape, self.crop
        sh, sw = min(h, round(ch / scale)), min(w, round(cw / scale))  # source window
        y0, x0 = round(top * (h - sh)), round(left * (w - sw))
        image = image[:, y0 : y0 + sh, x0 : x0 + sw]
        mask = mask[y0 : y0 + sh, x0 : x0 + sw]
        th, tw = min(ch, max(1, round(sh * scale))), min(cw, max(1, round(sw * scale)))
        x = smooth_resize(image, (th, tw))
        y = F.interpolate(mask[None, None], (th, tw), mode="nearest-exact")[0, 0]
        oy, ox = round(top * (ch - th)), round(left * (cw - tw))
        pad = (ox, cw - tw - ox, oy, ch - th - oy)
        return F.pad(x, pad, value=OUTSIDE), F.pad(y, pad, value=IGNORE)


@dataclass(frozen=True)
class WindowAugment:
    """Random window, flip and colour of one image for classification (section 3.4).

    `scale` is the range of the window's side as a share of the image's; its aspect varies from
    3:4 to 4:3.
    """

    colors: Augment

    def __call__(self, image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """uint8 3 x H x W to uint8 3 x crop, and the colour factors (3)."""
        c, draw = self.colors, uniform(generator)
        h, w = image.shape[1:]
        side, aspect = draw(*c.scale), math.sqrt(2 ** draw(math.log2(3 / 4), math.log2(4 / 3)))
        sh, sw = (max(1, min(n, round(n * s))) for n, s in ((h, side / aspect), (w, side * aspect)))
        y0, x0 = round(draw(0, 1) * (h - sh)), round(draw(0, 1) * (w - sw))
        x = smooth_resize(image[:, y0 : y0 + sh, x0 : x0 + sw], c.crop)
        if c.flip and draw(0, 1) < 0.5:
            x = x.flip(-1)
        x = c.photometric(x, draw, generator)
        return x, c.factors(draw, generator)


def center_crop(image: Tensor, crop: tuple[int, int]) -> Tensor:
    """The middle of an image whose short side was resized to 8/7 of the crop's; uint8."""
    h, w = image.shape[1:]
    scale = max(crop[0] * 8 / 7 / h, crop[1] * 8 / 7 / w)
    x = smooth_resize(image, (max(crop[0], round(h * scale)), max(crop[1], round(w * scale))))
    y0, x0 = (x.shape[1] - crop[0]) // 2, (x.shape[2] - crop[1]) // 2
    return x[:, y0 : y0 + crop[0], x0 : x0 + crop[1]]


def smooth_resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of uint8 3 x H x W without aliasing."""
    return F.interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=True)[0]


def normalize(
    images: Tensor, factors: Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """uint8 N x 3 x H x W with colour factors N x 3 applied, as the network's float input."""

    def constant(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values, device=images.device)[:, None, None]

    x = images.float().mul_(factors.to(images.device)[:, :, None, None]).clamp_(0, 255)
    x.div_(255).sub_(constant(mean)).div_(constant(std))
    return x.contiguous(memory_format=torch.channels_last)
