"""The ways to run the network on a GPU that are compared: uint8 frames in, uint8 labels out.

A provider builds, for a float32 model and frames N x H x W x 3 on its device, what labels frames of
that shape there, N x H x W. It raises `Unavailable` with a reason where it cannot run. On the CPU
the same code runs without graphs, which serves to try it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from cpu_providers import Unavailable, _need
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fastscnn.inference.engine import Engine, build_runtime
from fastscnn.inference.fold import fold
from fastscnn.network.model import FastSCNN
from fastscnn_kernels.cuda import operations as cuda

Labeller = Callable[[Tensor], Tensor]
HALF, BFLOAT, SINGLE = torch.float16, torch.bfloat16, torch.float32


class Built(NamedTuple):
    """`memory` gives the bytes held, where the runtime itself knows; else they are measured."""

    run: Labeller
    memory: Callable[[], int] | None = None


@dataclass(frozen=True)
class Provider:
    """`seconds` is what building and the first calls may take before it is given up; `kernels` is
    our composition, "" for a peer."""

    name: str
    build: Callable[[FastSCNN, Tensor], Built]
    dtype: torch.dtype
    seconds: float = 60
    kernels: str = ""

    @property
    def ours(self) -> bool:
        return bool(self.kernels)


def captured(labeller: Labeller, frames: Tensor) -> Labeller:
    """The same in a CUDA graph with a static input; on the CPU, as it is."""
    if frames.device.type != "cuda":
        return labeller
    static = frames.clone()
    for _ in range(3):
        labeller(static)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = labeller(static)

    def replay(x: Tensor) -> Tensor:
        static.copy_(x)
        graph.replay()
        return out

    return replay


def need_cuda_kernels(device: torch.device) -> None:
    reason = cuda.missing(device) if device.type == "cuda" else "CUDA C++ kernels need a GPU"
    if reason:
        raise Unavailable(reason)


def _ours(dtype: torch.dtype, kernels: str, graph: bool) -> Provider:
    def build(model: FastSCNN, frames: Tensor) -> Built:
        if kernels == "cuda":
            need_cuda_kernels(frames.device)
        own = copy.deepcopy(model).to(dtype)
        chosen = kernels if frames.is_cuda else "auto"
        if graph:
            engine = Engine(own, kernels=chosen)
            return Built(lambda x: engine(x)["labels"], lambda: engine.memory["total"])
        return Built(build_runtime(own, chosen).labels)

    how = "graph" if graph else "eager"
    name = f"{'CUDA C++' if kernels == 'cuda' else 'Triton'} {_short(dtype)} {how}"
    return Provider(name, build, dtype, kernels=kernels)


def labeller(model: FastSCNN, dtype: torch.dtype, channels_last: bool) -> Labeller:
    """The reference network as one writes it in PyTorch, frames to labels."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = copy.deepcopy(model).to(dtype=dtype, memory_format=layout)
    device = next(model.parameters()).device
    mean, std = (
        torch.tensor(v, device=device).view(1, 3, 1, 1)
        for v in (model.config.mean, model.config.std)
    )

    def labels(frames: Tensor) -> Tensor:
        x = (frames.permute(0, 3, 1, 2).float() / 255 - mean) / std
        x = x.to(dtype).contiguous(memory_format=layout)
        return model(x).argmax(1).to(torch.uint8)

    return labels


def without_batch_norm(model: FastSCNN) -> FastSCNN:
    """A copy whose batch norms are folded by PyTorch's own means."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(getattr(module, "bn", None), torch.nn.BatchNorm2d):
            module.conv = fuse_conv_bn_eval(module.conv, module.bn)
            module.bn = None
    return model


def _eager(dtype: torch.dtype, channels_last: bool) -> Provider:
    layout = " channels_last" if channels_last else ""
    return Provider(
        f"torch {_short(dtype)}{layout} eager",
        lambda model, _: Built(labeller(model, dtype, channels_last)),
        dtype,
    )


def _graph(dtype: torch.dtype, channels_last: bool) -> Provider:
    """Batch norm folded, as a careful user does."""
    layout = " channels_last" if channels_last else ""
    return Provider(
        f"torch {_short(dtype)}{layout} graph",
        lambda model, x: Built(
            captured(labeller(without_batch_norm(model), dtype, channels_last), x)
        ),
        dtype,
    )


def _compiled(mode: str, graph: bool, seconds: float) -> Provider:
    """float16, channels_last, batch norm folded; max-autotune brings its own graphs."""

    def build(model: FastSCNN, frames: Tensor) -> Built:
        function = labeller(without_batch_norm(model), HALF, True)
        run = torch.compile(function, mode=mode, fullgraph=True, dynamic=False)
        return Built(captured(run, frames) if graph else run)

    name = f"torch.compile fp16 {mode}{' graph' if graph else ''}"
    return Provider(name, build, HALF, seconds=seconds)


def tensorrt(model: FastSCNN, frames: Tensor) -> Built:
    """TensorRT's own API: a strongly typed float16 network, captured in a graph."""
    _need_gpu(frames)
    trt = _need("tensorrt")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(_onnx(model, frames)):
        reasons = (parser.get_error(i).desc() for i in range(parser.num_errors))
        raise Unavailable(f"TensorRT does not take the graph: {'; '.join(reasons)}")
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        raise Unavailable("TensorRT could not build an engine")
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    labels = frames.new_empty(frames.shape[:3])

    def run(x: Tensor) -> Tensor:
        context.set_tensor_address("frame", x.data_ptr())
        context.set_tensor_address("labels", labels.data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("TensorRT could not launch")
        return labels

    replay = captured(run, frames)

    def labelled(x: Tensor, keep: Any = (engine, context)) -> Tensor:
        return replay(x)

    return Built(labelled)


def _onnxruntime(execution: str) -> Provider:
    """float16, input and output bound to tensors on the device, on torch's stream."""

    def build(model: FastSCNN, frames: Tensor) -> Built:
        _need_gpu(frames)
        ort = _need("onnxruntime")
        if execution not in ort.get_available_providers():
            raise Unavailable(
                f"onnxruntime {ort.__version__} has no {execution} (pip install onnxruntime-gpu)"
            )
        stream = torch.cuda.current_stream().cuda_stream
        options = {"device_id": frames.device.index or 0, "user_compute_stream": str(stream)}
        session = ort.InferenceSession(
            _onnx(model, frames), providers=[(execution, options), "CPUExecutionProvider"]
        )
        if execution not in session.get_providers():
            raise Unavailable(f"onnxruntime could not start {execution} here")
        settings = ort.RunOptions()
        settings.add_run_config_entry("disable_synchronize_execution_providers", "1")
        labels = frames.new_empty(frames.shape[:3])
        binding = session.io_binding()

        def bind(method: Any, name: str, t: Tensor) -> None:
            method(name, "cuda", options["device_id"], np.uint8, tuple(t.shape), t.data_ptr())

        def run(x: Tensor) -> Tensor:
            bind(binding.bind_input, "frame", x)
            bind(binding.bind_output, "labels", labels)
            session.run_with_iobinding(binding, settings)
            return labels

        return Built(run)

    short = execution.removesuffix("ExecutionProvider")
    return Provider(f"ONNX Runtime fp16 {short}", build, HALF, seconds=90)


def _need_gpu(frames: Tensor) -> None:
    if frames.device.type != "cuda":
        raise Unavailable("needs an NVIDIA GPU")


def _onnx(model: FastSCNN, frames: Tensor) -> bytes:
    _need("onnx")
    from fastscnn.export import onnx_graph

    n, h, w, _ = frames.shape
    made = onnx_graph.build(
        fold(copy.deepcopy(model).cpu().float()),
        model.config,
        model.num_classes,
        size=(h, w),
        batch=n,
        half=True,
        tensorrt=True,
    )
    return bytes(made.SerializeToString())


def _short(dtype: torch.dtype) -> str:
    return {HALF: "fp16", BFLOAT: "bf16", SINGLE: "fp32"}[dtype]


#: float32 has no CUDA C++ kernels.
OURS = [
    _ours(dtype, kernels, graph)
    for kernels, dtypes in (("cuda", (HALF, BFLOAT)), ("triton", (HALF, BFLOAT, SINGLE)))
    for dtype in dtypes
    for graph in (True, False)
]
#: Quick to build: measured at every shape.
TORCH = [
    _eager(SINGLE, False),
    _graph(SINGLE, False),
    _eager(HALF, True),
    _graph(HALF, True),
]
#: Slow to build, each with the seconds after which it is given up.
COMPILED = [
    _compiled("default", False, 90),
    _compiled("default", True, 30),
    Provider("TensorRT fp16 graph", tensorrt, HALF, seconds=90),
    _onnxruntime("CUDAExecutionProvider"),
    _onnxruntime("TensorrtExecutionProvider"),
    _compiled("max-autotune", False, 150),
]
