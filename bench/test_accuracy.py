"""What rounding costs: labels and mIoU of the shipped weights on CamVid's validation frames.

    pytest bench/test_accuracy.py --benchmark-only --data DIR \\
        --benchmark-json=bench/results/cpu-MACHINE-accuracy.json

DATA/camvid is CamVid. Frames and labels have the size that the weights' card names; int8 is
calibrated on training frames, the peers' as ours. Agreement is with PyTorch's float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_cpu import model, playback, report
from torch import Tensor

from fastscnn.benchmark.cpu import PROVIDERS
from fastscnn.benchmark.provider import Case, Unavailable
from fastscnn.benchmark.timing import alternate
from fastscnn.network.segment import Size, resize_frames
from fastscnn.training.data import SegmentationData, open_data
from fastscnn.training.evaluate import Result, confusion

pytestmark = pytest.mark.benchmark(timer=playback, disable_gc=True)

#: A mixture has its peer's accuracy.
ROUNDED = [p.name for p in PROVIDERS.values() if not p.exact and p.ours != "head"]
CALIBRATION = 30


def frame(data: SegmentationData, index: int, size: Size) -> tuple[Tensor, Tensor]:
    """uint8 frame 1 x H x W x 3 and mask H x W."""
    image, mask = data[index]
    frame = resize_frames(image.permute(1, 2, 0)[None].contiguous(), size).contiguous()
    return frame, F.interpolate(mask[None, None], size, mode="nearest")[0, 0]


@cache
def labelled(
    name: str, folder: Path, smoke: bool
) -> tuple[dict[str, float], list[float], list[Tensor]]:
    """mIoU and agreement of a provider, seconds of each frame, and its labels."""
    net, train, val = model("camvid"), open_data(folder, "train"), open_data(folder, "val")
    size = (96, 128) if smoke else net.input_size(None, tuple(val[0][0].shape[1:]))
    spread = range(0, len(train), max(1, len(train) // (2 if smoke else CALIBRATION)))
    others = torch.cat([frame(train, i, size)[0] for i in spread])
    case = Case(torch.zeros(1, *size, 3, dtype=torch.uint8), 1, others)
    counts, seconds, labels, equal = 0, [], [], []
    with torch.inference_mode():
        call = PROVIDERS[name].build(net, case)
        exact = labels if name == "channels_last" else labelled("channels_last", folder, smoke)[2]
        for i in range(2 if smoke else len(val)):
            pixels, mask = frame(val, i, size)
            case.frame.copy_(pixels)  # which the provider reads anew
            seconds += alternate({name: keeping(call, labels)}, 1, 1)[name]
            counts = counts + confusion(mask.numpy(), labels[-1].numpy(), net.num_classes)
            equal.append((labels[-1] == exact[i]).double().mean().item())
    miou = Result(val.classes, counts).miou
    return {"miou": miou, "equal": sum(equal) / len(equal), "worst": min(equal)}, seconds, labels


def keeping(call: Callable[[], Tensor], labels: list[Tensor]) -> Callable[[], None]:
    return lambda: labels.append(call()[0].clone())


@pytest.mark.parametrize("provider", ["ours", *ROUNDED])
def test_cpu_accuracy(benchmark: Any, provider: str, request: Any) -> None:
    data = request.config.getoption("--data")
    if data is None or not (data / "camvid").is_dir():
        pytest.skip("needs --data DIR with CamVid in DIR/camvid")
    try:
        found, seconds, _ = labelled(provider, data / "camvid", request.config.getoption("--smoke"))
    except Unavailable as reason:
        pytest.skip(str(reason))
    facts = {"kind": "accuracy", "provider": provider, "frames": len(seconds)}
    report(benchmark, seconds, "cpu accuracy, camvid", **facts, **found)
