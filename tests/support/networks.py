"""Networks and frames that many tests use."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastscnn.inference.cpu_runtime import CpuRuntime
from fastscnn.inference.fold import fold
from fastscnn.inference.fused import FusedFastSCNN
from fastscnn.network.blocks import Bottleneck
from fastscnn.network.config import PRESETS, FastSCNNConfig
from fastscnn.network.model import FastSCNN


def network(preset: str, classes: int = 19) -> FastSCNN:
    """Random weights whose batch norms are not the identity, so that folding matters."""
    torch.manual_seed(0)
    model = FastSCNN(classes, config=PRESETS[preset]).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, Bottleneck) and preset == "segmentron":  # so that ReLU6 limits
            for part, scale in (module.expand, 20), (module.depthwise, 20), (module.project, 0.1):
                assert part.bn is not None
                nn.init.constant_(part.bn.weight, scale)
    return model


def runtime(model: FastSCNN, isa: str = "") -> CpuRuntime:
    return CpuRuntime(fold(model), model.config, model.num_classes, isa=isa)


def frames(n: int, h: int, w: int) -> Tensor:
    return torch.randint(0, 256, (n, h, w, 3), dtype=torch.uint8)


def randomize(model: FastSCNN) -> None:
    """Statistics as after training: random affine parameters, running means that fit the data,
    scores that depend on the picture. Folding and labels then have something to do."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in norms:
        nn.init.uniform_(m.weight, 0.5, 1.5)
        nn.init.normal_(m.bias, std=0.2)
        m.momentum = 1.0
    nn.init.normal_(model.classifier.conv.weight, std=0.1)
    with torch.no_grad():
        noise = torch.randn(4, 3, 8, 12)
        x = F.interpolate(noise, (96, 160), mode="bicubic") + 0.1 * torch.randn(4, 3, 96, 160)
        model.train().scores_aux(x) if model.aux is not None else model.train().scores(x)
        for m in norms:
            m.momentum = model.config.bn_momentum
            m.running_var.clamp_(min=0.3 * float(m.running_var.mean()))
        scores = model.eval().scores(x)
        model.classifier.conv.bias.sub_(scores.mean(dim=(0, 2, 3)))


def pair(
    num_classes: int = 7, config: FastSCNNConfig | None = None, **options: bool
) -> tuple[FastSCNN, FusedFastSCNN]:
    """A reference and a fused network with the same weights, in eval mode."""
    torch.manual_seed(0)
    reference = FastSCNN(num_classes, config=config, **options)
    randomize(reference)
    fused = FusedFastSCNN(num_classes, config=config, **options)
    fused.load_state_dict(reference.state_dict())
    return reference.eval(), fused.eval()


def trained_for_a_moment(preset: str, classes: int) -> FastSCNN:
    """Running statistics that fit the weights, so that activations stay in range."""
    torch.manual_seed(0)
    model = FastSCNN(classes, config=PRESETS[preset])
    with torch.no_grad():
        for _ in range(10):
            model(torch.randn(2, 3, 64, 64))
    return model.eval()
