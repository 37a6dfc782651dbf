"""The drop-in fused network: the reference's parameters, run in fused kernels at inference."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from fastscnn.cpu_runtime import CpuRuntime
from fastscnn.engine import Engine
from fastscnn.fold import fold
from fastscnn.gpu_runtime import GpuRuntime
from fastscnn.model import FastSCNN, check_input
from fastscnn.plan import Row, plan
from fastscnn.segment import Size


class _State:
    """What the folded weights were made from, and whether it still is the same.

    Asked before every fused call, so it walks flat lists (50 us) instead of the module tree.
    """

    def __init__(self, model: FastSCNN) -> None:
        modules = list(model.modules())
        self._children = [(m._modules, n, c) for m in modules for n, c in m._modules.items()]
        self._slots = [
            (table, name, tensor)
            for m in modules
            for table in (m._parameters, m._buffers)
            for name, tensor in table.items()
            if tensor is not None and name != "num_batches_tracked"
        ]
        self._versions = [_version(tensor) for _, _, tensor in self._slots]
        self._fusion, self._zero_skip = model.feature_fusion, model.feature_fusion.zero_skip

    def unchanged(self) -> bool:
        """No tensor was written in place or replaced, no module was replaced."""
        return (
            self._fusion.zero_skip == self._zero_skip
            and all(table.get(name) is tensor for table, name, tensor in self._slots)
            and [_version(tensor) for _, _, tensor in self._slots] == self._versions
            and all(table.get(name) is child for table, name, child in self._children)
        )


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class FusedFastSCNN(FastSCNN):
    """A `FastSCNN` whose inference runs on folded weights in fused kernels.

    Same parameters, same state dict, same results within rounding. In `eval()` and where no
    gradient is asked for (`torch.no_grad()`, `torch.inference_mode()`, or parameters that need
    none), `forward`, `scores`, `segment` and `probabilities` run fused: in C++ for float32 on the
    CPU, in Triton and CUDA C++ on an NVIDIA GPU. Everywhere else (training, gradients, other
    dtypes on the CPU) they are the reference's own mathematics.

    Folded weights are derived data. They are renewed when a parameter or buffer changed
    (`optimizer.step()`, `load_state_dict`, in-place operations) and after `train()`, `eval()` and
    `.to()`. A write through `.data` cannot be seen: call `refold()` after it. Hooks on inner
    modules do not run in the fused path.
    """

    _runtime: Any = None
    _state: _State | None = None
    #: An engine for each thread that calls `segment` on a GPU; built with the folded weights.
    _engines: Any = None

    def refold(self) -> None:
        """Drops the folded weights; the next fused call folds anew."""
        self._runtime = self._state = None

    def forward(self, x: Tensor) -> Tensor:
        if not self._runs_fused(x):
            return super().forward(x)
        check_input(x)
        logits: Tensor = self._current_runtime().logits(x.to(self._dtype()))
        return logits

    def scores(self, x: Tensor) -> Tensor:
        """Class scores at 1/8 of the input size, N x num_classes x h x w."""
        if not self._runs_fused(x):
            return super().scores(x)
        check_input(x)
        scores: Tensor = self._current_runtime().scores(x.to(self._dtype()))
        return scores

    def probabilities(self, x: Tensor) -> Tensor:
        """Softmax class probabilities N x C x H x W of a normalised N x 3 x H x W."""
        with torch.no_grad():
            if not self._runs_fused(x):
                return super().probabilities(x)
            check_input(x)
            out = (x.shape[2], x.shape[3])
            result: Tensor = self._current_runtime().probabilities(x.to(self._dtype()), out)
            return result

    def plan(self, size: Size, *, batch: int = 1) -> list[Row]:
        """What a batch of frames of `size` costs on a GPU: a row per kernel, nothing is run."""
        size = self.input_size(size, size)
        dtype = self._dtype() if self._device().type == "cuda" else torch.float16
        return plan(self.config, self.num_classes, size, batch=batch, dtype=dtype)

    def _labels(self, frames: Tensor, out: Size, threads: int | None = None) -> Tensor:
        if not self._runs_fused(frames):
            return super()._labels(frames, out, threads)
        runtime = self._current_runtime()
        if frames.device.type == "cpu":
            labels: Tensor = runtime.labels(frames, out, threads)[0]
            return labels
        if not hasattr(self._engines, "engine"):
            self._engines.engine = Engine(self)
        return self._engines.engine(frames, out)["labels"].clone()

    def _runs_fused(self, x: Tensor) -> bool:
        weight = self.classifier.conv.weight
        if self.training or (x.device.type == "cpu" and weight.dtype != torch.float32):
            return False
        if x.device != weight.device or x.device.type not in ("cpu", "cuda"):
            return False  # torch's own error or device support
        wants_gradient = x.requires_grad or any(p.requires_grad for p in self.parameters())
        return not (torch.is_grad_enabled() and wants_gradient)

    def _current_runtime(self) -> Any:
        if torch.compiler.is_compiling():  # registered operations, which a trace keeps whole
            return GpuRuntime(fold(self), self.config, self.num_classes, self._dtype())
        if self._runtime is None or self._state is None or not self._state.unchanged():
            self._runtime = self._build_runtime()
            self._engines = threading.local()
            self._state = _State(self)
        return self._runtime

    def _build_runtime(self) -> Any:
        folded = fold(self)
        if self._device().type == "cpu":
            return CpuRuntime(folded, self.config, self.num_classes)
        return GpuRuntime(folded, self.config, self.num_classes, self._dtype())

    def train(self, mode: bool = True) -> FusedFastSCNN:
        self.refold()
        super().train(mode)
        return self

    def _apply(self, *args: Any, **kwargs: Any) -> FusedFastSCNN:
        self.refold()
        super()._apply(*args, **kwargs)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry the parameters only."""
        derived = ("_runtime", "_state", "_engines")
        return {k: v for k, v in self.__dict__.items() if k not in derived}
