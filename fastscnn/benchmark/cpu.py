"""The ways to run the network on a CPU that are compared: uint8 frame in, uint8 labels out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastscnn.benchmark import peers
from fastscnn.benchmark.provider import (
    Case,
    Labeller,
    Provider,
    Unavailable,
    use_threads,
    without_batch_norm,
)
from fastscnn.inference.cpu_runtime import CpuRuntime
from fastscnn.inference.fold import fold
from fastscnn.network.model import FastSCNN
from fastscnn.quantize import calibrate
from fastscnn_kernels import reference
from fastscnn_kernels.cpu import int8, pack


class Labels(nn.Module):
    """Normalisation, network and arg-max in PyTorch, batch norm folded, in channels_last.

    Bytes are turned over, which for channels_last is free, and become normalised floats in one
    pass. `max` gives the same indices as `argmax` on a CPU in a fraction of its time (25 for 357 ms
    with 19 classes at 1024x2048).
    """

    def __init__(self, model: FastSCNN) -> None:
        super().__init__()
        layout: Any = {"memory_format": torch.channels_last}  # which torch's stubs do not know
        self.model = without_batch_norm(model).to(**layout)
        mean, std = (
            torch.tensor(v).view(1, 3, 1, 1) for v in (model.config.mean, model.config.std)
        )
        self.scale, self.shift = 1 / (255 * std), -mean / std

    def forward(self, frame: Tensor) -> Tensor:
        x = torch.addcmul(self.shift, frame.permute(0, 3, 1, 2), self.scale)
        return self.model(x).max(1)[1].to(torch.uint8)


def eager(model: FastSCNN, case: Case) -> Labeller:
    """PyTorch as a user first runs it: NCHW, `argmax`."""
    config = model.config

    def run() -> Tensor:
        use_threads(case.threads)
        x = reference.normalize(case.frame, config.mean, config.std).contiguous()
        return model(x).argmax(1).to(torch.uint8)

    return run


def channels_last(model: FastSCNN, case: Case) -> Labeller:
    """PyTorch by a careful user.

    At 1024x2048 on one thread, 11 classes, it takes 322 ms; with batch norms left in 384, folded
    but with planes 413, with scores turned to planes before they are sampled 335. TorchScript's
    `optimize_for_inference` does not take the pooling; bfloat16 by autocast takes 204.
    """
    module = Labels(model)

    def run() -> Tensor:
        use_threads(case.threads)
        labels: Tensor = module(case.frame)
        return labels

    return run


def compiled(model: FastSCNN, case: Case) -> Labeller:
    """torch.compile with frozen weights, in channels_last.

    At 512x1024 on one thread, 11 classes, it takes 82 ms; with `argmax` 84, with planes 85, with
    batch norms left to it 92.
    """
    use_threads(case.threads)
    torch._dynamo.reset()
    module = torch.compile(Labels(model), options={"freezing": True}, dynamic=False)

    def run() -> Tensor:
        use_threads(case.threads)
        labels: Tensor = module(case.frame)
        return labels

    return run


def ours(model: FastSCNN, case: Case, *, precision: str = "float32") -> Labeller:
    """This project's C++ runtime; in int8 it is calibrated on the same frames as the peers."""
    options: dict[str, Any] = {}
    if precision == "bfloat16":
        options["isa"] = pack.bf16_instruction_set()
        if not options["isa"]:
            raise Unavailable("this CPU has no AVX512-BF16: bfloat16 runs in float32")
    if precision == "int8":
        if not int8.pays():
            raise Unavailable("this CPU has no AVX-512: int8 checkpoints run in float32")
        others = case.calibration()
        options["ranges"] = calibrate(model, others, size=(others.shape[1], others.shape[2]))
    runtime = CpuRuntime(fold(model), model.config, model.num_classes, **options)
    return lambda: runtime.labels(case.frame, threads=case.threads)


def _peer(
    name: str, build: Callable[..., Labeller], precision: str = "float32", *, head: bool = False
) -> Provider:
    shown = {"float32": "", "bfloat16": " bf16", "int8": " int8"}[precision]
    return Provider(
        f"{name}{shown}{' + our head' if head else ''}",
        partial(build, precision=precision, head=head),
        exact=precision == "float32",
        ours="head" if head else "",
    )


PROVIDERS = {
    p.name: p
    for p in (
        Provider("ours", ours, ours="all"),
        Provider("ours bf16", partial(ours, precision="bfloat16"), exact=False, ours="all"),
        Provider("ours int8", partial(ours, precision="int8"), exact=False, ours="all"),
        Provider("eager", eager),
        Provider("channels_last", channels_last),
        Provider("compiled", compiled, slow=True),
        _peer("onnxruntime", peers.onnxruntime),
        _peer("openvino", peers.openvino),
        Provider("ncnn", peers.ncnn),
        _peer("openvino", peers.openvino, "bfloat16"),
        _peer("onnxruntime", peers.onnxruntime, "int8"),
        _peer("openvino", peers.openvino, "int8"),
        _peer("onnxruntime", peers.onnxruntime, head=True),
        _peer("openvino", peers.openvino, head=True),
        _peer("openvino", peers.openvino, "bfloat16", head=True),
        _peer("onnxruntime", peers.onnxruntime, "int8", head=True),
        _peer("openvino", peers.openvino, "int8", head=True),
    )
}
