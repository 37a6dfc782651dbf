"""Which implementation runs an operation on an NVIDIA GPU: CUDA C++, Triton or PyTorch's own.

CUDA C++ comes first, for the cases its kernels take (`cuda.Refused` says which not), where the
extension has code for the GPU: in float16 and bfloat16 that is a whole network from frame to labels
and confidence, without a compiler. Triton does the rest (float32, odd channels, probabilities).
Where Triton cannot run, the twins in PyTorch do the rest beside CUDA C++; with neither CUDA C++ nor
Triton one error says how to get them. What only training needs (`TRAINING`) runs in PyTorch on
every GPU until its Triton kernels have run on one.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
from packaging.version import Version
from torch import Tensor

from fastscnn_kernels import reference
from fastscnn_kernels.cuda import operations as cuda

MINIMUM_TRITON = Version("3.6")
MINIMUM_CAPABILITY = (8, 0)
KERNELS = ("auto", "cuda", "triton")
#: The operations that run as their twins on every GPU, though Triton has them.
TRAINING = (
    *("moments", "batch_norm", "batch_norm_backward", "norm_depthwise", "norm_depthwise_backward"),
    *("depthwise_conv_backward", "cross_entropy_head_sums", "cross_entropy_head_map"),
    "cross_entropy_head_backward",
)


class Bound(NamedTuple):
    """An operation with its weights and options: `run` takes the maps alone."""

    implementation: str
    run: Callable[..., Any]


class Composition:
    """The operations under the names and signatures of their twins.

    `rest` holds them all, in the implementation called `name`; `cuda_types` are the dtypes of which
    CUDA C++ takes what it can.
    """

    def __init__(
        self, rest: Any, name: str = "triton", cuda_types: tuple[torch.dtype, ...] = ()
    ) -> None:
        self._rest = rest
        self._name = name
        self._cuda_types = cuda_types

    def __getattr__(self, op: str) -> Callable[..., Any]:
        if op.startswith("_"):  # as copies and pickles ask for; no operation
            raise AttributeError(op)
        if op in TRAINING:
            return cast(Callable[..., Any], getattr(_Twins(), op))
        if not self._cuda_types or op not in cuda.OPERATIONS:
            return cast(Callable[..., Any], getattr(self._rest, op))
        ours = getattr(cuda, op)

        def first_of_both(*args: Any, **options: Any) -> Any:
            try:
                return ours(*args, **options)
            except cuda.Refused:
                return getattr(self._rest, op)(*args, **options)

        return first_of_both

    def bind(self, op: str, *weights: Any, **options: Any) -> Bound:
        """The operation for these weights, which CUDA C++ packs here, once."""
        if op in cuda.OPERATIONS and _dtype(weights) in self._cuda_types:
            try:
                return Bound("cuda", cuda.bind(op, *weights, **options))
            except cuda.Refused:
                pass
        run = getattr(self._rest, op)
        return Bound(self._name, lambda *maps: run(*maps, *weights, **options))

    def implementation(self, op: str, dtype: torch.dtype) -> str:
        """What runs `op` in `dtype`, if the channels fit: "cuda", "triton" or "torch"."""
        if op in TRAINING:
            return "torch"
        types = self._cuda_types
        if types and op == "argmax_head":  # multiplies no matrices: Turing runs it in bfloat16 too
            types = tuple(cuda.TYPES)
        return "cuda" if op in cuda.OPERATIONS and dtype in types else self._name

    def counters(self, device: torch.device) -> Tensor:
        """See `cuda.counters`."""
        return cuda.counters(device)

    def __str__(self) -> str:
        name = {"triton": "Triton", "torch": "PyTorch"}.get(self._name, self._name)
        if not self._cuda_types:
            return name
        types = " and ".join(str(t).removeprefix("torch.") for t in self._cuda_types)
        return f"CUDA C++ from frame to labels in {types}; {name} for the rest"


def _dtype(weights: Sequence[Any]) -> torch.dtype:
    """Of the first tensor; pyramid_pool's come in lists."""
    first = weights[0] if isinstance(weights[0], Tensor) else weights[0][0]
    return cast(torch.dtype, first.dtype)


class _Twins:
    """The twins on a GPU; float32 stays IEEE's, not TF32."""

    def __getattr__(self, op: str) -> Callable[..., Any]:
        twin = getattr(reference, op)

        def run(*args: Any, **options: Any) -> Any:
            with _ieee_convolutions():
                return twin(*args, **options)

        return run


@contextmanager
def _ieee_convolutions() -> Iterator[None]:
    """float32 convolutions without TF32 inside.

    By the switch of this operation: that of all cuDNN (`cudnn.flags`) cannot be read where a user
    has set `torch.backends.fp32_precision`.
    """
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before


@functools.cache
def on(device: torch.device, kernels: str = "auto") -> Composition:
    """What runs on `device`.

    `kernels`: "auto" as the module says, "triton" for Triton alone, "cuda" for an error where CUDA
    C++ cannot take part. RuntimeError says why something cannot run, and the fix.
    """
    if kernels not in KERNELS:
        raise ValueError(f"kernels={kernels!r}: expected one of {', '.join(KERNELS)}")
    missing = "" if kernels == "triton" else cuda.missing(device)
    if kernels == "cuda" and missing:
        raise RuntimeError(missing)
    types: tuple[torch.dtype, ...] = ()
    if kernels != "triton" and not missing:
        newer = torch.cuda.get_device_capability(device) >= MINIMUM_CAPABILITY
        types = tuple(cuda.TYPES)[: 2 if newer else 1]
    try:
        return Composition(triton_operations(device), "triton", types)
    except RuntimeError as error:
        if types:
            return Composition(_Twins(), "torch", types)
        raise RuntimeError(f"{error}. CUDA C++: {missing}" if missing else str(error)) from None


def assumed(kernels: str = "auto") -> Composition:
    """What would run on a GPU of compute capability 8.0 or newer that has Triton."""
    with_cuda = kernels != "triton" and not cuda.missing()
    return Composition(reference, "triton", tuple(cuda.TYPES) if with_cuda else ())


def triton_operations(device: torch.device) -> ModuleType:
    """`fastscnn_kernels.triton`, or one error that says why it cannot run on `device`."""
    check_triton()
    capability = torch.cuda.get_device_capability(device)
    if capability < MINIMUM_CAPABILITY:
        raise RuntimeError(
            f"{torch.cuda.get_device_name(device)} has compute capability "
            f"{capability[0]}.{capability[1]}: the Triton kernels need 8.0 (Ampere) or newer. "
            "Build the CUDA C++ kernels, which serve 7.5 (FASTSCNN_CUDA=1 pip install "
            "--no-build-isolation .), or run on the CPU"
        )
    return importlib.import_module("fastscnn_kernels.triton")


def check_triton() -> None:
    """Raises RuntimeError, naming the fix, where Triton is missing or too old."""
    try:
        import triton
    except ImportError:
        raise RuntimeError(
            f"CUDA tensors need Triton {MINIMUM_TRITON} or newer, which is not installed: "
            f'pip install "triton>={MINIMUM_TRITON}"'
        ) from None
    if Version(triton.__version__) < MINIMUM_TRITON:
        raise RuntimeError(
            f"Triton {triton.__version__} is too old: the kernels need {MINIMUM_TRITON} or newer "
            f'(it comes with torch 2.10): pip install "triton>={MINIMUM_TRITON}"'
        )
