"""The fused network is a drop-in: same state, same results, never a stale fold."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import pair
from torch import nn

import fastscnn
from fastscnn.inference.fused import FusedFastSCNN
from fastscnn.media.frames import read_image
from fastscnn.network.config import PRESETS
from fastscnn.network.model import FastSCNN
from fastscnn_kernels.extension import device_info


def assert_same(ours: torch.Tensor, exact: torch.Tensor, tolerance: float = 1e-4) -> None:
    """Within the fp32 contract: 1e-4 of the largest |logit| of the float64 reference."""
    error = (ours.double() - exact.double()).abs().max() / exact.abs().max()
    assert error < tolerance, f"relative error {error:.2e}"


def runs_fused(model: FusedFastSCNN, x: torch.Tensor) -> bool:
    """Whether the last call built folded weights (a reference call leaves none)."""
    model.refold()
    model(x)
    return model._folded is not None


X = torch.linspace(-2, 2, 3 * 65 * 97).reshape(1, 3, 65, 97).sin()


@pytest.mark.parametrize("preset", PRESETS)
def test_logits_equal_the_float64_reference(preset: str) -> None:
    reference, fused = pair(config=PRESETS[preset])
    exact = copy.deepcopy(reference).double()
    for size in ((65, 97), (64, 96), (33, 161)):
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected = exact(x.double())
            assert_same(fused(x), expected)
            assert_same(fused.scores(x), exact.scores(x.double()))
            assert_same(fused.probabilities(x), expected.softmax(dim=1))


def test_zero_skip_and_aux_run_fused_too() -> None:
    for options in ({"zero_skip": True}, {"aux": True}):
        reference, fused = pair(**options)
        with torch.no_grad():
            assert_same(fused(X), reference.double()(X.double()))
            assert runs_fused(fused, X)


def test_state_dict_is_the_references() -> None:
    reference, fused = pair()
    with torch.no_grad():
        fused(X)  # folded weights exist now, and must not show
    a, b = reference.state_dict(), fused.state_dict()
    assert list(a) == list(b)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert isinstance(fused, FastSCNN)


def test_which_mathematics_runs() -> None:
    _, fused = pair()
    with torch.no_grad():
        assert runs_fused(fused, X)
    with torch.inference_mode():
        assert runs_fused(fused, X)
    assert not runs_fused(fused, X)  # parameters want gradients
    fused.requires_grad_(False)
    assert runs_fused(fused, X)
    assert not runs_fused(fused, X.clone().requires_grad_())
    with torch.no_grad():
        assert not runs_fused(fused.double(), X.double())


def test_gradients_are_the_references_bit_for_bit() -> None:
    reference, fused = pair()
    fused.fused_training = False
    for model in (reference, fused):
        model.zero_grad()
        model(X).square().mean().backward()
    for a, b in zip(reference.parameters(), fused.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "in-place": lambda m: m.classifier.conv.weight.mul_(1.5),
    "buffer": lambda m: m.learning_to_downsample.conv.bn.running_mean.add_(0.3),
    "load_state_dict": lambda m: m.load_state_dict(
        {k: v * 1.1 if v.is_floating_point() else v for k, v in m.state_dict().items()}
    ),
    "new parameter": lambda m: setattr(
        m.classifier.conv, "bias", nn.Parameter(m.classifier.conv.bias + 1)
    ),
    "new module": lambda m: setattr(m.classifier, "conv", nn.Conv2d(128, 7, 1)),
    "late bias": lambda m: setattr(
        m.feature_fusion.low.conv, "bias", nn.Parameter(torch.ones(128))
    ),
    ".data and eval()": lambda m: (m.classifier.conv.bias.data.add_(1), m.eval()),
    ".to(dtype) and back": lambda m: m.to(torch.float64).float(),
    "zero_skip": lambda m: setattr(m.feature_fusion, "zero_skip", True),
    "init": lambda m: nn.init.normal_(m.feature_fusion.low.conv.weight),
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_stale_fold(change: str) -> None:
    reference, fused = pair()
    with torch.no_grad():
        before = fused(X)
        for model in (reference, fused):
            torch.manual_seed(1)
            CHANGES[change](model)
        after = fused(X)
        assert_same(after, reference.double()(X.double()))
    if change != ".to(dtype) and back":
        assert not torch.allclose(before, after)


def test_data_writes_need_refold() -> None:
    _, fused = pair()
    with torch.no_grad():
        before = fused(X)
        fused.classifier.conv.bias.data.add_(1)
        assert torch.equal(fused(X), before)  # documented: invisible
        fused.refold()
        assert_same(fused(X), before.double() + 1)


def test_no_stale_fold_after_an_optimizer_step() -> None:
    _, fused = pair()
    optimizer = torch.optim.SGD(fused.parameters(), lr=1e-3)
    x = torch.cat([X, X.flip(-1)])
    with torch.no_grad():
        before = fused(x)
    fused(x).square().mean().backward()  # eval-mode training step: no train() or eval() call
    optimizer.step()
    exact = FastSCNN(7)
    exact.load_state_dict(fused.state_dict())
    with torch.no_grad():
        after = fused(x)
        assert_same(after, exact.double().eval()(x.double()))
    assert not torch.allclose(before, after)


def test_copies_and_pickles_carry_parameters_only() -> None:
    _, fused = pair()
    with torch.no_grad():
        expected = fused(X)
        buffer = io.BytesIO()
        torch.save(fused, buffer)
        buffer.seek(0)
        copies = [
            copy.deepcopy(fused),
            pickle.loads(pickle.dumps(fused)),
            torch.load(buffer, weights_only=False),
        ]
        assert fused._folded is not None
        for other in copies:
            assert other._folded is None
            assert torch.equal(other(X), expected)
            other.classifier.conv.bias.add_(1)
            assert not torch.equal(other(X), expected)
        assert torch.equal(fused(X), expected)


def test_ema_copy() -> None:
    _, fused = pair()
    averaged = torch.optim.swa_utils.AveragedModel(fused).eval()
    with torch.no_grad():
        fused.classifier.conv.bias.add_(2)
        averaged.update_parameters(fused)
        averaged.update_parameters(fused)
        exact = FastSCNN(7)
        exact.load_state_dict(averaged.module.state_dict())
        assert_same(averaged(X), exact.double().eval()(X.double()))


def test_ten_training_steps_are_bit_identical() -> None:
    """Without fused training operations the reference's parameters come out exactly."""
    states = []
    for cls in (FastSCNN, partial(FusedFastSCNN, fused_training=False)):
        torch.manual_seed(3)
        model = cls(5, aux=True).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for step in range(10):
            x = torch.randn(2, 3, 32, 48)
            target = torch.randint(0, 5, (2, 32, 48))
            loss = sum(F.cross_entropy(y, target) for y in model.forward_aux(x))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step == 5:  # validation in between must not disturb the run
                with torch.no_grad():
                    model.eval()(x)
                model.train()
        states.append(model.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_bad_input_is_refused_as_by_the_reference() -> None:
    _, fused = pair()
    with torch.no_grad():
        for x in (torch.zeros(1, 3, 16, 64), torch.zeros(1, 4, 64, 64), torch.zeros(3, 64, 64)):
            with pytest.raises(ValueError, match="expected"):
                fused(x)
        with pytest.raises(TypeError, match="uint8"):
            fused(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_compile_sees_the_operations() -> None:
    """A compiled network holds our registered operations and computes the same."""
    _, fused = pair()
    targets: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        targets.extend(str(n.target) for n in graph.graph.nodes)
        return graph.forward

    with torch.no_grad():
        expected = fused(X)
        compiled = torch.compile(fused, backend=backend, fullgraph=True)
        assert_same(compiled(X), expected.double())
        assert sum("fastscnn.inverted_residual" in t for t in targets) == 9
        assert not any("conv2d" in t for t in targets)
        fused.classifier.conv.bias.add_(1)  # a compiled network is never stale
        assert_same(compiled(X), expected.double() + 1)


def test_wrapped_in_distributed_data_parallel(tmp_path: Path) -> None:
    """One process, gloo: the wrapper trains on gradients and runs fused without."""
    _, fused = pair()
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(fused)
        with torch.no_grad():
            assert torch.equal(wrapped(X), fused(X))
        wrapped(X).mean().backward()
        assert fused.classifier.conv.weight.grad is not None
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.gpu
def test_segment_on_a_gpu_replays_a_graph_and_is_never_stale() -> None:
    """float32 labels equal the CPU's; later calls replay; a weight write is seen; threads agree."""
    _, fused = pair()
    frame = (torch.rand(64, 96, 3) * 255).byte()
    expected = fused.segment(frame)
    fused.cuda()
    labels = fused.segment(frame)
    assert labels.device.type == "cpu"
    assert (labels != expected).float().mean() < 1e-3
    engine = fused._folded.engines.engine
    assert torch.equal(fused.segment(frame.cuda()).cpu(), labels)
    assert fused._folded.engines.engine is engine
    with ThreadPoolExecutor(3) as pool:
        assert all(torch.equal(y, labels) for y in pool.map(fused.segment, [frame] * 12))
    with torch.no_grad():
        fused.classifier.conv.bias[3] += 1000
    assert (fused.segment(frame) == 3).all()


def doubled(reference: FastSCNN) -> FastSCNN:
    """Whose classifier sees its input twice as large: by its first weights, which are linear."""
    model = copy.deepcopy(reference)
    model.classifier.dsconv1.depthwise.conv.weight.data *= 2
    return model


def test_what_only_the_reference_can_do() -> None:
    """Inner modules in training mode, hooks, traces and transforms take the reference's path."""
    reference, fused = pair()
    with torch.no_grad():
        fused(X)
        fused.classifier.dropout.train()
        assert not torch.equal(fused(X), fused(X))  # Monte Carlo dropout
        fused.eval()
        seen = []
        hook = fused.classifier.dsconv1.register_forward_hook(lambda *a: seen.append(1))
        fused(X)
        assert seen
        hook.remove()
        hook = fused.classifier.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 2,))
        torch.testing.assert_close(fused(X), doubled(reference)(X), rtol=1e-4, atol=1e-4)
        hook.remove()
        exact = reference(X)
        traced = torch.jit.trace(fused, X, check_trace=False)
        torch.testing.assert_close(traced(X), exact, rtol=1e-4, atol=1e-4)
        batched = torch.func.vmap(fused)(X[None])[0]
        torch.testing.assert_close(batched, exact, rtol=1e-4, atol=1e-4)
        mode = torch._subclasses.fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)
        with mode:
            assert fused(torch.empty(1, 3, 64, 64)).shape == (1, 7, 64, 64)


BF16 = bool(device_info()["cpu_bf16_instruction_sets"])


def test_bfloat16_on_a_cpu_keeps_parameters_and_rounds_products() -> None:
    model = fastscnn.load(device="cpu", dtype=torch.bfloat16)
    exact = fastscnn.load(device="cpu")
    x = model.preprocess(torch.randint(0, 256, (128, 192, 3), dtype=torch.uint8))
    with torch.no_grad():
        values, truth = model(x), exact(x)
        assert next(model.parameters()).dtype == x.dtype == values.dtype == torch.float32
        difference = (values - truth).abs().max() / (truth.max() - truth.min())
        assert 1e-4 < difference < 0.05 if BF16 else difference == 0
        copied = copy.deepcopy(model)
        assert torch.equal(copied(x), values)
        assert isinstance(copied, FusedFastSCNN)
        copied.cpu_products = torch.float32
        assert torch.equal(copied(x), truth)


def test_bfloat16_without_its_instructions_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastscnn_kernels.cpu.pack.bf16_instruction_set", lambda: "")
    frame = torch.randint(0, 256, (128, 192, 3), dtype=torch.uint8)
    half, exact = (fastscnn.load(device="cpu", dtype=d) for d in (torch.bfloat16, None))
    assert torch.equal(half.segment(frame), exact.segment(frame))


@pytest.mark.skipif(not BF16, reason="this CPU does not multiply bfloat16")
def test_bfloat16_labels_of_street_frames(data_dir: Path) -> None:
    """99.5 % of the labels of float32, over all frames."""
    half, exact = (fastscnn.load(device="cpu", dtype=d) for d in (torch.bfloat16, None))
    same = []
    for file in sorted((data_dir / "street" / "images").iterdir()):
        frame = read_image(file)
        same.append((half.segment(frame) == exact.segment(frame)).mean())
    assert 0.995 < sum(same) / len(same) < 1


def test_writes_to_inference_tensors_are_seen() -> None:
    with torch.inference_mode():
        fused = FusedFastSCNN(7).eval()
        before = fused(X)
        fused.classifier.conv.bias.add_(3)
        assert_same(fused(X), before.double() + 3)


def test_threads_that_refold_do_not_collide() -> None:
    _, fused = pair()
    image = (torch.rand(40, 48, 3) * 255).byte()
    expected = fused.segment(image)

    def call(_: int) -> bool:
        fused.eval()
        return torch.equal(fused.segment(image), expected)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(60)))
