"""Each planted bug in a CUDA kernel must be found by running it on the CPU."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "cuda_host"))

import compiled
from host import running_on
from op_cases import Case, bottleneck, case, check, downsample, head, separable

from fastscnn_kernels.cuda import operations as cuda

DSCONV = case("dsconv", "two-chunks", separable, (1, 64, 5, 13), 64)
BOTTLENECK = case("inverted_residual", "two-shares", bottleneck, (1, 24, 5, 9), 24, residual=True)
DOWNSAMPLE = case("learning_to_downsample", "odd", downsample, (1, 41, 35), 1)
HEAD = case("argmax_head", "x8-odd", head, (1, 2, 7, 19), (55, 149), False)

#: What is broken, the case that runs, the file, the text, its replacement, how it is found.
BUGS = [
    ("barrier before the product", DSCONV, "dsconv.cuh",
     "__syncthreads();  // A is complete", "", "race"),
    ("wait for the copies", DSCONV, "dsconv.cuh",
     "        wait_copies<0>();\n        __syncthreads();  // chunk", "__syncthreads();  //", "."),
    ("bound of the rows", DSCONV, "dsconv.cuh",
     "static_cast<unsigned>(iy) < static_cast<unsigned>(p.h)", "iy >= 0 && iy <= p.h", "outside"),
    ("bound of the output", DSCONV, "dsconv.cuh", "ox >= p.ow || o0", "ox > p.ow || o0", "."),
    ("alignment of padded rows", DSCONV, "dsconv.cuh",
     "kRow = kChunk + kPad,", "kRow = kChunk + 4,", "misaligned"),
    ("row of a fragment", DSCONV, "common.cuh",
     "a += lane % 16 * a_stride", "a += lane % 8 * a_stride", "error"),
    ("half of a fragment", DSCONV, "common.cuh",
     "b += lane % 16 * b_stride + lane / 16 * 8", "b += lane % 16 * b_stride", "error"),
    ("barrier before the depthwise", BOTTLENECK, "inverted_residual.cuh",
     "__syncthreads();  // A", "", "race"),
    ("zeros outside the image", BOTTLENECK, "inverted_residual.cuh",
     "inside ? word : 0u", "word", "error"),
    ("buffer of the next weights", BOTTLENECK, "inverted_residual.cuh",
     "words(L::kProject) + i % 2 *", "words(L::kProject) + 0 *", "race"),
    ("share of the reduction", BOTTLENECK, "inverted_residual.cuh",
     "load_fresh<float4>(share(z, j))", "load_fresh<float4>(share(0, j))", "error"),
    ("counters left for the next launch", BOTTLENECK, "inverted_residual.cuh",
     "if (tid == 0) store_global(p.counters + tile, 0);", "", "NaN"),
    ("barrier between the stages", DOWNSAMPLE, "learning_to_downsample.cuh",
     "words(L::kA1));\n    __syncthreads();", "words(L::kA1));", "race"),
    ("last column", HEAD, "argmax_head.cuh",
     "if (column + t < p.ow) store_global", "if (column + t <= p.ow) store_global", "."),
    ("third corner column", HEAD, "argmax_head.cuh",
     "corner + i / 3 * width + i % 3", "corner + i / 3 * width + i % 2", "behind"),
]  # fmt: skip
#: The others take a compilation of ten seconds each.
QUICK = ("barrier before the product", "wait for the copies", "alignment of padded rows",
         "row of a fragment", "last column", "third corner column")  # fmt: skip


def parameters() -> list[Any]:
    return [
        pytest.param(*rest, id=name.replace(" ", "-"),
                     marks=[] if name in QUICK else pytest.mark.slow)
        for name, *rest in BUGS
    ]  # fmt: skip


@pytest.mark.parametrize(("case", "file", "text", "replacement", "found"), parameters())
def test_planted_bug_is_found(
    tmp_path: Path, case: Case, file: str, text: str, replacement: str, found: str
) -> None:
    folder = shutil.copytree(compiled.CUDA, tmp_path / "cuda")
    source = (folder / file).read_text()
    assert source.count(text) == 1, f"{file} contains {text!r} {source.count(text)} times"
    (folder / file).write_text(source.replace(text, replacement))
    module = compiled.load(folder, f"{case.op}.cu")
    with pytest.raises((RuntimeError, AssertionError), match=found):
        run_schedules(case, lambda seed: running_on(module, seed=seed))


@pytest.mark.parametrize("case", [DSCONV, HEAD, BOTTLENECK, DOWNSAMPLE], ids=lambda c: c.op)
def test_cases_pass_without_bugs(case: Case) -> None:
    module = compiled.load()
    run_schedules(case, lambda seed: running_on(module, seed=seed))


def run_schedules(case: Case, on_device: Callable[[int], Any]) -> None:
    torch.manual_seed(0)
    args, kwargs = case.make(torch.float16)
    for seed in range(4):
        with on_device(seed):
            ours = launched_twice(case, args, kwargs)
        check(case, ours, args, kwargs)


def launched_twice(case: Case, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Labels without confidence; a bottleneck by the second launch on the same counters."""
    if case.op == "argmax_head":
        labels, _ = cuda.argmax_head(*args, **kwargs, confidence=False)
        return labels, cuda.argmax_head(*args, **kwargs)[1]
    if case.op == "inverted_residual":
        block, counters = cuda.bind(case.op, *args[1:], **kwargs), cuda.counters(args[0].device)
        block(args[0], counters=counters)
        return block(args[0], counters=counters)
    return getattr(cuda, case.op)(*args, **kwargs)
