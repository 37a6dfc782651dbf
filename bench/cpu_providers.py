"""The ways to run the network on a CPU that are compared: uint8 frame in, uint8 labels out.

Every provider is a function (model, frame, threads) -> callable that returns labels 1 x H x W. It
raises `Unavailable` with a reason where it cannot run.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastscnn.inference.cpu_runtime import CpuRuntime
from fastscnn.inference.fold import fold
from fastscnn.network.model import FastSCNN
from fastscnn.quantize import calibrate
from fastscnn_kernels import reference

Labeller = Callable[[], Tensor]


class Unavailable(Exception):
    """This provider cannot run here, for the given reason."""


class Labels(nn.Module):
    """Normalisation, network and arg-max, as a PyTorch user writes them."""

    def __init__(self, model: FastSCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, frame: Tensor) -> Tensor:
        x = reference.normalize(frame, self.model.config.mean, self.model.config.std)
        return self.model(x).argmax(1).to(torch.uint8)


def eager(model: FastSCNN, frame: Tensor, threads: int) -> Labeller:
    """PyTorch as a user first runs it: NCHW."""
    torch.set_num_threads(threads)
    config = model.config

    def run() -> Tensor:
        x = reference.normalize(frame, config.mean, config.std).contiguous()
        return model(x).argmax(1).to(torch.uint8)

    return run


def channels_last(model: FastSCNN, frame: Tensor, threads: int) -> Labeller:
    """PyTorch, weights and activations in channels_last."""
    torch.set_num_threads(threads)
    module = Labels(copy.deepcopy(model).to(memory_format=torch.channels_last))
    return lambda: module(frame)


def compiled(model: FastSCNN, frame: Tensor, threads: int) -> Labeller:
    """torch.compile with frozen weights."""
    torch.set_num_threads(threads)
    torch._dynamo.reset()
    options = {"freezing": True}
    module = torch.compile(Labels(model), options=options, dynamic=False)
    return lambda: module(frame)


def onnxruntime(model: FastSCNN, frame: Tensor, threads: int) -> Labeller:
    """ONNX Runtime, fp32, all graph optimisations."""
    ort = _need("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(
        _graph(model, frame), options, providers=["CPUExecutionProvider"]
    )
    return lambda: torch.from_numpy(session.run(None, {"frame": frame.numpy()})[0])


def openvino(model: FastSCNN, frame: Tensor, threads: int) -> Labeller:
    """OpenVINO, fp32."""
    ov = _need("openvino")
    core = ov.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(
        core.read_model(_graph(model, frame)), "CPU", settings
    ).create_infer_request()

    def run() -> Tensor:
        return torch.from_numpy(request.infer({"frame": frame.numpy()})["labels"].copy())

    return run


def ncnn(model: FastSCNN, frame: Tensor, threads: int) -> Labeller:
    """ncnn, fp32, of the trace that its own converter pnnx turns into a network. ncnn samples up to
    full-size logits; the arg-max is torch's `max`, which is faster than its `argmax`."""
    runtime, converter = _need("ncnn"), _need("pnnx")
    config = model.config
    x = reference.normalize(frame, config.mean, config.std).contiguous()
    net = runtime.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    with tempfile.TemporaryDirectory() as folder:
        converter.export(model, f"{folder}/net.pt", inputs=x, check_trace=False, fp16=False)
        if net.load_param(f"{folder}/net.ncnn.param") or net.load_model(f"{folder}/net.ncnn.bin"):
            raise Unavailable("ncnn does not load what pnnx wrote")
    mean, scale = [255 * m for m in config.mean], [1 / (255 * s) for s in config.std]
    kind, (_, h, w, _) = runtime.Mat.PixelType.PIXEL_RGB, frame.shape

    def run() -> Tensor:
        torch.set_num_threads(threads)
        pixels = runtime.Mat.from_pixels(frame[0].numpy(), kind, w, h)
        pixels.substract_mean_normalize(mean, scale)
        extractor = net.create_extractor()
        extractor.input("in0", pixels)
        logits = torch.from_numpy(extractor.extract("out0")[1].numpy())
        return logits.max(0)[1].to(torch.uint8)[None]

    return run


def ours(model: FastSCNN, frame: Tensor, threads: int) -> Labeller:
    """This project's C++ runtime."""
    runtime = CpuRuntime(fold(model), model.config, model.num_classes)
    return lambda: runtime.labels(frame, threads=threads)


def ours_int8(model: FastSCNN, frame: Tensor, threads: int) -> Labeller:
    """The same with the trunk in int8, calibrated on the frame itself."""
    ranges = calibrate(model, frame)
    runtime = CpuRuntime(fold(model), model.config, model.num_classes, ranges=ranges)
    return lambda: runtime.labels(frame, threads=threads)


_ALL = (eager, channels_last, compiled, onnxruntime, openvino, ncnn, ours, ours_int8)
PROVIDERS = {f.__name__: f for f in _ALL}

#: A label is right if its logit is this close to the best one of the float32 reference, relative to
#: the range of the logits: float32 rounds; in int8 a step of one map is 1/255 of its range.
NEAR = {name: 0.03 if name == "ours_int8" else 1e-4 for name in PROVIDERS}


def _need(package: str) -> Any:
    if importlib.util.find_spec(package) is None:
        raise Unavailable(f"{package} is not installed (pip install {package})")
    return importlib.import_module(package)


def _graph(model: FastSCNN, frame: Tensor) -> bytes:
    _need("onnx")
    from fastscnn.export import onnx_graph

    n, h, w, _ = frame.shape
    graph = onnx_graph.build(fold(model), model.config, model.num_classes, size=(h, w), batch=n)
    return bytes(graph.SerializeToString())
