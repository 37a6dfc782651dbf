"""Networks and frames for the tests of exported files."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from fastscnn.network.config import PRESETS
from fastscnn.network.model import FastSCNN


@cache
def network(preset: str, num_classes: int = 19) -> FastSCNN:
    """Seeded, with batch statistics and classes about as frequent as another."""
    torch.manual_seed(3)
    net = FastSCNN(num_classes, config=PRESETS[preset])
    with torch.no_grad():
        for _ in range(8):
            net(torch.randn(4, 3, 64, 96))
        net.eval()
        scores = net.scores(torch.randn(2, 3, 64, 128))
        net.classifier.conv.weight *= (5 / scores.std(dim=(0, 2, 3))).reshape(-1, 1, 1, 1)
        net.classifier.conv.bias -= net.scores(torch.randn(2, 3, 64, 128)).mean(dim=(0, 2, 3))
    return net.requires_grad_(False)


def frames(n: int, h: int, w: int, seed: int = 0) -> np.ndarray:
    """uint8 N x H x W x 3: smooth shapes with noise on top."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 5, 7, generator=generator)
    noise = torch.randn(n, 3, h, w, generator=generator)
    smooth = F.interpolate(coarse, (h, w), mode="bicubic") + 0.05 * noise
    return (smooth.clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
