"""Times the network and its operations on a GPU against PyTorch's own ways of running them.

    pytest bench/test_gpu.py --benchmark-only --benchmark-json=bench/results/gpu.json
    python bench/gpu_table.py bench/results/gpu.json

The clock is GPU time between events. Every provider does the same work (uint8 frames to uint8
labels), is validated first, sees rotated inputs, and is measured in several interleaved passes.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import op_cases

import fastscnn_kernels as k
from fastscnn.config import PRESETS
from fastscnn.engine import Engine
from fastscnn.fold import fold
from fastscnn.gpu_runtime import GpuRuntime
from fastscnn.model import FastSCNN
from fastscnn.plan import plan
from fastscnn_kernels import cuda, reference
from fastscnn_kernels.with_cuda import WithCuda

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

PASSES = 3
CALLS = 20  # per measurement, over ROTATED different inputs
ROTATED = 4
ROUNDS = 7
#: Seconds from the first test after which slow providers are no longer built.
BUDGET = 300.0
START = time.monotonic()

Labeller = Callable[[Tensor], Tensor]


class GpuClock:
    """A timer for pytest-benchmark: every second call returns the GPU seconds since the last."""

    def __init__(self) -> None:
        self._start: Any = None

    def __call__(self) -> float:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        if self._start is None:
            self._start = event
            return 0.0
        event.synchronize()
        start, self._start = self._start, None
        return float(start.elapsed_time(event)) / 1e3


def seeded_model() -> FastSCNN:
    """19 classes, batch norms that have seen data; the paper's layout."""
    torch.manual_seed(0)
    model = FastSCNN(19).cuda()
    with torch.no_grad():
        for _ in range(10):
            model(torch.randn(4, 3, 128, 256).cuda())
        scores = model.eval().scores(torch.randn(4, 3, 128, 256).cuda())
        model.classifier.conv.bias -= scores.mean(dim=(0, 2, 3))
    return model


def torch_labeller(model: FastSCNN, dtype: torch.dtype, channels_last: bool) -> Labeller:
    """The reference network as one would write it in PyTorch, frame to labels."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(dtype=dtype, memory_format=layout)
    mean = torch.tensor(model.config.mean).view(1, 3, 1, 1).cuda()
    std = torch.tensor(model.config.std).view(1, 3, 1, 1).cuda()

    def labels(frame: Tensor) -> Tensor:
        x = (frame.permute(0, 3, 1, 2).float() / 255 - mean) / std
        x = x.to(dtype).contiguous(memory_format=layout)
        return model(x).argmax(1).to(torch.uint8)

    return labels


def captured(labeller: Labeller, frame: Tensor) -> Labeller:
    """The same in a CUDA graph with a static input."""
    static = frame.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        labeller(static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = labeller(static)

    def replay(x: Tensor) -> Tensor:
        static.copy_(x)
        graph.replay()
        return out

    return replay


def ours(dtype: torch.dtype) -> Callable[[Tensor], Labeller]:
    def build(_: Tensor) -> Labeller:
        engine = Engine(seeded_model().to(dtype))
        return lambda x: engine(x)["labels"]

    return build


def ours_with_cuda(frame: Tensor) -> Labeller:
    """The composition with the CUDA C++ kernels, in a graph."""
    model = seeded_model()
    runtime = GpuRuntime(fold(model), model.config, 19, torch.float16, ops=WithCuda())
    return captured(runtime.labels, frame)


def ours_eager(_: Tensor) -> Labeller:
    model = seeded_model()
    return GpuRuntime(fold(model), model.config, 19, torch.float16).labels


def compiled(mode: str) -> Callable[[Tensor], Labeller]:
    def build(_: Tensor) -> Labeller:
        function = torch_labeller(seeded_model(), torch.float16, True)
        return torch.compile(function, mode=mode, fullgraph=True, dynamic=False)

    return build


#: name -> (what builds it for a frame's shape, seconds that building may take)
PROVIDERS: dict[str, tuple[Callable[[Tensor], Labeller], float]] = {
    "fastscnn fp16 graph": (ours(torch.float16), 30),
    **({"fastscnn fp16 graph, CUDA C++": (ours_with_cuda, 30)} if cuda.built() else {}),
    "fastscnn bf16 graph": (ours(torch.bfloat16), 30),
    "fastscnn fp32 graph": (ours(torch.float32), 30),
    "fastscnn fp16 eager": (ours_eager, 5),
    "torch fp32 eager": (lambda _: torch_labeller(seeded_model(), torch.float32, False), 5),
    "torch fp16 channels_last eager": (
        lambda _: torch_labeller(seeded_model(), torch.float16, True), 5),
    "torch fp16 channels_last graph": (
        lambda x: captured(torch_labeller(seeded_model(), torch.float16, True), x), 5),
    "torch.compile fp16 default": (compiled("default"), 60),
    "torch.compile fp16 max-autotune": (compiled("max-autotune"), 120),
}  # fmt: skip
SHAPES = ((1, 1024, 2048), (1, 512, 1024), (1, 256, 512), (4, 1024, 2048), (16, 512, 1024))


@pytest.fixture(scope="module", autouse=True)
def _ieee_and_no_gradients() -> Any:
    """fp32 means IEEE for everybody."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def built() -> dict[Any, Labeller]:
    return {}


@pytest.fixture(scope="module")
def truth() -> dict[Any, list[Tensor]]:
    return {}


def frames_of(shape: tuple[int, int, int]) -> list[Tensor]:
    """Seeded frames with structure at several scales, as pictures have."""
    generator = torch.Generator().manual_seed(1)
    n, h, w = shape
    frames = []
    for _ in range(ROTATED):
        x = sum(
            reference.resize(torch.rand(n, 3, s, 2 * s, generator=generator), (h, w), False)
            for s in (4, 16, 64)
        )
        frames.append((x * 85).to(torch.uint8).permute(0, 2, 3, 1).contiguous().cuda())
    return frames


def provider(
    name: str, shape: tuple[int, int, int], frames: list[Tensor], built: dict[Any, Labeller]
) -> Labeller:
    key = (name, shape)
    if key not in built:
        build, seconds = PROVIDERS[name]
        if time.monotonic() - START + seconds > BUDGET:
            pytest.skip(f"building may take {seconds:.0f} s: over the time budget")
        built[key] = build(frames[0])
        for f in frames[:2]:
            built[key](f)
        torch.cuda.synchronize()
    return built[key]


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("turn", range(PASSES))
def test_network(
    benchmark: Any, name: str, shape: tuple[int, int, int], turn: int,
    built: dict[Any, Labeller], truth: dict[Any, list[Tensor]],
) -> None:  # fmt: skip
    frames = frames_of(shape)
    if shape not in truth:
        exact = torch_labeller(seeded_model(), torch.float32, False)
        truth[shape] = [exact(f).clone() for f in frames]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run = provider(name, shape, frames, built)
    labels = [run(f).clone() for f in frames]
    agreement = [(a == b).float().mean().item() for a, b in zip(labels, truth[shape], strict=True)]
    assert min(agreement) > 0.9, f"{name} agrees with fp32 on {min(agreement):.2%} of pixels only"

    def calls() -> None:
        for i in range(CALLS):
            run(frames[i % ROTATED])

    dtype = torch.float32 if "fp32" in name else torch.float16
    rows = plan(PRESETS["paper"], 19, shape[1:], batch=shape[0], dtype=dtype)
    record(
        benchmark, f"network {'x'.join(map(str, shape))}", name, turn,
        {
            "bytes": sum(r.bytes for r in rows), "flops": sum(r.flops for r in rows),
            "floor_us": sum(r.floor_us for r in rows), "images": shape[0],
            "label_agreement": min(agreement),
            "peak_memory_mb": (torch.cuda.max_memory_allocated() - before) / 1e6,
        },
    )  # fmt: skip
    benchmark._timer = GpuClock()
    benchmark.pedantic(calls, rounds=ROUNDS, warmup_rounds=1)


def record(benchmark: Any, group: str, name: str, turn: int, facts: dict[str, Any]) -> None:
    """What a row of the results needs beside its times (of CALLS calls each)."""
    benchmark.group = group
    benchmark.extra_info.update(
        facts,
        provider=name, turn=turn, calls=CALLS, gpu=torch.cuda.get_device_name(),
        cuda=torch.version.cuda, torch=torch.__version__,
        triton=importlib.import_module("triton").__version__,
    )  # fmt: skip


#: Layers of the paper's network at 1024x2048.
LAYERS: dict[str, tuple[str, Callable[[torch.dtype], op_cases.Inputs]]] = {
    "stem": ("stem_conv", lambda d: op_cases.stem((1, 1024, 2048), 1, d)),
    "ltd.dsconv1": ("dsconv", lambda d: op_cases.separable((1, 32, 512, 1024), 48, d, stride=2)),
    "ltd.dsconv2": ("dsconv", lambda d: op_cases.separable((1, 48, 256, 512), 64, d, stride=2)),
    "bottleneck1.0": (
        "inverted_residual", lambda d: op_cases.bottleneck((1, 64, 128, 256), 64, d, stride=2)),
    "bottleneck1.1": (
        "inverted_residual", lambda d: op_cases.bottleneck((1, 64, 64, 128), 64, d, residual=True)),
    "bottleneck2.1": (
        "inverted_residual", lambda d: op_cases.bottleneck((1, 96, 32, 64), 96, d, residual=True)),
    "bottleneck3.1": (
        "inverted_residual",
        lambda d: op_cases.bottleneck((1, 128, 32, 64), 128, d, residual=True)),
    "expand1.0": (
        "pointwise_conv",
        lambda d: op_cases.pointwise((1, 64, 128, 256), 384, d, activation="relu")),
    "pyramid": ("pyramid_pool", lambda d: op_cases.pyramid((1, 128, 32, 64), 32, 1, d)),
    "fusion": (
        "feature_fusion", lambda d: op_cases.fusion((64, 128, 256), (128, 32, 64), False, d)),
    "classifier": ("dsconv", lambda d: op_cases.separable((1, 128, 128, 256), 128, d)),
    "labels": ("argmax_head", lambda d: op_cases.head((1, 19, 128, 256), (1024, 2048), False, d)),
}  # fmt: skip


def on_gpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cuda()
    if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
        return [v.cuda() for v in value]
    return value


@pytest.mark.parametrize("module", [k, reference], ids=["fastscnn", "torch"])
@pytest.mark.parametrize("layer", LAYERS)
def test_op(benchmark: Any, layer: str, module: Any) -> None:
    """One layer in fp16, CALLS calls over rotated inputs in one CUDA graph."""
    op, make = LAYERS[layer]
    inputs = []
    for seed in range(ROTATED):
        torch.manual_seed(seed)
        args, kwargs = make(torch.float16)
        inputs.append((tuple(on_gpu(a) for a in args), {n: on_gpu(v) for n, v in kwargs.items()}))
    function = getattr(module, op)
    if module is k:
        cpu_args, cpu_kwargs = make(torch.float16)
        got = function(
            *(on_gpu(a) for a in cpu_args), **{n: on_gpu(v) for n, v in cpu_kwargs.items()}
        )
        got = tuple(t.cpu() for t in got) if isinstance(got, tuple) else got.cpu()
        op_cases.check(op_cases.Case(op, layer, make), got, cpu_args, cpu_kwargs)
    function(*inputs[0][0], **inputs[0][1])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(CALLS):
            args, kwargs = inputs[i % ROTATED]
            function(*args, **kwargs)
    moved = sum(t.numel() * t.element_size() for t in _flat(inputs[0]))
    record(benchmark, f"op {layer}", "fastscnn" if module is k else "torch", 0,
           {"input_bytes": moved, "images": 1})  # fmt: skip
    benchmark._timer = GpuClock()
    benchmark.pedantic(graph.replay, rounds=ROUNDS, warmup_rounds=2)


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [t for v in value for t in _flat(v)]
    return []
