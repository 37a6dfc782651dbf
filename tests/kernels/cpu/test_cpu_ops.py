"""Every C++ operation against its float64 twin, for every instruction set of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tolerance import assert_close
from torch import Tensor

from fastscnn_kernels import reference
from fastscnn_kernels.cpu import operations as cpu
from fastscnn_kernels.cpu import pack
from fastscnn_kernels.extension import device_info

ISAS = device_info()["cpu_instruction_sets"]
#: Float32 outside, bfloat16 in the products; judged as bfloat16.
BF16_ISAS = device_info()["cpu_bf16_instruction_sets"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# 1x1: every tap but one is padding; 7x13: no multiple of any tile; 33x65: several runs, odd.
SIZES = [(1, 1), (7, 13), (33, 65)]


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """torch.empty is filled with NaN, so that an element that is never written is found."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for the twins: waking threads costs more than these sizes
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def check(name: str, *args: Any, **options: Any) -> None:
    """Compares `cpu.name`, compiled for every instruction set of this machine, with its twin."""
    twin, ours = getattr(reference, name), getattr(cpu, name)
    exact, torch32 = twin(*_double(args), **_double(options)), twin(*args, **options)
    for isa in ISAS:
        assert_close(ours(*args, **options, threads=2, isa=isa), exact, torch32)
    for isa in BF16_ISAS:
        half = twin(*_cast(args, torch.bfloat16), **_cast(options, torch.bfloat16))
        assert_close(ours(*args, **options, threads=2, isa=isa).bfloat16(), exact, half)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype).contiguous() if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        return type(value)(_cast(v, dtype) for v in value)
    if isinstance(value, dict):
        return {k: _cast(v, dtype) for k, v in value.items()}
    return value


def _double(value: Any) -> Any:
    return _cast(value, torch.float64)


def tensor(n: int, c: int, h: int, w: int) -> Tensor:
    return torch.randn(n, c, h, w).contiguous(memory_format=torch.channels_last)


def dense(out: int, inputs: int, kernel: int = 1) -> tuple[Tensor, Tensor]:
    return torch.randn(out, inputs, kernel, kernel) / (inputs * kernel**2) ** 0.5, torch.randn(out)


def depthwise(channels: int) -> tuple[Tensor, Tensor]:
    return torch.randn(channels, 1, 3, 3) / 3, torch.randn(channels)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 384), (96, 19), (30, 48), (19, 96)])
def test_pointwise_conv(inputs: int, outputs: int, size: tuple[int, int]) -> None:
    x = tensor(3, inputs, *size)
    residual = tensor(3, outputs, *size)
    check("pointwise_conv", x, *dense(outputs, inputs))
    check("pointwise_conv", x, *dense(outputs, inputs), activation="relu")
    check(
        "pointwise_conv",
        x,
        *dense(outputs, inputs),
        activation="relu6",
        residual=residual,
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("channels", [48, 19, 3])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_depthwise_conv(channels: int, stride: int, dilation: int, size: tuple[int, int]) -> None:
    x = tensor(2, channels, *size)
    options = {"stride": stride, "dilation": dilation, "activation": "relu6"}
    check("depthwise_conv", x, *depthwise(channels), **options)


@pytest.mark.parametrize("size", [(3, 3), (7, 13), (33, 66), (40, 101)], ids=str)
@pytest.mark.parametrize("padding", [0, 1, "same"])
def test_stem_conv(padding: int | str, size: tuple[int, int]) -> None:
    frame = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)
    options: dict[str, Any] = {"mean": MEAN, "std": STD, "padding": padding}
    weight, bias = dense(32, 3, 3)
    x = (frame.double() / 255 - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
    twin = reference.stem_conv(x.permute(0, 3, 1, 2), *_double((weight, bias)), **options)
    torch32 = reference.stem_conv(frame, weight, bias, **options)
    for isa in ISAS:
        assert_close(cpu.stem_conv(frame, weight, bias, **options, isa=isa), twin, torch32)
    half = reference.stem_conv(frame, *_cast((weight, bias), torch.bfloat16), **options)
    for isa in BF16_ISAS:
        ours = cpu.stem_conv(frame, weight, bias, **options, isa=isa)
        assert_close(ours.bfloat16(), twin, half.bfloat16())
    check("stem_conv", tensor(3, 3, *size), weight, bias, **options)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(32, 48, 2), (128, 128, 1), (30, 19, 1)])
@pytest.mark.parametrize("mid", ["none", "relu"])
def test_dsconv(inputs: int, outputs: int, stride: int, mid: str, size: tuple[int, int]) -> None:
    weights = (*depthwise(inputs), *dense(outputs, inputs))
    options = {"stride": stride, "mid_activation": mid}
    check("dsconv", tensor(2, inputs, *size), *weights, **options)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("inputs", "middle", "classes"), [(128, 128, 19), (30, 19, 3)])
@pytest.mark.parametrize("mid", ["none", "relu"])
def test_classifier(
    inputs: int, middle: int, classes: int, mid: str, size: tuple[int, int]
) -> None:
    first = (*depthwise(inputs), *dense(middle, inputs))
    second = (*depthwise(middle), *dense(inputs, middle))
    x = tensor(2, inputs, *size)
    check("classifier", x, first, second, dense(classes, inputs), mid_activation=mid)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    ("inputs", "outputs", "stride"), [(64, 64, 2), (64, 64, 1), (96, 128, 1), (19, 30, 2)]
)
@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_inverted_residual(
    inputs: int, outputs: int, stride: int, activation: str, size: tuple[int, int]
) -> None:
    hidden = 6 * inputs
    weights = (*dense(hidden, inputs), *depthwise(hidden), *dense(outputs, hidden))
    residual = stride == 1 and inputs == outputs
    options = {"stride": stride, "activation": activation, "residual": residual}
    check("inverted_residual", tensor(2, inputs, *size), *weights, **options)


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (8, 16)], ids=str)
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 6), (0, 6, 3, 2, 1), (1, 2, 3, 6, 0)], ids=str)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("align_corners", [False, True])
def test_pyramid_pool(
    order: tuple[int, ...], kernel: int, align_corners: bool, size: tuple[int, int]
) -> None:
    branches = [dense(w, 128) for w in (32, 32, 19, 32)]
    check(
        "pyramid_pool",
        tensor(2, 128, *size),
        [b[0] for b in branches],
        [b[1] for b in branches],
        *dense(48, 128 + 115, kernel),
        order=order,
        align_corners=align_corners,
    )


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dilation", [1, 4, 0])  # 0 stands for the dense variant
@pytest.mark.parametrize(
    ("low_size", "high_size"), [((1, 1), (3, 2)), ((3, 5), (9, 17)), ((8, 16), (32, 64))]
)
@pytest.mark.parametrize("channels", [(128, 64, 128), (30, 19, 20)], ids=str)
def test_feature_fusion(
    channels: tuple[int, int, int],
    low_size: tuple[int, int],
    high_size: tuple[int, int],
    dilation: int,
    align_corners: bool,
) -> None:
    low, high, out = channels
    first = depthwise(low) if dilation else dense(low, low)
    check(
        "feature_fusion",
        tensor(2, high, *high_size),
        tensor(2, low, *low_size),
        *(*first, *dense(out, low), *dense(out, high)),
        dilation=dilation or 1,
        align_corners=align_corners,
    )


@pytest.mark.parametrize("size", [(3, 3), (32, 32), (45, 131), (64, 230)], ids=str)
@pytest.mark.parametrize(("padding", "mid"), [(0, "relu"), (1, "none"), ("same", "none")])
def test_learning_to_downsample(size: tuple[int, int], padding: int | str, mid: str) -> None:
    ds1, ds2 = (*depthwise(32), *dense(48, 32)), (*depthwise(48), *dense(64, 48))
    stem = dense(32, 3, 3)
    options = {"mean": MEAN, "std": STD, "padding": padding, "mid_activation": mid}
    x = tensor(2, 3, *size)
    check("learning_to_downsample", x, *stem, ds1, ds2, **options)
    frame = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)
    as_floats = reference.normalize(frame, MEAN, STD)
    assert_close(
        cpu.learning_to_downsample(frame, *stem, ds1, ds2, **options),
        reference.learning_to_downsample(*_double((as_floats, *stem, ds1, ds2)), **options),
        reference.learning_to_downsample(as_floats, *stem, ds1, ds2, **options),
    )


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "strided": lambda x: torch.cat([x, x], dim=3)[:, :, ::2, : x.shape[3]],
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(layout: str) -> None:
    x = LAYOUTS[layout](tensor(2, 19, 8, 13))
    check("pointwise_conv", x, *dense(48, 19))
    check("depthwise_conv", x, *depthwise(19))


def test_fuzz() -> None:
    """Random shapes of the fused operations; the seed is fixed."""
    draw = torch.Generator().manual_seed(7)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=draw))

    for _ in range(25):
        n, c, h, w, out = pick(1, 3), pick(1, 40), pick(1, 20), pick(1, 110), pick(1, 70)
        x, hidden, stride = tensor(n, c, h, w), pick(1, 150), pick(1, 2)
        weights = (*dense(hidden, c), *depthwise(hidden), *dense(out, hidden))
        check("inverted_residual", x, *weights, stride=stride)
        weights = (*depthwise(c), *dense(out, c))
        check("dsconv", x, *weights, stride=stride, dilation=pick(1, 5))


def test_nothing_beside_a_tensor_is_touched() -> None:
    """Inputs and outputs lie at pages without access: a load past the end of a row ends it."""
    here = Path(__file__).parent
    paths = [str(here.parents[2]), str(here.parents[1] / "support")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, here / "guarded_pages.py"], env=env, capture_output=True, text=True
    )
    cases = done.stdout.splitlines()
    assert done.returncode == 0, f"{cases[-1:]}\n{done.stderr}"
    assert {name.split()[-1] for name in cases} >= {*ISAS, *BF16_ISAS}


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(7, 13), (35, 61)], ids=str)  # whole hidden map; bands of rows
def test_any_thread_count_gives_the_same_bits(
    size: tuple[int, int], stride: int, threads: int
) -> None:
    for batch in (1, 2):
        x = tensor(batch, 64, *size)
        weights = (*dense(384, 64), *depthwise(384), *dense(64, 384))
        options: dict[str, Any] = {"stride": stride, "residual": stride == 1}
        one = cpu.inverted_residual(x, *weights, **options, threads=1)
        shared = cpu.inverted_residual(x, *weights, **options, threads=threads)
        assert torch.equal(one, shared)


def test_a_workspace_for_each_thread() -> None:
    """Its scratch memory and helpers serve one operation at a time."""
    own = pack.workspace()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(pack.workspace).result() is not own
    assert pack.workspace() is own


BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "half": (
        lambda: cpu.pointwise_conv(tensor(1, 4, 2, 2).half(), *dense(4, 4)),
        TypeError,
        "x is",
    ),
    "channels": (lambda: cpu.pointwise_conv(tensor(1, 5, 2, 2), *dense(4, 4)), ValueError, "5 cha"),
    "empty": (lambda: cpu.pointwise_conv(tensor(0, 4, 2, 2), *dense(4, 4)), ValueError, "shape"),
    "stride": (
        lambda: cpu.depthwise_conv(tensor(1, 4, 2, 2), *depthwise(4), stride=3),
        ValueError,
        "stride=3",
    ),
    "activation": (
        lambda: cpu.pointwise_conv(tensor(1, 4, 2, 2), *dense(4, 4), activation="gelu"),
        ValueError,
        "gelu",
    ),
    "bias": (
        lambda: cpu.pointwise_conv(tensor(1, 4, 2, 2), dense(4, 4)[0], torch.zeros(3)),
        ValueError,
        "bias has 3",
    ),
    "threads": (
        lambda: cpu.pointwise_conv(tensor(1, 4, 2, 2), *dense(4, 4), threads=0),
        ValueError,
        "threads=0",
    ),
    "a dilation": (lambda: pack.check_stride("op", 1, 0), ValueError, "dilation=0"),
    "dilation": (
        lambda: cpu.depthwise_conv(tensor(1, 4, 2, 2), *depthwise(4), dilation=0),
        ValueError,
        "dilation=0",
    ),
    "isa": (
        lambda: cpu.pointwise_conv(tensor(1, 4, 2, 2), *dense(4, 4), isa="mmx"),
        ValueError,
        "portable",
    ),
    "residual": (
        lambda: cpu.inverted_residual(
            tensor(1, 4, 2, 2), *dense(8, 4), *depthwise(8), *dense(5, 8), residual=True
        ),
        ValueError,
        "residual=True",
    ),
    "residual's height": (
        lambda: cpu.pointwise_conv(tensor(1, 4, 3, 2), *dense(4, 4), residual=tensor(1, 4, 2, 2)),
        ValueError,
        r"residual has shape \(1, 4, 2, 2\), expected \(1, 4, 3, 2\)",
    ),
    "low's batch": (
        lambda: cpu.feature_fusion(
            *(tensor(2, 4, 4, 4), tensor(1, 4, 2, 2)), *depthwise(4), *dense(4, 4), *dense(4, 4)
        ),
        ValueError,
        "images in low",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    call, error, words = BAD[case]
    with pytest.raises(error, match=words):
        call()
