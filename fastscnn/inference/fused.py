"""The drop-in fused network: the reference's parameters, run in fused kernels at inference."""

from __future__ import annotations

import threading
from dataclasses import replace
from operator import attrgetter, is_
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

from fastscnn.inference import fused_training
from fastscnn.inference.engine import Engine, build_runtime
from fastscnn.inference.fold import fold
from fastscnn.inference.gpu_runtime import GpuRuntime
from fastscnn.inference.plan import Row, plan
from fastscnn.network.model import FastSCNN, check_input
from fastscnn.network.segment import Size
from fastscnn_kernels import TRAINING_DEVICES, composition

_VERSION = attrgetter("_version")
_WATCHED = [attrgetter(name) for name in ("training", "_forward_hooks", "_forward_pre_hooks")]


class _State:
    """What folded weights were made from, and whether it still is the same.

    Asked before every fused call, so it walks flat lists instead of the tree, in maps that run no
    Python for each of some 500 entries (0.2 ms behind a frame, which leaves caches without them).
    """

    def __init__(self, model: FastSCNN) -> None:
        self._inner = [m for m in model.modules() if m is not model]
        modules = [model, *self._inner]
        slots = [
            (table, name, held)
            for m in modules
            for table in (m._modules, m._parameters, m._buffers)
            for name, held in table.items()
            if name != "num_batches_tracked"
        ]
        self._tables, self._names, self._held = zip(*slots, strict=True)
        self._tensors = [t for t in self._held if isinstance(t, Tensor)]
        #: Tensors made under inference_mode do not count their writes.
        self._countable = not any(t.is_inference() for t in self._tensors)
        self._versions = self._current_versions()
        self._fusion, self._zero_skip = model.feature_fusion, model.feature_fusion.zero_skip

    def unchanged(self) -> bool:
        """No tensor was written in place or replaced, no module was replaced."""
        return (
            self._countable
            and self._fusion.zero_skip == self._zero_skip
            and self._current_versions() == self._versions
            and all(map(is_, map(dict.get, self._tables, self._names), self._held))
        )

    def needs_reference(self) -> bool:
        """An inner module is in training mode or has hooks, which only the reference runs."""
        return any(any(map(state, self._inner)) for state in _WATCHED)

    def _current_versions(self) -> list[int]:
        return list(map(_VERSION, self._tensors)) if self._countable else []


class _Folded(NamedTuple):
    """Folded weights in a runtime, what they were made from, and an engine per thread on a GPU."""

    runtime: Any
    state: Any = None  # as in a trace, whose weights are folded in it
    engines: Any = None

    def engine(self, model: FastSCNN) -> Engine:
        """The calling thread's."""
        if not hasattr(self.engines, "engine"):
            self.engines.engine = Engine.of_runtime(model, self.runtime)
        engine: Engine = self.engines.engine
        return engine


def _is_traced(x: Tensor) -> bool:
    """Whether something watches or transforms the computation: then only torch's own will do."""
    return (
        type(x) is not Tensor
        or torch.jit.is_tracing()
        or _get_current_dispatch_mode() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


class FusedFastSCNN(FastSCNN):
    """A `FastSCNN` whose inference runs on folded weights in fused kernels.

    Same parameters, same state dict, same results within rounding. In `eval()` and where no
    gradient is asked for (`torch.no_grad()`, `torch.inference_mode()`, or parameters that need
    none), `forward`, `scores`, `segment` and `probabilities` run fused: in C++ for float32 on the
    CPU, in CUDA C++ and Triton (`fastscnn info` says which) on an NVIDIA GPU, where `segment`
    replays one captured graph per shape.
    Where gradients are asked for, in training or in `eval()`, they run in fused operations with
    gradients if `fused_training` says so: None for the devices where that pays off (the CPU), True,
    or False for the reference's own mathematics, bit for bit. Those run everywhere else, too (hooks
    on inner modules, traces and transforms, SyncBatchNorm, other dtypes of the parameters).

    Folded weights are derived data. They are renewed when a parameter or buffer changed
    (`optimizer.step()`, `load_state_dict`, in-place operations) and after `train()`, `eval()` and
    `.to()`. A write through `.data` cannot be seen: call `refold()` after it. The structure is
    that of `config`; attributes of inner layers (eps, dilation) are not to be changed by hand.

    `cpu_products = torch.bfloat16` (as `fastscnn.load(dtype=...)` sets it on a CPU) lets float32
    inference on a CPU with AVX512-BF16 round the inputs and weights of dense convolutions to
    bfloat16; sums, maps and parameters stay float32. Other CPUs ignore it.

    Where the card has `ranges` (`fastscnn quantize`), float32 inference on a CPU with AVX-512 runs
    its trunk in int8. The ranges are those of the weights that were loaded: `train()` and
    `load_state_dict` drop them. With products of bfloat16 they are not used.
    """

    _folded: _Folded | None = None
    _cpu_products = torch.float32

    @property
    def cpu_products(self) -> torch.dtype:
        """What dense convolutions on a CPU multiply: torch.float32 or torch.bfloat16."""
        return self._cpu_products

    @cpu_products.setter
    def cpu_products(self, dtype: torch.dtype) -> None:
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"cpu_products={dtype}: expected torch.float32 or torch.bfloat16")
        self._cpu_products = dtype
        self.refold()

    def __init__(self, *args: Any, fused_training: bool | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fused_training = fused_training

    def refold(self) -> None:
        """Drops the folded weights; the next fused call folds anew."""
        self._folded = None

    def forward(self, x: Tensor) -> Tensor:
        """Logits N x num_classes x H x W of a normalised N x 3 x H x W."""
        folded = self._folded_for(x)
        if folded is None:
            return super().forward(x)
        check_input(x)
        logits: Tensor = folded.runtime.logits(x.to(self._dtype()))
        return logits

    def scores(self, x: Tensor) -> Tensor:
        """Class scores at 1/8 of the input size, N x num_classes x h x w."""
        folded = self._folded_for(x)
        if folded is None:
            if self._trains_fused(x):
                check_input(x)
                return fused_training.scores(self, x)
            return super().scores(x)
        check_input(x)
        scores: Tensor = folded.runtime.scores(x.to(self._dtype()))
        return scores

    def scores_aux(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class scores at 1/8, auxiliary scores at 1/8 and at 1/32 of the input."""
        if self.aux is None or not self._trains_fused(x):
            return super().scores_aux(x)
        check_input(x)
        return fused_training.scores_aux(self, x)

    def _trains_fused(self, x: Tensor) -> bool:
        """Whether gradients are asked for, and come from the fused operations."""
        if not torch.is_grad_enabled() or not isinstance(x, Tensor):
            return False
        wanted, weight = self.fused_training, self.classifier.conv.weight
        if wanted is None:
            wanted = x.device.type in TRAINING_DEVICES
        floats = (torch.float32, torch.float16, torch.bfloat16)
        return (
            wanted
            and x.device == weight.device
            and x.device.type in ("cpu", "cuda")
            and (x.dtype in floats if weight.dtype == torch.float32 else x.dtype == torch.float64)
            and weight.dtype in (torch.float32, torch.float64)
            and not torch.compiler.is_compiling()
            and not _is_traced(x)
            and fused_training.runs_fused(self)
        )

    def probabilities(self, x: Tensor) -> Tensor:
        """Softmax class probabilities N x C x H x W of a normalised N x 3 x H x W."""
        with torch.no_grad():
            folded = self._folded_for(x)
            if folded is None:
                return super().probabilities(x)
            check_input(x)
            result: Tensor = folded.runtime.probabilities(x.to(self._dtype()))
            return result

    def plan(self, size: Size, *, batch: int = 1) -> list[Row]:
        """What a batch of frames of `size` costs on a GPU: a row per kernel, nothing is run."""
        size, device = self.input_size(size, size), self._device()
        on_gpu = device.type == "cuda"
        dtype = self._dtype() if on_gpu else torch.float16
        ops = composition.on(device) if on_gpu else composition.assumed()
        return plan(self.config, self.num_classes, size, batch=batch, dtype=dtype, ops=ops)

    def _labels(self, frames: Tensor, size: Size, out: Size, threads: int | None = None) -> Tensor:
        folded = self._folded_for(frames)
        if folded is None:
            return super()._labels(frames, size, out, threads)
        if frames.device.type == "cuda":
            return folded.engine(self)(frames, out, working=size)["labels"].clone()
        labels: Tensor = folded.runtime.labels(frames, out, threads, size=size)
        return labels

    def _folded_for(self, x: Tensor) -> _Folded | None:
        """What computes `x` fused, or None where the reference's mathematics are due."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x is {type(x).__name__}: expected a torch.Tensor N x 3 x H x W")
        weight = self.classifier.conv.weight
        if self.training or (x.device.type == "cpu" and weight.dtype != torch.float32):
            return None
        if x.device != weight.device or x.device.type not in ("cpu", "cuda"):
            return None  # torch's own error or device support
        if torch.is_grad_enabled() and (
            x.requires_grad or any(p.requires_grad for p in self.parameters())
        ):
            return None
        if torch.compiler.is_exporting():
            return None  # other programs have no operations but torch's
        if torch.compiler.is_compiling():  # registered operations, which a trace keeps whole
            runtime = GpuRuntime(fold(self), self.config, self.num_classes, self._dtype())
            return _Folded(runtime)
        if _is_traced(x):
            return None
        folded = self._current()
        return None if folded.state.needs_reference() else folded

    def _current(self) -> _Folded:
        """Folded weights that are not stale. One object, so that threads see all of it or none."""
        folded = self._folded
        if folded is None or not folded.state.unchanged():
            state = _State(self)  # first: a write during the fold must not go unnoticed
            folded = _Folded(build_runtime(self), state, threading.local())
            self._folded = folded
        return folded

    def train(self, mode: bool = True) -> FusedFastSCNN:
        self.refold()
        if mode:
            self._drop_ranges()
        super().train(mode)
        return self

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self._drop_ranges()
        return super().load_state_dict(*args, **kwargs)

    def _first(self) -> Tensor:
        return self.classifier.conv.weight  # quicker than walking to the first

    def _drop_ranges(self) -> None:
        """Those of the card belong to weights that are about to change."""
        if self.card and self.card.ranges:
            self.card = replace(self.card, ranges={})

    def _apply(self, *args: Any, **kwargs: Any) -> FusedFastSCNN:
        self.refold()
        super()._apply(*args, **kwargs)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry the parameters only."""
        return {k: v for k, v in self.__dict__.items() if k != "_folded"}
