"""The captured engine: one CUDA graph per shape, static buffers, no launch cost per kernel."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastscnn.inference.cpu_runtime import CpuRuntime
from fastscnn.inference.fold import fold
from fastscnn.inference.gpu_runtime import GpuRuntime
from fastscnn.inference.stream import overlapped
from fastscnn.network.model import MIN_SIZE, FastSCNN
from fastscnn.network.segment import resize_frames
from fastscnn_kernels import composition
from fastscnn_kernels.cpu import int8 as cpu_int8
from fastscnn_kernels.cpu import pack as cpu_pack

Size = tuple[int, int]
Results = dict[str, Tensor]

OUTPUTS = ("labels", "confidence", "probabilities", "logits")
#: Threads capture in turn: what comes before a capture (a synchronisation of the device) would
#: break another one, and warnings are caught for all threads.
_CAPTURING = threading.Lock()


class Engine:
    """Runs a model's folded network at fixed shapes without allocating.

    The first call with a shape warms up and, on a GPU, captures a CUDA graph; later calls replay
    it on the caller's current stream. `max_graphs` shapes are kept, the least recently used goes.
    The weights are those of the moment of construction (or of `refresh`). One engine serves one
    thread; `fork` makes another that shares the weights. On the CPU the same rules hold without
    graphs.

    `outputs`: any of "labels" (uint8 N x H x W), "confidence" (float32 N x H x W), "probabilities"
    (float32 N x K x H x W) and "logits" (the model's dtype, N x K x H x W). `kernels` on a GPU:
    "auto" (CUDA C++ from frame to labels where the extension has code for the GPU, Triton the rest,
    PyTorch's own operations where Triton cannot run), "triton" (alone) or "cuda" (RuntimeError
    where CUDA C++ cannot take part).
    """

    def __init__(
        self,
        model: FastSCNN,
        *,
        outputs: tuple[str, ...] = ("labels",),
        max_graphs: int = 8,
        kernels: str = "auto",
    ) -> None:
        self._weights = _Weights(model, kernels)
        self._configure(outputs, max_graphs)

    @classmethod
    def of_runtime(cls, model: FastSCNN, runtime: Any) -> Engine:
        """An engine for labels on the weights of `runtime`, which was built from `model`."""
        engine = cls.__new__(cls)
        engine._weights = _Weights(model, "auto", runtime)
        engine._configure(("labels",), 8)
        return engine

    def _configure(self, outputs: tuple[str, ...], max_graphs: int) -> None:
        unknown = sorted(set(outputs) - set(OUTPUTS))
        if unknown or not outputs:
            raise ValueError(f"outputs={outputs!r}: expected one or more of {', '.join(OUTPUTS)}")
        if max_graphs < 1:
            raise ValueError(f"max_graphs={max_graphs}: expected 1 or more")
        self.outputs = tuple(outputs)
        self.max_graphs = max_graphs
        self._graphs: OrderedDict[Any, _Graph] = OrderedDict()
        self._version = self._weights.version

    def fork(self, *, outputs: tuple[str, ...] | None = None) -> Engine:
        """Another engine on the same weights, for another thread, stream or set of outputs."""
        other = Engine.__new__(Engine)
        other._weights = self._weights
        other._configure(outputs or self.outputs, self.max_graphs)
        return other

    def refresh(self) -> None:
        """Folds the model's present weights, for this engine and its forks; graphs are renewed."""
        self._weights.fold()

    @property
    def device(self) -> torch.device:
        return self._weights.device

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of the weights (shared by forks) and of each captured shape's buffers."""
        graphs = {key: graph.bytes for key, graph in self._graphs.items()}
        weights = self._weights.runtime.weight_bytes
        return {
            "weights": weights,
            "graphs": sum(graphs.values()),
            "number_of_graphs": len(graphs),
            "total": weights + sum(graphs.values()),
        }

    def __call__(
        self, frames: Tensor, size: Size | None = None, *, working: Size | None = None
    ) -> Results:
        """Outputs by name, at `size` (default: the frames' own).

        `working` is the network's input size for uint8 frames (default: the frames' own), to which
        they are resized on the way, on a GPU inside the graph.

        `frames` is uint8 RGB N x H x W x 3 or normalised float N x 3 x H x W on the engine's
        device, in any layout (a view that is not contiguous is copied). The results are the
        engine's own buffers: the next call with this shape overwrites them. A call from another
        stream than the one before waits for what that stream was given until then, its reads of
        the results included.
        """
        self._check(frames, working)
        return self._graph(frames, size, working).run(frames)

    def input(self, shape: tuple[int, ...], size: Size | None = None) -> Tensor:
        """The static input for uint8 frames of `shape`: filled in place and passed to the engine,
        it spares a copy."""
        frames = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        self._check(frames)
        return self._graph(frames, size).input

    def stream(
        self, frames: Iterable[Tensor | np.ndarray], size: Size | None = None
    ) -> Iterator[Results]:
        """Results on the CPU, in order, for uint8 CPU frames H x W x 3 or N x H x W x 3.

        On a GPU upload, compute and download overlap through two sets of pinned buffers, so a
        result comes two frames after its input; work runs on the caller's current stream.
        """
        return overlapped(self, frames, size)

    def _graph(self, frames: Tensor, size: Size | None, working: Size | None = None) -> _Graph:
        if self._version != self._weights.version:
            self._graphs.clear()
            self._version = self._weights.version
        key = (tuple(frames.shape), frames.dtype, size, working)
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        while len(self._graphs) >= self.max_graphs:
            self._graphs.popitem(last=False)
        try:
            graph = _Graph(self._compute(size, working), frames)
        except torch.OutOfMemoryError as error:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            raise torch.OutOfMemoryError(
                f"out of memory for frames {'x'.join(map(str, frames.shape))} with "
                f"{len(self._graphs)} other shapes kept ({self.memory['graphs'] / 1e6:.0f} MB): "
                "lower max_graphs, the batch or the size; the engine can still be used"
            ) from error
        self._graphs[key] = graph
        return graph

    def _compute(self, size: Size | None, working: Size | None) -> Callable[[Tensor], Results]:
        """From the frames to the outputs.

        On a GPU with counters of its own, zeroed here, once: every pass leaves them zero.
        """
        runtime, names = self._weights.runtime, self.outputs
        options = {} if self.device.type == "cpu" else {"counters": runtime.counters()}

        def compute(x: Tensor) -> Results:
            if working is None:
                return runtime.outputs(x, names, size, **options)
            resized = resize_frames(x, working)
            out = size or (x.shape[1], x.shape[2])
            return runtime.outputs(resized, names, out, **options)

        return compute

    def _check(self, frames: Tensor, working: Size | None = None) -> None:
        if not isinstance(frames, Tensor):
            raise TypeError(
                f"frames is a {type(frames).__name__}: expected a torch.Tensor on {self.device}; "
                "use torch.from_numpy(...).to(...), or engine.stream for CPU frames"
            )
        if frames.device != self.device:
            raise ValueError(
                f"frames is on {frames.device}, the engine on {self.device}: use "
                f"frames.to({str(self.device)!r}), or engine.stream for CPU frames"
            )
        is_bytes = frames.dtype == torch.uint8
        if not is_bytes and not frames.is_floating_point():
            raise TypeError(
                f"frames is {frames.dtype}: expected uint8 N x H x W x 3 or normalised float "
                "N x 3 x H x W"
            )
        colours = frames.shape[3 if is_bytes else 1] if frames.dim() == 4 else 0
        if colours != 3 or frames.shape[0] == 0:
            expected = "N x H x W x 3" if is_bytes else "N x 3 x H x W"
            raise ValueError(
                f"frames has shape {tuple(frames.shape)} ({frames.dtype}): expected {expected}"
                + ("; use frames[None] for a single one" if frames.dim() == 3 else "")
            )
        if working is not None and not is_bytes:
            raise ValueError(
                f"working={working}: only uint8 frames are resized, got {frames.dtype}"
            )
        h, w = working or (frames.shape[1:3] if is_bytes else frames.shape[2:4])
        if min(h, w) < MIN_SIZE:
            raise ValueError(
                f"frames are {h}x{w}: expected at least {MIN_SIZE}x{MIN_SIZE}; resize or pad to "
                f"{max(h, MIN_SIZE)}x{max(w, MIN_SIZE)}"
            )


def build_runtime(model: FastSCNN, kernels: str = "auto") -> Any:
    """The folded weights of `model` in what runs them on its device, ready for any stream.

    `kernels` is for GPUs, see `Engine`; elsewhere it must be "auto".
    """
    parameter = next(model.parameters())
    device = parameter.device
    if device.type == "cuda":
        ops = composition.on(device, kernels)
        runtime = GpuRuntime(fold(model), model.config, model.num_classes, parameter.dtype, ops=ops)
        torch.cuda.current_stream(device).synchronize()
        return runtime
    if kernels != "auto":
        raise ValueError(f"kernels={kernels!r}: the model is on {device}, expected an NVIDIA GPU")
    if device.type != "cpu":
        raise ValueError(f"the model is on {device}: expected the CPU or an NVIDIA GPU")
    if getattr(model, "cpu_products", torch.float32) == torch.bfloat16:
        isa = cpu_pack.bf16_instruction_set()
        return CpuRuntime(fold(model), model.config, model.num_classes, isa=isa)
    ranges = model.card.ranges if model.card and cpu_int8.pays() else None
    return CpuRuntime(fold(model), model.config, model.num_classes, ranges=ranges)


class _Weights:
    """A model's folded weights in a runtime, shared by an engine and its forks."""

    def __init__(self, model: FastSCNN, kernels: str, runtime: Any = None) -> None:
        self._model, self._kernels = model, kernels
        self.version = 0
        self.runtime = runtime or build_runtime(model, kernels)
        self.device = next(model.parameters()).device

    def fold(self) -> None:
        self.runtime = build_runtime(self._model, self._kernels)
        self.device = next(self._model.parameters()).device
        self.version += 1


class _Graph:
    """One shape: its static buffers and, on a GPU, the captured kernels between them."""

    def __init__(self, compute: Callable[[Tensor], Results], frames: Tensor) -> None:
        self._compute = compute
        self._graph: torch.cuda.CUDAGraph | None = None
        self.input = torch.empty_like(frames, memory_format=torch.contiguous_format)
        if frames.device.type == "cuda":
            with _CAPTURING, torch.cuda.device(frames.device):
                self._stream = torch.cuda.current_stream()
                pool_bytes = self._capture()
            self.bytes = self.input.nbytes + pool_bytes
        else:
            self._results = {k: t.clone() for k, t in compute(self.input).items()}
            self.bytes = self.input.nbytes + sum(t.nbytes for t in self._results.values())

    def _capture(self) -> int:
        """Warms up (compiles) and captures on a side stream; returns the graph's bytes.

        The stream is this device's: torch's own for captures belongs to the first device that had
        one, and on another device the work would run at once and leave the graph empty.
        """
        side = torch.cuda.Stream()
        side.wait_stream(self._stream)
        with torch.cuda.stream(side):
            self._compute(self.input)
        self._stream.wait_stream(side)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # entering a capture does so too; here it settles the count
        before = torch.cuda.memory_reserved()
        graph = torch.cuda.CUDAGraph()
        # Errors of this thread only: others may allocate.
        with (
            _no_empty_graph(),
            torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"),
        ):
            self._results = self._compute(self.input)
        self._graph = graph
        return torch.cuda.memory_reserved() - before

    def run(self, frames: Tensor) -> Results:
        if self._graph is None:
            self._fill(frames)
            for name, t in self._compute(self.input).items():
                self._results[name].copy_(t)
            return dict(self._results)
        stream = torch.cuda.current_stream(self.input.device)
        if stream != self._stream:  # which may still read the input or the results
            stream.wait_stream(self._stream)
            self.input.record_stream(stream)
            self._stream = stream
        self._fill(frames)
        self._graph.replay()
        return dict(self._results)

    def _fill(self, frames: Tensor) -> None:
        if frames.data_ptr() != self.input.data_ptr():
            self.input.copy_(frames)


@contextmanager
def _no_empty_graph() -> Iterator[None]:
    """Raises RuntimeError where a capture inside recorded no kernel, of which torch only warns:
    replays would return what was in the buffers."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if "CUDA Graph is empty" in str(warning.message):
            raise RuntimeError(
                "the capture recorded nothing, its kernels ran on another device or stream: make "
                "the engine's device current (torch.cuda.set_device) before the first call"
            )
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
