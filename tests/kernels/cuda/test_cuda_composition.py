"""Which implementation a GPU gets, by what is installed, built and asked for; no GPU is needed."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from op_cases import CASES, Case
from torch.utils._python_dispatch import TorchDispatchMode

from fastscnn.inference.engine import Engine
from fastscnn.inference.fold import fold
from fastscnn.inference.gpu_runtime import GpuRuntime
from fastscnn.info import info
from fastscnn.network.model import FastSCNN
from fastscnn_kernels import composition, extension, reference, reference_training
from fastscnn_kernels.composition import Composition
from fastscnn_kernels.cuda import operations as cuda

HALF, BFLOAT, SINGLE = torch.float16, torch.bfloat16, torch.float32
NO_CODE = "this build has no code for it; rebuild with FASTSCNN_CUDA=1"
DEVICE = torch.device("cuda", 0)
TRITON = Path(composition.__file__).parent / "triton/__init__.py"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    composition.on.cache_clear()
    yield
    composition.on.cache_clear()


def pretend(
    patch: pytest.MonkeyPatch, *, capability: tuple[int, int], missing: str, triton: str = ""
) -> None:
    """A GPU for which CUDA C++ and Triton are `missing` for the reason given, if any."""

    def check_triton() -> None:
        if triton:
            raise RuntimeError(triton)

    patch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    patch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    patch.setattr(cuda, "missing", lambda _=None: missing)
    patch.setattr(composition, "check_triton", check_triton)
    patch.setattr(composition, "importlib", SimpleNamespace(import_module=lambda _: reference))


def chosen(op: str = "dsconv", kernels: str = "auto") -> dict[torch.dtype, str]:
    ops = composition.on(DEVICE, kernels)
    return {t: ops.implementation(op, t) for t in (HALF, BFLOAT, SINGLE)}


def test_cuda_for_its_blocks_and_triton_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, capability=(9, 0), missing="")
    assert chosen() == {HALF: "cuda", BFLOAT: "cuda", SINGLE: "triton"}
    assert chosen("softmax_head") == dict.fromkeys((HALF, BFLOAT, SINGLE), "triton")
    assert chosen(kernels="cuda") == chosen()
    assert chosen(kernels="triton") == dict.fromkeys((HALF, BFLOAT, SINGLE), "triton")
    assert str(composition.on(DEVICE)) == (
        "CUDA C++ from frame to labels in float16 and bfloat16; Triton for the rest"
    )


@pytest.mark.parametrize("missing", ["the extension was built without CUDA", NO_CODE])
def test_triton_alone(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    pretend(monkeypatch, capability=(8, 6), missing=missing)
    assert chosen() == dict.fromkeys((HALF, BFLOAT, SINGLE), "triton")
    assert str(composition.on(DEVICE)) == "Triton"
    with pytest.raises(RuntimeError, match=missing):
        composition.on(DEVICE, "cuda")


def test_pytorch_beside_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jetson: no Triton. Turing: Triton cannot serve it, and it multiplies no bfloat16."""
    with monkeypatch.context() as patch:
        pretend(patch, capability=(8, 7), missing="", triton="Triton is not installed")
        assert chosen() == {HALF: "cuda", BFLOAT: "cuda", SINGLE: "torch"}
        with pytest.raises(RuntimeError, match="Triton is not installed"):
            composition.on(DEVICE, "triton")
    composition.on.cache_clear()
    pretend(monkeypatch, capability=(7, 5), missing="")
    assert chosen() == {HALF: "cuda", BFLOAT: "torch", SINGLE: "torch"}
    assert chosen("argmax_head") == {HALF: "cuda", BFLOAT: "cuda", SINGLE: "torch"}
    assert chosen("pyramid_pool") == {HALF: "cuda", BFLOAT: "torch", SINGLE: "torch"}


def test_an_a100_multiplies_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """8.0 is the first capability that does, and that Triton serves."""
    pretend(monkeypatch, capability=(8, 0), missing="")
    assert chosen() == {HALF: "cuda", BFLOAT: "cuda", SINGLE: "triton"}


def test_training_runs_in_pytorch_on_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton has them too, but they have not run on a GPU yet; the twin gets the call as it is."""
    names = {n.split("::")[1] for n in torch._C._dispatch_get_all_op_names() if "fastscnn::" in n}
    in_triton = set(re.findall(r'^    "(\w+)",$', TRITON.read_text(), re.MULTILINE))
    assert names == in_triton
    assert {n for n in names if hasattr(reference_training, n)} == set(composition.TRAINING)
    pretend(monkeypatch, capability=(9, 0), missing="")
    for op in composition.TRAINING:
        assert chosen(op) == dict.fromkeys((HALF, BFLOAT, SINGLE), "torch")
    x = torch.randn(2, 3, 4, 5)
    got = Composition(SimpleNamespace(), "triton").moments(x)
    assert all(map(torch.equal, got, reference.moments(x)))


def test_with_neither_one_error_names_both_fixes(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, capability=(8, 7), missing=NO_CODE, triton="Triton is not installed")
    with pytest.raises(RuntimeError, match=r"Triton is not installed.*FASTSCNN_CUDA=1"):
        composition.on(DEVICE)


@pytest.mark.parametrize("chosen", ["", "torch.backends.fp32_precision", "cudnn.allow_tf32"])
def test_the_twins_keep_float32_exact_and_the_switch_as_it_was(chosen: str) -> None:
    """Whichever of torch's switches the user has set; a process each, as they cannot be unset."""
    program = f"""
import torch
from fastscnn_kernels import composition, reference

cudnn, seen = torch.backends.cudnn, []
if "{chosen}" == "torch.backends.fp32_precision":
    torch.backends.fp32_precision = "tf32"
elif "{chosen}":
    cudnn.allow_tf32 = True
before = cudnn.conv.fp32_precision
assert before == "tf32"
reference.dsconv = lambda: seen.append(cudnn.conv.fp32_precision)
composition._Twins().dsconv()
assert seen == ["ieee"], seen
assert cudnn.conv.fp32_precision == before
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("case", [c for c in CASES if c.core], ids=lambda c: c.id)
def test_the_twins_can_be_captured(case: Case) -> None:
    """A captured graph allows no data from the host, so no twin may make any."""
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    args, kwargs = case.make(HALF)
    with Watch():
        getattr(reference, case.op)(*args, **kwargs)
    assert seen
    assert not [f for f in seen if "lift_fresh" in f or "_local_scalar" in f or "nonzero" in f]


def test_kernels_go_to_the_device_of_their_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current device, whatever its arguments are on."""
    entered: list[torch.device] = []
    inside: list[int] = []

    @contextmanager
    def device_of(x: torch.Tensor) -> Iterator[None]:
        entered.append(x.device)
        yield
        entered.pop()

    class Ops:
        def __getattr__(self, op: str) -> Any:
            def run(*args: Any, **options: Any) -> Any:
                inside.append(len(entered))
                return getattr(reference, op)(*args, **options)

            return run

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    model = FastSCNN(3).eval()
    runtime = GpuRuntime(fold(model), model.config, 3, SINGLE, ops=Ops())
    runtime.outputs(torch.zeros(1, 32, 32, 3, dtype=torch.uint8), ("labels", "probabilities"))
    runtime.scores(torch.zeros(1, 3, 32, 32))
    assert len(inside) == 2 + 2 * 14
    assert min(inside) == 1


def test_why_cuda_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "device_info", lambda: {"cuda_built": False})
    assert "FASTSCNN_CUDA=1 pip install" in cuda.missing()

    def unbuilt() -> None:
        raise ImportError("the compiled kernels cannot be loaded")

    monkeypatch.setattr(extension, "device_info", unbuilt)
    assert cuda.missing() == "the compiled kernels cannot be loaded"
    monkeypatch.setattr(extension, "device_info", lambda: {"cuda_built": True})
    assert cuda.missing() == ""


def test_a_composition_can_be_copied() -> None:
    assert str(copy.deepcopy(Composition(None, "torch", (HALF,)))).endswith("PyTorch for the rest")


def test_launches_do_not_ask_again_what_the_build_has(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    module = SimpleNamespace()
    monkeypatch.setattr(cuda, "missing", lambda _=None: asked.append(1) or "")
    monkeypatch.setattr(extension, "load", lambda: module)
    cuda._extension.cache_clear()
    assert all(cuda._extension() is module for _ in range(3))
    cuda._extension.cache_clear()
    assert len(asked) == 1
    monkeypatch.setattr(cuda, "missing", lambda _=None: NO_CODE)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no code"):
            cuda._extension()


def test_bad_choices_are_named() -> None:
    with pytest.raises(ValueError, match="kernels='fast': expected one of auto, cuda, triton"):
        composition.on(DEVICE, "fast")
    with pytest.raises(ValueError, match="kernels='cuda': the model is on cpu"):
        Engine(FastSCNN(3).eval(), kernels="cuda")


def test_info_says_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, capability=(7, 5), missing="")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    properties = SimpleNamespace(name="T4", major=7, minor=5, total_memory=2**34)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    text = "\n".join(info())
    assert "cuda:0: T4, sm_75, 16 GiB" in text
    assert "in float16; PyTorch for the rest" in text
    composition.on.cache_clear()
    monkeypatch.setattr(cuda, "missing", lambda _=None: NO_CODE)
    text = "\n".join(info())
    assert "no inference: a GPU has compute capability 7.5" in text
    assert f"without CUDA C++: {NO_CODE}" in text
