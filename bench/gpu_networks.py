"""Rows of whole networks: real or drawn frames, the float32 truth, ours and peers in turns."""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_clock import ROTATED, Call, Clock, Memory, facts, limits, measure, rates
from gpu_groups import BATCHES, ONE_IMAGE, Network, Shape
from gpu_providers import BFLOAT, HALF, OURS, SINGLE, Built, Provider
from gpu_steps import STEP_SECONDS, say, step
from PIL import Image
from torch import Tensor

import fastscnn
from fastscnn.benchmark.provider import Unavailable
from fastscnn.inference.plan import plan
from fastscnn.network.model import FastSCNN
from fastscnn.network.segment import resize_frames
from fastscnn_kernels import composition, reference

#: Share of the labels that must be float32's or lie this close to its best, by dtype, relative to
#: the range of the logits.
NEAR = {SINGLE: 1e-4, HALF: 5e-3, BFLOAT: 5e-2}
VALID = 0.9999


def shipped() -> FastSCNN:
    return fastscnn.load("camvid", fused=False, device="cpu")


def seeded() -> FastSCNN:
    """19 classes; batch norms and classes that have seen data, so that labels vary."""
    torch.manual_seed(0)
    model = FastSCNN(19)
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(4, 3, 64, 128))
        scores = model.eval().scores(torch.randn(4, 3, 64, 128))
        model.classifier.conv.bias -= scores.mean(dim=(0, 2, 3))
    return model


def frames_of(shape: Shape, data: Path | None, device: torch.device) -> tuple[list[Tensor], str]:
    """ROTATED different inputs N x H x W x 3 on the device, and what they show."""
    n, h, w = shape
    for folder, title in (("street/images", "street frames"), ("camvid/val", "CamVid val frames")):
        paths = sorted(data.joinpath(folder).glob("*.[jp][pn]g")) if data else []
        if paths:
            every = [paths[i * len(paths) // ROTATED] for i in range(ROTATED)]
            images = [torch.from_numpy(np.array(Image.open(p).convert("RGB"))) for p in every]
            single = [resize_frames(image[None], (h, w)).to(device) for image in images]
            return [
                torch.cat([single[(i + j) % ROTATED] for j in range(n)]) for i in range(ROTATED)
            ], title
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(ROTATED):
        x = torch.zeros(n, 3, h, w, device=device)
        for side in (4, 16, 64):
            noise = torch.rand(n, 3, side, 2 * side, generator=generator).to(device)
            x += reference.resize(noise, (h, w), False)
        batches.append((x * 85).to(torch.uint8).permute(0, 2, 3, 1).contiguous())
    return batches, "drawn noise at three scales"


class Truth:
    """What the float32 reference says on the device, image by image to spare memory."""

    def __init__(self, model: FastSCNN, frames: list[Tensor]) -> None:
        self._model, self._frames = model, frames

    def judge(
        self, run: Callable[[Tensor], Tensor], dtype: torch.dtype, output: str = "labels"
    ) -> dict[str, Any]:
        """Label agreement of all images together and of the worst; raises ValueError if the labels,
        or the probabilities, are not those of this network."""
        shares, valid = [], []
        for frames in self._frames:
            labels = run(frames).clone()
            if output == "probabilities":
                self._check_probabilities(frames, labels, dtype)
                labels = labels.argmax(1).to(torch.uint8)
            if labels.shape != frames.shape[:3] or labels.dtype != torch.uint8:
                raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}")
            for frame, got in zip(frames, labels, strict=True):
                logits = self._logits(frame[None])[0]
                best, truth = logits.max(0)
                chosen = logits.gather(0, got.long().clamp(max=len(logits) - 1)[None])[0]
                near = best - chosen <= NEAR[dtype] * (logits.max() - logits.min())
                shares.append((got == truth).double().mean().item())
                valid.append((near & (got < len(logits))).double().mean().item())
        if min(valid) < VALID:
            raise ValueError(
                f"wrong labels: {min(valid):.3%} are float32's or within {NEAR[dtype]:g} of its "
                f"best (agreement {statistics.mean(shares):.3%})"
            )
        return {
            "label_agreement": statistics.mean(shares),
            "label_agreement_worst": min(shares),
        }

    def _check_probabilities(self, frames: Tensor, got: Tensor, dtype: torch.dtype) -> None:
        """A logit's error moves a probability by at most half of it."""
        for frame, p in zip(frames, got, strict=True):
            logits = self._logits(frame[None])[0]
            most = NEAR[dtype] * (logits.max() - logits.min()) / 2 + torch.finfo(dtype).eps
            close = ((p.float() - logits.softmax(0)).abs() <= most).double().mean().item()
            if close < VALID:
                raise ValueError(f"wrong probabilities: {close:.3%} are within {most:.2g}")

    def _logits(self, frame: Tensor) -> Tensor:
        config = self._model.config
        logits: Tensor = self._model(reference.normalize(frame, config.mean, config.std))
        return logits


def network_rows(
    group: Network, skip: set[str], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    device = torch.device(options.device)
    model = (shipped() if group.weights == "camvid" else seeded()).to(device)
    real = options.data if group.weights == "camvid" else None
    frames, shows = frames_of(group.shape, real, device)
    truth = Truth(model, frames)
    torch._dynamo.reset()
    built: dict[str, tuple[Provider, Built, dict[str, Any]]] = {}
    for provider in (p for p in group.providers if p.name not in skip):
        with step(group.name, provider.name, provider.seconds) as allowed:
            if not allowed:
                continue
            began, memory = time.perf_counter(), Memory(device)
            made = provider.build(model, frames[0])
            for f in frames:
                made.run(f)
            known = truth.judge(made.run, provider.dtype, provider.output)
            known["build_seconds"] = time.perf_counter() - began
            known["peak_memory_mb"] = memory.peak() / 1e6
            if made.note:
                known["note"] = made.note
            if made.memory is not None:
                known["engine_memory_mb"] = made.memory() / 1e6
            built[provider.name] = provider, made, known
    calls: dict[str, Call] = {
        name: (lambda i, run=made.run, many=1 if p.still else ROTATED: run(frames[i % many]))
        for name, (p, made, _) in built.items()
    }
    before = lambda name: say(start=name, group=group.name, seconds=STEP_SECONDS)  # noqa: E731
    times = measure(calls, Clock(device), before, **limits(options))
    n, h, w = group.shape
    for name, (provider, _, known) in built.items():
        ops = composition.assumed(provider.kernels or "triton")
        size = (h, w)
        cost = plan(model.config, model.num_classes, size, batch=n, dtype=provider.dtype, ops=ops)
        row = {
            **facts(*times[name]),
            **known,
            **rates(sum(r.bytes for r in cost), sum(r.flops for r in cost),
                    sum(r.floor_us for r in cost)),
            "kind": "network", "ours": provider.ours, "dtype": str(provider.dtype)[6:],
            "images": n, "frame": [h, w], "weights": group.weights,
            "classes": model.num_classes, "shows": shows,
        }  # fmt: skip
        yield {"contestant": name, **row}


def compile_kernels(dtype: torch.dtype) -> None:
    """Runs our kernels once at every shape, which fills Triton's cache on disk."""
    for make in (shipped, seeded):
        model = make().cuda()
        for provider in (p for p in OURS if p.dtype == dtype and p.name.endswith("eager")):
            for shape in (*ONE_IMAGE, *BATCHES):
                frames = torch.zeros(*shape, 3, dtype=torch.uint8, device="cuda")
                with contextlib.suppress(Unavailable):
                    provider.build(model, frames).run(frames)
    torch.cuda.synchronize()
