"""The engine's rules on the CPU (buffers, LRU, forks, errors) and, with a GPU, its graphs."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from tolerance import assert_close

from fastscnn.inference import engine as engine_module
from fastscnn.inference.engine import Engine
from fastscnn.network.model import FastSCNN
from fastscnn_kernels import reference


def model_with_data(classes: int = 5) -> FastSCNN:
    """Seeded, with batch norms that have seen data and class scores that differ over a frame."""
    torch.manual_seed(0)
    model = FastSCNN(classes)
    with torch.no_grad():
        for _ in range(4):
            model(torch.randn(2, 3, 64, 64))
        scores = model.eval().scores(torch.randn(2, 3, 64, 64))
        model.classifier.conv.bias -= scores.mean(dim=(0, 2, 3))
    return model


@pytest.fixture(scope="module")
def model() -> FastSCNN:
    return model_with_data()


def frames(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8)


def test_outputs_equal_the_reference(model: FastSCNN) -> None:
    engine = Engine(model, outputs=("labels", "confidence", "probabilities", "logits"))
    x = torch.randn(2, 3, 40, 56)
    got = engine(x)
    with torch.no_grad():
        peer = model(x)
        exact = copy.deepcopy(model).double()(x.double())
    assert list(got) == ["labels", "confidence", "probabilities", "logits"]
    assert_close(got["logits"], exact, peer)
    assert_close(got["probabilities"], exact.softmax(1), peer.softmax(1))
    assert_close(got["confidence"], exact.softmax(1).amax(1), peer.softmax(1).amax(1))
    chosen = exact.gather(1, got["labels"].long().unsqueeze(1)).squeeze(1)
    assert ((exact.amax(1) - chosen) / exact.abs().max()).max() < 1e-4


def test_frames_are_normalised_inside(model: FastSCNN) -> None:
    engine = Engine(model, outputs=("logits",))
    f = frames(1, 48, 32)
    from_bytes = engine(f)["logits"].clone()
    from_floats = engine(model.preprocess(f[0].numpy()))["logits"]
    torch.testing.assert_close(from_bytes, from_floats, rtol=0, atol=1e-5)


def test_static_buffers_are_reused_and_overwritten(model: FastSCNN) -> None:
    engine = Engine(model)
    a, b = frames(1, 40, 48), frames(1, 40, 48)
    first = engine(a)["labels"]
    kept = first.clone()
    second = engine(b)["labels"]
    assert second.data_ptr() == first.data_ptr()
    assert not torch.equal(first, kept)
    assert torch.equal(engine(a)["labels"], kept)


def test_other_shapes_keep_their_own_buffers(model: FastSCNN) -> None:
    engine = Engine(model)
    first = engine(frames(1, 40, 48))["labels"]
    kept = first.clone()
    assert engine(frames(1, 48, 40))["labels"].shape == (1, 48, 40)
    assert engine(frames(1, 40, 48), (20, 30))["labels"].shape == (1, 20, 30)
    assert torch.equal(first, kept)


def test_every_output_has_the_size_asked_for(model: FastSCNN) -> None:
    engine = Engine(model, outputs=engine_module.OUTPUTS)
    shapes = {name: t.shape[-2:] for name, t in engine(frames(1, 40, 48), (20, 30)).items()}
    assert shapes == dict.fromkeys(engine_module.OUTPUTS, (20, 30))


def test_frames_are_resized_on_the_way(model: FastSCNN) -> None:
    """Also those that are too small for the network as they are."""
    engine, f = Engine(model), frames(1, 24, 30)
    resized = reference.resize_frame(f, (40, 48))
    expected = engine(resized, (24, 30))["labels"].clone()
    assert torch.equal(engine(f, working=(40, 48))["labels"], expected)
    with pytest.raises(ValueError, match="only uint8 frames are resized"):
        engine(torch.zeros(1, 3, 40, 48), working=(32, 32))


def test_least_recently_used_shape_goes(model: FastSCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []
    graph = engine_module._Graph

    def counted(compute: Any, x: torch.Tensor) -> Any:
        built.append(tuple(x.shape[1:3]))
        return graph(compute, x)

    monkeypatch.setattr(engine_module, "_Graph", counted)
    engine = Engine(model, max_graphs=2)
    for height in (32, 40, 32, 48, 32, 40):  # 48 drops 40, the second 40 drops 48
        engine(frames(1, height, 32))
    assert built == [(32, 32), (40, 32), (48, 32), (40, 32)]
    assert engine.memory["number_of_graphs"] == 2


def test_memory_counts_weights_and_buffers(model: FastSCNN) -> None:
    engine = Engine(model)
    assert engine.memory["graphs"] == 0
    assert 4.4e6 < engine.memory["weights"] < 4.7e6  # 1.1 M parameters in fp32
    engine(frames(1, 32, 64))
    assert engine.memory["graphs"] == 32 * 64 * 3 + 32 * 64
    assert engine.memory["total"] == engine.memory["weights"] + engine.memory["graphs"]


def test_static_input_spares_the_copy(model: FastSCNN) -> None:
    engine = Engine(model)
    f = frames(1, 32, 40)
    expected = engine(f)["labels"].clone()
    engine(frames(1, 32, 40))
    static = engine.input((1, 32, 40, 3))
    static.copy_(f)
    assert torch.equal(engine(static)["labels"], expected)


def test_views_are_copied(model: FastSCNN) -> None:
    engine = Engine(model)
    wide = frames(1, 64, 96)
    view = wide[:, ::2, ::2]
    assert torch.equal(engine(view)["labels"].clone(), engine(view.contiguous())["labels"])


def test_frozen_until_refresh() -> None:
    model = model_with_data()
    engine = Engine(model, outputs=("logits",))
    fork = engine.fork()
    f = frames(1, 32, 32)
    before = engine(f)["logits"].clone()
    fork(f)
    with torch.no_grad():
        model.classifier.conv.bias.add_(1.0)
    assert torch.equal(engine(f)["logits"], before)
    engine.refresh()
    for e in (engine, fork):
        torch.testing.assert_close(e(f)["logits"], before + 1, rtol=0, atol=1e-5)


def test_forks_share_weights_not_buffers(model: FastSCNN) -> None:
    engine = Engine(model, max_graphs=3)
    fork = engine.fork(outputs=("labels", "confidence"))
    assert fork.max_graphs == 3
    f = frames(1, 32, 32)
    a, b = engine(f), fork(f)
    assert list(b) == ["labels", "confidence"]
    assert torch.equal(a["labels"], b["labels"])
    assert a["labels"].data_ptr() != b["labels"].data_ptr()
    assert fork._weights is engine._weights


def test_an_engine_on_a_runtime_folds_nothing(
    model: FastSCNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = engine_module.build_runtime(model)
    f = frames(1, 32, 32)
    expected = Engine(model)(f)["labels"].clone()
    monkeypatch.setattr(engine_module, "fold", None)
    engine = Engine.of_runtime(model, runtime)
    assert torch.equal(engine(f)["labels"], expected)
    assert engine._weights.runtime is runtime


def test_stream_keeps_order_and_shapes(model: FastSCNN) -> None:
    engine = Engine(model)
    inputs = [frames(1, 32, 40) for _ in range(5)] + [frames(2, 40, 32) for _ in range(2)]
    inputs += [frames(1, 32, 40)]
    expected = [engine(f)["labels"].clone() for f in inputs]
    got = [r["labels"] for r in engine.stream(inputs)]
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
    one = next(iter(engine.stream([inputs[0][0].numpy()])))["labels"]
    assert torch.equal(one, expected[0])
    assert list(engine.stream([])) == []


def test_bad_input_names_the_fix(model: FastSCNN) -> None:
    engine = Engine(model)
    with pytest.raises(TypeError, match="from_numpy"):
        engine(np.zeros((1, 32, 32, 3), np.uint8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"frames\[None\]"):
        engine(frames(32, 32))
    with pytest.raises(TypeError, match="expected uint8"):
        engine(torch.zeros(1, 32, 32, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="N x 3 x H x W"):
        engine(torch.zeros(1, 32, 32, 3))
    with pytest.raises(ValueError, match="pad to 32x40"):
        engine(frames(1, 31, 40))
    with pytest.raises(ValueError, match=r"use frames.to\('cpu'\)"):
        engine(torch.empty(1, 32, 32, 3, dtype=torch.uint8, device="meta"))
    with pytest.raises(ValueError, match="outputs="):
        Engine(model, outputs=("scores",))
    with pytest.raises(ValueError, match="max_graphs=0"):
        Engine(model, max_graphs=0)
    with pytest.raises(TypeError, match="uint8 CPU frames"):
        list(engine.stream([torch.zeros(32, 32, 3)]))


def test_out_of_memory_leaves_the_engine_usable(
    model: FastSCNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model)
    f = frames(1, 32, 32)
    expected = engine(f)["labels"].clone()

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "_Graph", full)
        with pytest.raises(torch.OutOfMemoryError, match="lower max_graphs"):
            engine(frames(4, 64, 64))
    assert torch.equal(engine(f)["labels"], expected)
    assert engine(frames(4, 64, 64))["labels"].shape == (4, 64, 64)


def test_threads_capture_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A synchronisation breaks another thread's capture, and so does an allocation unless errors
    are thread_local; a stand-in for torch.cuda counts them."""
    active: list[int] = []
    overlaps: list[int] = []
    modes: list[str] = []

    @contextmanager
    def graph(_: Any, stream: Any, capture_error_mode: str = "global") -> Iterator[None]:
        modes.append(capture_error_mode)
        overlaps.append(len(active))
        active.append(1)
        time.sleep(0.05)
        yield
        active.pop()

    fake = MagicMock(graph=graph, synchronize=lambda: overlaps.append(len(active)))
    fake.memory_reserved.return_value = 0
    x = MagicMock(nbytes=0)
    x.device.type = "cuda"
    monkeypatch.setattr(torch, "cuda", fake)
    monkeypatch.setattr(torch, "empty_like", lambda *_, **__: x)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: engine_module._Graph(lambda _: {}, x), range(3)))
    assert modes == ["thread_local"] * 3
    assert not any(overlaps)


@pytest.fixture(scope="module")
def gpu_model() -> FastSCNN:
    return model_with_data(19).to("cuda", torch.float16)


@pytest.mark.gpu
def test_graph_equals_eager_bit_for_bit(gpu_model: FastSCNN) -> None:
    outputs = ("labels", "confidence", "probabilities", "logits")
    engine = Engine(gpu_model, outputs=outputs)
    for shape in ((1, 256, 512), (3, 100, 97)):
        for _ in range(3):
            f = frames(*shape).cuda()
            expected = engine._weights.runtime.outputs(f, outputs)
            got = engine(f)
            assert all(torch.equal(got[k], expected[k]) for k in outputs)


@pytest.mark.gpu
def test_no_allocation_after_warm_up(gpu_model: FastSCNN) -> None:
    engine = Engine(gpu_model)
    batch = [frames(1, 256, 512).cuda() for _ in range(4)]
    engine(batch[0])
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for f in batch:
        engine(f)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@pytest.mark.gpu
def test_engine_stays_below_100_mb(gpu_model: FastSCNN) -> None:
    engine = Engine(gpu_model)
    engine(frames(1, 1024, 2048).cuda())
    assert 0 < engine.memory["total"] < 100e6


@pytest.mark.gpu
def test_forks_on_their_own_streams(gpu_model: FastSCNN) -> None:
    engines = [Engine(gpu_model)]
    engines += [engines[0].fork() for _ in range(2)]
    batches = [[frames(1, 128, 256).cuda() for _ in range(8)] for _ in engines]
    expected = [[engines[0](f)["labels"].clone() for f in b] for b in batches]
    for e in engines:
        e(batches[0][0])
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in engines]
    got: list[list[torch.Tensor]] = [[] for _ in engines]
    for i in range(8):
        for j, (engine, stream) in enumerate(zip(engines, streams, strict=True)):
            with torch.cuda.stream(stream):
                got[j].append(engine(batches[j][i])["labels"].clone())
    torch.cuda.synchronize()
    for ours, theirs in zip(got, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.gpu
def test_gpu_stream_equals_calls(gpu_model: FastSCNN) -> None:
    engine = Engine(gpu_model, outputs=("labels", "confidence"))
    inputs = [frames(1, 128, 256) for _ in range(7)] + [frames(2, 64, 96) for _ in range(3)]
    expected = [{k: t.cpu() for k, t in engine(f.cuda()).items()} for f in inputs]
    for got, want in zip(engine.stream(inputs), expected, strict=True):
        assert all(torch.equal(got[k], want[k]) for k in want)


@pytest.mark.gpu
def test_cpu_frames_to_a_gpu_engine(gpu_model: FastSCNN) -> None:
    with pytest.raises(ValueError, match=r"engine\.stream"):
        Engine(gpu_model)(frames(1, 64, 64))


@pytest.mark.gpu
def test_out_of_memory_in_capture(gpu_model: FastSCNN) -> None:
    engine = Engine(gpu_model)
    small = frames(1, 64, 64).cuda()
    expected = engine(small)["labels"].clone()
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 300e6) / total)
    try:
        with pytest.raises(torch.OutOfMemoryError, match="lower max_graphs"):
            engine(frames(16, 1024, 2048).cuda())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.equal(engine(small)["labels"], expected)
