"""Training augmentation of section 3.1: resize 0.5 to 2, crop, flip, channel noise, brightness."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastscnn.classes import IGNORE


@dataclass(frozen=True)
class Augment:
    """Random geometry and colour of one image and its mask, all randomness from one generator.

    `crop` is (height, width) of the result; `scale` the range of the random resize. `brightness`
    is the largest relative change of all channels together, `channel_noise` that of each channel.
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    brightness: float = 0.3
    channel_noise: float = 0.1

    def __call__(self, image: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """uint8 3 x H x W and uint8 H x W to uint8 3 x crop and uint8 crop; outside is ignored."""

        def uniform(low: float, high: float) -> float:
            return low + (high - low) * float(torch.rand((), generator=generator))

        scale = 2 ** uniform(*(float(torch.tensor(s).log2()) for s in self.scale))
        x, y = self._window(image, mask, scale, uniform(0, 1), uniform(0, 1))
        if self.flip and uniform(0, 1) < 0.5:
            x, y = x.flip(-1), y.flip(-1)
        noise = 2 * torch.rand(3, 1, 1, generator=generator) - 1
        gain = 1 + uniform(-self.brightness, self.brightness) + self.channel_noise * noise
        return (x * gain).round_().clamp_(0, 255).byte(), y

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
        x = F.interpolate(
            image[None].float(), (th, tw), mode="bilinear", align_corners=False, antialias=True
        )[0]
        y = F.interpolate(mask[None, None].float(), (th, tw), mode="nearest-exact")[0, 0]
        oy, ox = round(top * (ch - th)), round(left * (cw - tw))
        pad = (ox, cw - tw - ox, oy, ch - th - oy)
        return F.pad(x, pad, value=127.0), F.pad(y, pad, value=IGNORE).byte()
