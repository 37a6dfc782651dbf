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
from op_cases import Case, bottleneck, case, check, downsample, fusion, head, pyramid, separable

from fastscnn_kernels.cuda import operations as cuda

DSCONV = case("dsconv", "two-chunks", separable, (1, 64, 5, 13), 64)
BOTTLENECK = case("inverted_residual", "two-shares", bottleneck, (1, 24, 5, 9), 24, residual=True)
DOWNSAMPLE = case("learning_to_downsample", "odd", downsample, (1, 41, 35), 1)
PYRAMID = case("pyramid_pool", "batch-2", pyramid, (2, 24, 7, 13), 16, 3)
COMMUTED = case("feature_fusion", "commuted", fusion, (8, 24, 40), (72, 6, 10), False)
SAMPLED = case("feature_fusion", "sampled", fusion, (72, 11, 19), (40, 4, 6), False, dilation=1)
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
    ("barrier between bytes and patch", DOWNSAMPLE, "learning_to_downsample.cuh",
     "wait_copies<0>();\n        __syncthreads();\n", "wait_copies<0>();\n", "race"),
    ("end of the frame", DOWNSAMPLE, "learning_to_downsample.cuh",
     "at + 16 <= end", "at < end", "outside"),
    ("barrier before the cells' means", PYRAMID, "pyramid_pool.cuh",
     "    __syncthreads();\n    auto cells", "    auto cells", "."),
    ("barrier before the branches", PYRAMID, "pyramid_pool.cuh",
     "__syncthreads();  // the means are complete", "", "race"),
    ("barrier before the samples", PYRAMID, "pyramid_pool.cuh",
     "__syncthreads();  // the maps are complete", "", "race"),
    ("barrier before the results", PYRAMID, "pyramid_pool.cuh",
     "__syncthreads();  // the joined map is done with", "", "race"),
    ("end of a segment", PYRAMID, "pyramid_pool.cuh",
     "end[half] = ceil_div((i + 1) * p.w, bins)", "end[half] = (i + 1) * p.w / bins", "error"),
    ("first segment of a grid", PYRAMID, "pyramid_pool.cuh",
     "(of.segment + x)", "(x)", "error"),
    ("zeros around the samples", PYRAMID, "pyramid_pool.cuh",
     "const bool known = inside(pixel);", "const bool known = true;", "error"),
    ("last cell of a grid", PYRAMID, "pyramid_pool.cuh",
     "min(x + k % 2, last)", "(x + k % 2)", "."),
    ("barrier before the upsampling", COMMUTED, "feature_fusion.cuh",
     "__syncthreads();  // the sums are complete, the low tile is free", "", "race"),
    ("barrier before the fusion's product", COMMUTED, "feature_fusion.cuh",
     "            __syncthreads();  // A is complete\n            multiply", "multiply", "race"),
    ("row of a sum", COMMUTED, "feature_fusion.cuh",
     "((y + 2) / L::kScale * L::kSumsW", "((y + 1) / L::kScale * L::kSumsW", "error"),
    ("weight of a column", COMMUTED, "feature_fusion.cuh",
     "const float fx = ((t + 2) %", "const float fx = ((t + 1) %", "error"),
    ("width of the frame", COMMUTED, "feature_fusion.cuh",
     "kScale = 4, kFrame = 6", "kScale = 4, kFrame = 0", "."),
    ("low tile that is still read", COMMUTED, "feature_fusion.cuh",
     "            if (unit < L::kSumsH", "load_low(0); commit_copies(); if (unit < L::kSumsH", "."),
    ("barrier before the convolution", SAMPLED, "feature_fusion.cuh",
     "__syncthreads();  // the sampled tile is complete", "", "race"),
    ("barrier behind the convolution", SAMPLED, "feature_fusion.cuh",
     "__syncthreads();  // A is complete, the sampled tile free", "", "race"),
    ("zeros beside the upsampled map", SAMPLED, "feature_fusion.cuh",
     "if (known && x >= 0 && x < p.w)", "if (known)", "error"),
    ("column that is kept", SAMPLED, "feature_fusion.cuh",
     "if (x == have + 1) {", "if (x >= have) {", "error"),
    ("bound of the fused pixels", SAMPLED, "feature_fusion.cuh",
     "if (y < p.h && x < p.w && o0 + v < p.o)", "if (y < p.h && x <= p.w && o0 + v < p.o)", "."),
    ("half of a packed fragment", SAMPLED, "common.cuh",
     "left, right[j].z, right[j].w", "left, right[j].x, right[j].w", "error"),
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


@pytest.mark.parametrize(
    "case", [DSCONV, HEAD, BOTTLENECK, DOWNSAMPLE, PYRAMID, COMMUTED, SAMPLED], ids=lambda c: c.id
)
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
