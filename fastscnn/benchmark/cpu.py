"""The ways to run the network on a CPU that are compared: uint8 frame in, uint8 labels out."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastscnn.benchmark import peers
from fastscnn.benchmark.provider import Case, Labeller, Provider, Unavailable, use_threads
from fastscnn.inference.cpu_runtime import CpuRuntime
from fastscnn.inference.fold import fold
from fastscnn.network.model import FastSCNN
from fastscnn.quantize import calibrate
from fastscnn_kernels import reference
from fastscnn_kernels.cpu import int8, pack


class Labels(nn.Module):
    """Normalisation, network and arg-max. `max` gives the same indices as `argmax` on a CPU in a
    fraction of its time (25 for 357 ms with 19 classes at 1024x2048)."""

    def __init__(self, model: FastSCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, frame: Tensor) -> Tensor:
        x = reference.normalize(frame, self.model.config.mean, self.model.config.std)
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
    """PyTorch by a careful user: weights and activations in channels_last, `max` for `argmax`."""
    layout: Any = {"memory_format": torch.channels_last}  # which torch's stubs do not know
    module = Labels(copy.deepcopy(model).to(**layout))

    def run() -> Tensor:
        use_threads(case.threads)
        labels: Tensor = module(case.frame)
        return labels

    return run


def compiled(model: FastSCNN, case: Case) -> Labeller:
    """torch.compile with frozen weights."""
    use_threads(case.threads)
    torch._dynamo.reset()
    module = torch.compile(Labels(model), options={"freezing": True}, dynamic=False)

    def run() -> Tensor:
        use_threads(case.threads)
        labels: Tensor = module(case.frame)
        return labels

    return run


def ours(model: FastSCNN, case: Case, *, kind: str = "float32") -> Labeller:
    """This project's C++ runtime; in int8 it is calibrated on the same frames as the peers."""
    options: dict[str, Any] = {}
    if kind == "bfloat16":
        options["isa"] = pack.bf16_instruction_set()
        if not options["isa"]:
            raise Unavailable("this CPU has no AVX512-BF16: bfloat16 runs in float32")
    if kind == "int8":
        if not int8.pays():
            raise Unavailable("this CPU has no AVX-512: int8 checkpoints run in float32")
        others = case.calibration()
        options["ranges"] = calibrate(model, others, size=(others.shape[1], others.shape[2]))
    runtime = CpuRuntime(fold(model), model.config, model.num_classes, **options)
    return lambda: runtime.labels(case.frame, threads=case.threads)


_HEAD: dict[str, Any] = {"head": True}
_INT8: dict[str, Any] = {"int8": True}
_ORT, _OPENVINO = peers.onnxruntime, peers.openvino

PROVIDERS = {
    p.name: p
    for p in (
        Provider("ours", ours, ours="all"),
        Provider("ours bf16", partial(ours, kind="bfloat16"), exact=False, ours="all"),
        Provider("ours int8", partial(ours, kind="int8"), exact=False, ours="all"),
        Provider("eager", eager),
        Provider("channels_last", channels_last),
        Provider("compiled", compiled, slow=True),
        Provider("onnxruntime", _ORT),
        Provider("openvino", _OPENVINO),
        Provider("ncnn", peers.ncnn),
        Provider("onnxruntime int8", partial(_ORT, **_INT8), exact=False),
        Provider("openvino int8", partial(_OPENVINO, **_INT8), exact=False),
        Provider("onnxruntime + our head", partial(_ORT, **_HEAD), ours="head"),
        Provider("openvino + our head", partial(_OPENVINO, **_HEAD), ours="head"),
        Provider(
            "onnxruntime int8 + our head",
            partial(_ORT, **_HEAD, **_INT8),
            exact=False,
            ours="head",
        ),
        Provider(
            "openvino int8 + our head",
            partial(_OPENVINO, **_HEAD, **_INT8),
            exact=False,
            ours="head",
        ),
    )
}
