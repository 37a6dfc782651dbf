"""Compiles the whole network at 1024x2048 with production tiles, for every GPU generation.

Nothing runs: the launchers' own host code decides what is compiled (see compile_only.py). All
targets and dtypes take minutes:
pytest tests/kernels/triton/test_triton_compile.py -m "slow or not slow"
"""

from __future__ import annotations

import itertools

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (Linux)")

from compile_only import REGISTERS, SHARED_LIMIT, TARGETS, Launch, compile_only
from op_cases import CASES, Case
from training_cases import CASES as TRAINING_CASES

import fastscnn_kernels.triton as kernels
from fastscnn.inference.fold import fold
from fastscnn.inference.gpu_runtime import GpuRuntime
from fastscnn.network.config import PRESETS
from fastscnn.network.model import FastSCNN

#: Kernels whose arithmetic is a matrix product.
PRODUCTS = {
    "stem_conv_kernel", "pointwise_conv_kernel", "dsconv_kernel", "pool_rows_kernel",
    "pool_join_kernel", "feature_fusion_kernel",
}  # fmt: skip
SHORT = {(90, "float16", "paper")}
DTYPES = ("float16", "bfloat16", "float32")
RUNS = [
    pytest.param(*run, marks=[] if run in SHORT else [pytest.mark.slow])
    for run in itertools.product(TARGETS, DTYPES, ("paper", "segmentron", "paddleseg"))
]


def network_launches(capability: int, dtype: str, preset: str) -> list[Launch]:
    config = PRESETS[preset]
    model = FastSCNN(19, config=config).eval()
    runtime = GpuRuntime(fold(model), config, 19, getattr(torch, dtype), ops=kernels)
    frame = torch.empty(1, 1024, 2048, 3, dtype=torch.uint8)
    with compile_only(capability) as launches:
        runtime.outputs(frame, ("labels",))
        runtime.outputs(frame, ("confidence", "probabilities"))
    return list({launch.cubin: launch for launch in launches}.values())


@pytest.mark.parametrize(("capability", "dtype", "preset"), RUNS)
def test_network_compiles_within_limits(capability: int, dtype: str, preset: str) -> None:
    launches = network_launches(capability, dtype, preset)
    assert {la.name for la in launches} >= PRODUCTS | {"argmax_head_kernel", "softmax_head_kernel"}
    for launch in launches:
        what = f"{launch.name} {launch.constants} for {capability}"
        usage = launch.usage
        assert usage["LOCAL"] == 0, f"{what} spills {usage}"
        assert usage["STACK"] == 0 or launch.spill_bytes == 0, f"{what} spills {usage}"
        assert usage["REG"] * launch.threads <= REGISTERS, what
        assert launch.metadata.shared <= SHARED_LIMIT[capability], what
        on_tensor_cores = launch.name in PRODUCTS and dtype != "float32"
        assert launch.tensor_core == on_tensor_cores, what
        check_multiply_adds(launch, dtype, what)


def check_multiply_adds(launch: Launch, dtype: str, what: str) -> None:
    """The depthwise part is computed once: three multiply-adds per element in its rolled loop."""
    k = launch.constants
    if launch.name not in ("depthwise_conv_kernel", "dsconv_kernel"):
        return
    pixels = k["ROWS"] * k["COLUMNS"]
    ideal = 3 * pixels * k.get("BLOCK_K", k.get("BLOCK_C")) / launch.threads
    if launch.name == "dsconv_kernel" and dtype == "float32":
        ideal += pixels * k["BLOCK_K"] * k["BLOCK_N"] / launch.threads
    assert launch.fma <= 1.1 * ideal, f"{what}: {launch.fma} multiply-adds, ideal {ideal}"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_odd_sizes_compile(case: Case) -> None:
    """Sizes of one become constants, which the compiler types differently from variables."""
    args, kwargs = case.make(torch.float16)
    with compile_only(90) as launches:
        getattr(kernels, case.op)(*args, **kwargs)
    assert launches


@pytest.mark.parametrize(
    ("capability", "dtype", "names"),
    [
        (90, "bfloat16", ("wide", "relu", "x8")),
        *(
            pytest.param(capability, dtype, (), marks=pytest.mark.slow)
            for capability in TARGETS
            for dtype in ("bfloat16", "float32")
        ),
    ],
)
def test_training_compiles_within_limits(
    capability: int, dtype: str, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No kernel of training spills; without names all cases compile."""
    monkeypatch.setattr(torch, "_assert_async", lambda *_: None)
    with compile_only(capability) as launches:
        for case in (c for c in TRAINING_CASES if c.name in names or not names):
            args, options = case.make(getattr(torch, dtype))
            getattr(kernels, case.op)(*args, **options)
    assert {la.name for la in launches} == {
        "moments_kernel", "join_moments_kernel", "sum_parts_kernel", "batch_norm_kernel",
        "norm_sums_kernel", "norm_gradient_kernel", "norm_depthwise_kernel",
        "taps_gradient_kernel", "map_gradient_kernel", "cross_entropy_head_kernel",
    }  # fmt: skip
    for launch in {la.cubin: la for la in launches}.values():
        what = f"{launch.name} {launch.constants} for {capability}: {launch.usage}"
        assert launch.usage["LOCAL"] == 0, what
        assert launch.usage["STACK"] == 0 or launch.spill_bytes == 0, what
        assert launch.usage["REG"] * launch.threads <= REGISTERS, what
        assert launch.metadata.shared <= SHARED_LIMIT[capability], what


@pytest.mark.parametrize("capability", TARGETS)
def test_dsconv_computes_the_depthwise_once(capability: int) -> None:
    """On every target, also where each warp needs the whole operand of its dot (sm_80-89, 120)."""
    x = torch.empty(1, 128, 256, 128, dtype=torch.float16).permute(0, 3, 1, 2)
    weights = (
        torch.empty(128, 1, 3, 3), torch.empty(128), torch.empty(128, 128, 1, 1), torch.empty(128),
    )  # fmt: skip
    with compile_only(capability) as launches:
        kernels.dsconv(x, *(w.half() for w in weights))
    assert launches[0].tensor_core
    assert launches[0].spill_bytes == 0
    check_multiply_adds(launches[0], "float16", str(capability))


def test_fp32_is_ieee_on_blackwell() -> None:
    """Where a dot is large enough for tcgen05, Triton would round fp32 operands to tf32."""
    frame = torch.empty(1, 1024, 2048, 3, dtype=torch.uint8)
    x = torch.empty(1, 128, 256, 128).permute(0, 3, 1, 2)
    bias, square = torch.empty(128), torch.empty(128, 128, 1, 1)
    with compile_only(100) as launches:
        kernels.stem_conv(
            frame, torch.empty(32, 3, 3, 3), torch.empty(32), mean=(0, 0, 0), std=(1, 1, 1)
        )
        kernels.pointwise_conv(x, square, bias)
        kernels.dsconv(x, torch.empty(128, 1, 3, 3), bias, square, bias)
    assert [launch.tensor_core for launch in launches] == [False] * 3
