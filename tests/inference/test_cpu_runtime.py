"""The whole network on the CPU: every preset against float64, memory, threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import networks
import pytest
import torch
from networks import frames, network, runtime
from tolerance import assert_labels
from torch import Tensor

from fastscnn.network.config import PRESETS
from fastscnn.network.model import FastSCNN
from fastscnn_kernels import reference
from fastscnn_kernels.extension import device_info

ISAS = device_info()["cpu_instruction_sets"]
SIZES = [(32, 32), (97, 130)]


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """For the float64 reference: waking threads costs more than these sizes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def exact_logits(model: FastSCNN, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.double()(x.double())


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset(preset: str, size: tuple[int, int]) -> None:
    model = network(preset)
    run, frame = runtime(model), frames(2, *size)
    x = reference.normalize(frame, model.config.mean, model.config.std)
    exact = exact_logits(model, x)
    scale = exact.max() - exact.min()
    for given in (frame, x, x.contiguous()):
        assert (run.logits(given) - exact).abs().max() < 1e-4 * scale
    got = run.outputs(frame, ("labels", "confidence"))
    assert_labels(got["labels"], exact, margin=1e-4)
    assert torch.allclose(run.probabilities(frame).double(), torch.softmax(exact, 1), atol=1e-4)
    assert torch.allclose(got["confidence"].double(), torch.softmax(exact, 1).amax(1), atol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("classes", [1, 11, 255])
def test_instruction_sets_and_class_counts(classes: int, isa: str) -> None:
    model = network("paper", classes)
    frame = frames(1, 70, 90)
    ours = runtime(model, isa).logits(frame)
    exact = exact_logits(model, reference.normalize(frame, model.config.mean, model.config.std))
    assert (ours - exact).abs().max() < 1e-4 * (exact.max() - exact.min())


def test_output_size() -> None:
    run, frame = runtime(network("paper")), frames(1, 64, 96)
    got = run.outputs(frame, ("labels", "probabilities", "logits"), (31, 200))
    assert list(got) == ["labels", "probabilities", "logits"]
    assert got["labels"].shape == (1, 31, 200)
    assert got["probabilities"].shape == got["logits"].shape == (1, 19, 31, 200)
    assert torch.equal(got["labels"], run.labels(frame, out_size=(31, 200)))


@pytest.mark.parametrize("preset", ["paper", "mmseg", "segmentron"])
def test_threads_do_not_change_a_bit(preset: str) -> None:
    run, frame = runtime(network(preset)), frames(2, 128, 160)
    one = run.logits(frame, threads=1)
    for threads in (2, 3, 7):
        assert torch.equal(run.logits(frame, threads=threads), one)


def test_batch_does_not_change_a_bit() -> None:
    run, frame = runtime(network("paper")), frames(3, 64, 100)
    alone = torch.cat([run.logits(f[None]) for f in frame])
    assert torch.equal(run.logits(frame), alone)


def test_runtimes_run_in_parallel_and_one_may_be_shared() -> None:
    model, other = network("paper"), network("tramac", 11)
    runs = [runtime(model), runtime(other), runtime(model)]
    runs.append(runs[0])
    inputs = [frames(1, 64, 64 + 32 * i) for i in range(4)]
    expected = [r.logits(f) for r, f in zip(runs, inputs, strict=True)]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(10):
            if not torch.equal(runs[i].logits(inputs[i], threads=2), expected[i]):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in workers:
        t.start()
    for t in workers:
        t.join()
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_goes_on_without_the_helper_threads() -> None:
    run, frame = runtime(network("paper")), frames(1, 64, 64)
    expected = run.labels(frame, threads=2)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        same = torch.equal(run.labels(frame, threads=2), expected)
        del run
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_results_are_fresh_tensors() -> None:
    run = runtime(network("paper"))
    scores = run.scores(frames(1, 64, 64))
    kept = scores.clone()
    run.scores(frames(1, 64, 64))
    assert torch.equal(scores, kept)


def test_memory_is_bounded_and_reused() -> None:
    run = runtime(network("paper"))
    for threads in (2, 1):
        run.labels(frames(1, 1024, 2048), threads=threads)
        assert run.workspace_bytes() < 30e6  # two maps, of 8.4 and 16.8 MB, live at the same time
    run.labels(frames(1, 512, 1024), threads=1)
    held = run.workspace_bytes()
    run.labels(frames(1, 512, 1024), threads=1)
    run.labels(frames(1, 1024, 2048), threads=1)
    assert run.workspace_bytes() == held
    for width in (64, 96, 128, 160):
        run.labels(frames(1, 64, width), threads=1)
    assert run.workspace_bytes() < held


PEAK = """
import re
from pathlib import Path
from networks import frames, network, runtime

def peak():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search("VmHWM: *\\t *([0-9]+)", status)[1])

run, frame = runtime(network("paper")), frames(1, 1024, 2048)
run.labels(frames(1, 64, 64), threads=2)
Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of the imports
sizes = [peak()]
for _ in range(4):
    run.labels(frame, threads=2)
    sizes.append(peak())
print(*sizes, run.workspace_bytes())
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="Linux counts the peak")
def test_a_process_needs_30_mb_for_a_large_frame_and_no_more_for_the_next() -> None:
    """What the system counts, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK],
        cwd=Path(networks.__file__).parent,
        check=True,
        capture_output=True,
    )
    before, first, *_, last, held = map(int, done.stdout.split())
    assert first - before < 36e6  # with labels and page tables
    assert held < 30e6
    assert last - first < 8e6  # labels and scores of a call come and go


FALLING = (
    PEAK[: PEAK.index("sizes =")]
    + """
run.labels(frame, threads=2)
one = peak()
for i in range(40):
    run.labels(frame[:, : 1024 - 16 * i, : 2048 - 32 * i], threads=2)
print(one, peak())
"""
)


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="Linux counts the peak")
def test_memory_of_a_size_is_given_back() -> None:
    """40 sizes, each smaller than the one before: of two at most the maps are held."""
    done = subprocess.run(
        [sys.executable, "-c", FALLING],
        cwd=Path(networks.__file__).parent,
        check=True,
        capture_output=True,
    )
    one, all_of_them = map(int, done.stdout.split())
    assert all_of_them - one < 100e6


@pytest.mark.parametrize("size", [(64, 96), (33, 201)], ids=str)
def test_a_frame_is_resized_inside(size: tuple[int, int]) -> None:
    """Also a strided one; the result equals that of the resized frame."""
    run, frame = runtime(network("paper")), frames(2, 80, 120)
    resized = reference.resize_frame(frame, size)
    expected = run.outputs(resized, ("labels", "scores"), (80, 120))
    got = run.outputs(frame, ("labels", "scores"), size=size)
    assert torch.equal(got["labels"], expected["labels"])
    assert torch.equal(got["scores"], expected["scores"])


def test_pictures_come_with_the_labels() -> None:
    run, frame = runtime(network("paper")), frames(2, 70, 101)
    colors = torch.randint(0, 256, (19, 3), dtype=torch.uint8)
    names = ("overlay", "color", "labels")
    got = run.outputs(frame, names, size=(64, 96), colors=colors.tolist(), opacity=0.3)
    labels = run.labels(frame, size=(64, 96))
    assert torch.equal(got["labels"], labels)
    assert torch.equal(got["color"], reference.colorize(labels, colors))
    assert torch.equal(got["overlay"], reference.overlay(frame, labels, colors, opacity=0.3))
    alone = run.outputs(frame, ("overlay",), size=(64, 96), colors=colors.tolist(), opacity=0.3)
    assert torch.equal(alone["overlay"], got["overlay"])


def test_steps_are_the_frame() -> None:
    run, frame = runtime(network("segmentron")), frames(1, 64, 96)
    names = [name for name, _ in run.steps(frame)]
    assert names[0] == "learning_to_downsample"
    assert names[-1] == "argmax_head"
    assert len(names) == 1 + 9 + 1 + 2 + 1 + 1


def test_bad_input_is_named() -> None:
    run = runtime(network("paper"))
    with pytest.raises(ValueError, match="N x H x W x 3"):
        run.labels(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"torch\.float16"):
        run.scores(torch.zeros(1, 3, 64, 64, dtype=torch.float16))
    with pytest.raises(ValueError, match="threads=0"):
        run.scores(frames(1, 64, 64), threads=0)
    with pytest.raises(ValueError, match=r"threads 5000: expected 1 to 1024"):
        run.scores(frames(1, 64, 64), threads=5000)
    with pytest.raises(ValueError, match=r"size 16x64: expected height and width from 32 to 32768"):
        run.labels(frames(1, 64, 64), size=(16, 64))
    with pytest.raises(ValueError, match=r"output size 64x0"):
        run.labels(frames(1, 64, 64), (64, 0))
    with pytest.raises(ValueError, match=r"overlay: expected a uint8 frame of the output size"):
        run.outputs(frames(1, 64, 64), ("overlay",), (32, 64), colors=[(0, 0, 0)] * 19)
    with pytest.raises(ValueError, match=r"colors: got 18, expected 19"):
        run.outputs(frames(1, 64, 64), ("color",), colors=[(0, 0, 0)] * 18)
    with pytest.raises(ValueError, match=r"colors is null"):
        run.outputs(frames(1, 64, 64), ("color",))
    assert run.labels(frames(1, 64, 64)).shape == (1, 64, 64)
