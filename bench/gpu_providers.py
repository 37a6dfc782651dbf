"""The ways to run the network on a GPU that are compared: uint8 frames in, uint8 labels out.

A provider builds, for a float32 model and frames N x H x W x 3 on its device, what labels frames of
that shape there, N x H x W (or gives probabilities, N x K x H x W). It raises `Unavailable` with a
reason where it cannot run. On the CPU the same code runs without graphs, which serves to try it.
Frames become normalised maps by each one's cheapest exact way: ours inside their first kernel,
PyTorch and ONNX Runtime with bytes turned over before they become floats.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastscnn.benchmark.provider import Unavailable, need, without_batch_norm
from fastscnn.inference.engine import Engine, build_runtime
from fastscnn.inference.fold import fold
from fastscnn.network.model import FastSCNN
from fastscnn_kernels.cuda import operations as cuda

Labeller = Callable[[Tensor], Tensor]
HALF, BFLOAT, SINGLE = torch.float16, torch.bfloat16, torch.float32


class Built(NamedTuple):
    """`memory` gives the bytes held, where the runtime itself knows; else they are measured. `note`
    says what its reader should know."""

    run: Labeller
    memory: Callable[[], int] | None = None
    note: str = ""


@dataclass(frozen=True)
class Provider:
    """`seconds` is what building and the first calls may take before it is given up; `kernels` is
    our composition, "" for a peer. One that is `still` is timed on one frame, which lies in place
    already; `output` is "labels" or "probabilities"."""

    name: str
    build: Callable[[FastSCNN, Tensor], Built]
    dtype: torch.dtype
    seconds: float = 60
    kernels: str = ""
    still: bool = False
    output: str = "labels"

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
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):  # ONNX Runtime's, too
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


def _ours(
    dtype: torch.dtype, kernels: str, graph: bool, *, still: bool = False, output: str = "labels"
) -> Provider:
    def build(model: FastSCNN, frames: Tensor) -> Built:
        if kernels == "cuda":
            need_cuda_kernels(frames.device)
        own = copy.deepcopy(model).to(dtype)
        chosen = kernels if frames.is_cuda else "auto"
        if not graph:
            return Built(build_runtime(own, chosen).labels)
        engine = Engine(own, kernels=chosen, outputs=(output,))
        held = lambda: engine.memory["total"]  # noqa: E731
        if still:
            return Built(in_place(engine, frames), held)
        return Built(lambda x: engine(x)[output], held)

    how = ("graph, frame in place" if still else "graph") if graph else "eager"
    name = f"{'CUDA C++' if kernels == 'cuda' else 'Triton'} {_short(dtype)} {how}"
    return Provider(name, build, dtype, kernels=kernels, still=still, output=output)


def in_place(engine: Engine, frames: Tensor) -> Labeller:
    """Labels of what lies in the engine's input; another frame than the last is copied there."""
    inlet, last = engine.input(tuple(frames.shape)), [0]

    def run(x: Tensor) -> Tensor:
        if last[0] != x.data_ptr():
            inlet.copy_(x)
            last[0] = x.data_ptr()
        return engine(inlet)["labels"]

    return run


def labeller(
    model: FastSCNN, dtype: torch.dtype, channels_last: bool, output: str = "labels"
) -> Labeller:
    """The reference network as one writes it in PyTorch, frames to labels or probabilities."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = copy.deepcopy(model).to(dtype=dtype, memory_format=layout)
    device = next(model.parameters()).device
    mean, std = (
        torch.tensor(v, device=device).view(1, 3, 1, 1)
        for v in (model.config.mean, model.config.std)
    )
    scale, shift = 1 / (255 * std), -mean / std

    def run(frames: Tensor) -> Tensor:
        planes = frames.permute(0, 3, 1, 2).contiguous(memory_format=layout)  # still bytes
        x = torch.addcmul(shift, planes, scale).to(dtype)
        logits = model(x)
        if output == "probabilities":
            return logits.softmax(1, dtype=torch.float32)
        return logits.argmax(1).to(torch.uint8)

    return run


def _eager(dtype: torch.dtype, channels_last: bool) -> Provider:
    layout = " channels_last" if channels_last else ""
    return Provider(
        f"torch {_short(dtype)}{layout} eager",
        lambda model, _: Built(labeller(model, dtype, channels_last)),
        dtype,
    )


def _graph(dtype: torch.dtype, channels_last: bool, output: str = "labels") -> Provider:
    """Batch norm folded, as a careful user does."""
    layout = " channels_last" if channels_last else ""
    return Provider(
        f"torch {_short(dtype)}{layout} graph",
        lambda model, x: Built(
            captured(labeller(without_batch_norm(model), dtype, channels_last, output), x)
        ),
        dtype,
        output=output,
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
    trt = need("tensorrt")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(_onnx(model, frames, tensorrt=True)):
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
    """float16, input and output bound to tensors on the device, on torch's stream; in a graph where
    that can be captured."""

    def build(model: FastSCNN, frames: Tensor) -> Built:
        _need_gpu(frames)
        ort = need("onnxruntime")
        if execution not in ort.get_available_providers():
            raise Unavailable(
                f"onnxruntime {ort.__version__} has no {execution} (pip install onnxruntime-gpu)"
            )
        stream = torch.cuda.current_stream().cuda_stream
        options = {"device_id": frames.device.index or 0, "user_compute_stream": str(stream)}
        if execution.startswith("CUDA"):
            options["cudnn_conv_algo_search"] = "EXHAUSTIVE"
        session = ort.InferenceSession(
            _onnx(model, frames, tensorrt=execution.startswith("Tensorrt")),
            providers=[(execution, options), "CPUExecutionProvider"],
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

        return graph_or_not(run, frames)

    short = execution.removesuffix("ExecutionProvider")
    return Provider(f"ONNX Runtime fp16 {short}", build, HALF, seconds=90)


def graph_or_not(run: Labeller, frames: Tensor) -> Built:
    """In a graph, or without where the capture fails, which the note says."""
    try:
        return Built(captured(run, frames))
    except Exception as error:
        torch.cuda.synchronize()
        return Built(run, note=f"without a graph: {str(error).strip().splitlines()[0][:100]}")


def _need_gpu(frames: Tensor) -> None:
    if frames.device.type != "cuda":
        raise Unavailable("needs an NVIDIA GPU")


def _onnx(model: FastSCNN, frames: Tensor, *, tensorrt: bool) -> bytes:
    """The graph that `fastscnn export` writes, in float16; `tensorrt`: casts bytes first."""
    need("onnx")
    from fastscnn.export import onnx_graph

    n, h, w, _ = frames.shape
    made = onnx_graph.build(
        fold(copy.deepcopy(model).cpu().float()),
        model.config,
        model.num_classes,
        size=(h, w),
        batch=n,
        half=True,
        tensorrt=tensorrt,
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
#: Frames that a camera or decoder writes where the graph reads them.
IN_PLACE = [_ours(HALF, kernels, True, still=True) for kernels in ("cuda", "triton")]
#: Quick to build: measured at every shape.
TORCH = [
    _eager(SINGLE, False),
    _graph(SINGLE, False),
    _eager(HALF, True),
    _graph(HALF, True),
]
#: Probabilities of all classes, the paper's "prob".
PROBABILITIES = [
    *(_ours(HALF, kernels, True, output="probabilities") for kernels in ("cuda", "triton")),
    *(_graph(*how, "probabilities") for how in ((SINGLE, False), (HALF, True))),
]
#: Slow to build, each with the seconds after which it is given up.
AUTOTUNED = [_compiled("max-autotune", False, 150)]
COMPILED = [
    _compiled("default", False, 90),
    _compiled("default", True, 30),
    Provider("TensorRT fp16 graph", tensorrt, HALF, seconds=90),
    _onnxruntime("CUDAExecutionProvider"),
    _onnxruntime("TensorrtExecutionProvider"),
]
