"""The network's training in fused operations: the reference's mathematics, and when it is used."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_close
from torch import Tensor, nn

from fastscnn import FastSCNN, load
from fastscnn.inference.fused import FusedFastSCNN
from fastscnn.network.config import PRESETS, FastSCNNConfig
from fastscnn.network.segment import torch_threads

X = torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def pair(preset: str = "paper", **options: bool) -> tuple[FastSCNN, FusedFastSCNN]:
    """A reference and a fused network with the same weights and no dropout, in training mode."""
    torch.manual_seed(0)
    config = FastSCNNConfig.preset(preset)
    reference = FastSCNN(5, config=config, **options)
    fused = FusedFastSCNN(5, config=config, fused_training=True, **options)
    fused.load_state_dict(reference.state_dict())
    for model in (reference, fused):
        for m in model.modules():
            if isinstance(m, nn.Dropout):
                m.p = 0.0
    return reference.train(), fused.train()


def differentiate(model: FastSCNN, x: Tensor) -> dict[str, Tensor]:
    """Scores, the gradients of everything, and the statistics after one step."""
    x = x.clone().requires_grad_()
    scores = model.scores_aux(x) if model.aux is not None else (model.scores(x),)
    sum(s.square().mean() for s in scores).backward()  # type: ignore[union-attr]
    assert x.grad is not None
    results = {"x": x.grad, **{f"scores {i}": s.detach() for i, s in enumerate(scores)}}
    for name, p in model.named_parameters():
        results[name] = p.grad if p.grad is not None else torch.zeros_like(p)
    return {**results, **{n: b.double() for n, b in model.named_buffers()}}


@pytest.mark.parametrize("frozen", [False, True], ids=["training", "frozen"])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_references_mathematics(preset: str, frozen: bool) -> None:
    """In float64, where the operations run their twins and no rounding turns a ReLU around."""
    models = [m.double() for m in pair(preset, aux=True)]
    for model in models:
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d) and frozen:
                m.eval()
    with torch_threads(1):
        expected, got = (differentiate(m, X.double()) for m in models)
    assert models[1]._trains_fused(X.double())  # type: ignore[operator]
    for name, value in expected.items():
        scale = max(1e-3, float(value.abs().max()))
        assert (got[name] - value).abs().max() < 1e-9 * scale, name


def away_from_zero(model: nn.Module) -> None:
    """Every channel's activation is open everywhere, or closed everywhere.

    A value within rounding of a ReLU's corner takes either side of it, in torch as in ours, and
    whole gradients with it; what lies on a corner's two sides the operations' own tests say.
    """
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.weight.uniform_(0.1, 0.2)
                m.bias.uniform_(1.5, 2.0)
                m.bias[::3] *= -1


@pytest.mark.parametrize("frozen", [False, True], ids=["training", "frozen"])
@pytest.mark.parametrize("options", [{}, {"zero_skip": True}, {"aux": True}], ids=str)
def test_float32_in_cpp(options: dict[str, bool], frozen: bool) -> None:
    """Scores, statistics and gradients under the tolerance rule.

    The gradients as one tensor, each parameter's relative to its largest: torch's own error over so
    few values as a layer has varies by more than two. Some are zero but for rounding, as a bias's
    in front of a batch norm: they count relative to 1e-3 of the largest gradient.
    """
    torch.manual_seed(0)
    reference, fused = pair(**options)
    away_from_zero(reference)
    reference(X)
    fused.load_state_dict(reference.state_dict())
    for m in (*reference.modules(), *fused.modules()):
        if isinstance(m, nn.BatchNorm2d) and frozen:
            m.eval()
    exact = copy.deepcopy(reference).double()
    with torch_threads(1):
        ours, theirs = differentiate(fused, X), differentiate(reference, X)
        truth = differentiate(exact, X.double())
    parameters = [n for n, _ in fused.named_parameters()]
    for name in truth.keys() - set(parameters):
        assert_close(ours[name].float(), truth[name], theirs[name].float())
    largest = max(float(truth[n].abs().max()) for n in parameters)
    scales = {n: max(float(truth[n].abs().max()), 1e-3 * largest) for n in parameters}
    assert_close(
        *(
            torch.cat([g[n].flatten() / scales[n] for n in parameters])
            for g in (ours, truth, theirs)
        )
    )


def test_bfloat16_autocast_is_near_float32() -> None:
    reference, fused = pair()
    target = torch.randint(0, 5, (3, 64, 96))
    losses = []
    for model, enabled in ((reference, False), (fused, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = F.cross_entropy(model(X).float(), target)
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)
    for (name, a), b in zip(reference.named_parameters(), fused.parameters(), strict=True):
        assert b.grad is not None
        assert b.grad.dtype == torch.float32
        assert b.grad.isfinite().all(), name
        if name == "classifier.conv.weight":
            assert a.grad is not None
            assert (a.grad - b.grad).norm() < 0.05 * a.grad.norm()


def test_what_decides() -> None:
    """`fused_training`, gradients, hooks, the kind of batch norm."""
    _, fused = pair()
    assert fused._trains_fused(X)
    assert load(None, device="cpu")._trains_fused(X)  # type: ignore[operator]
    assert not load(None, device="cpu", fused_training=False)._trains_fused(X)  # type: ignore[operator]
    with torch.no_grad():
        assert not fused._trains_fused(X)
    assert fused.eval()._trains_fused(X)  # gradients in eval()
    assert not copy.deepcopy(fused).double()._trains_fused(X)
    handle = fused.classifier.register_forward_hook(lambda *_: None)
    assert not fused._trains_fused(X)
    handle.remove()
    assert fused._trains_fused(X)
    nn.SyncBatchNorm.convert_sync_batchnorm(fused)
    assert not fused._trains_fused(X)


def test_eval_with_gradients_uses_the_statistics() -> None:
    reference, fused = pair()
    results = []
    for model in (reference.eval(), fused.eval()):
        before = copy.deepcopy(model.state_dict())
        y = model(X)
        y.square().mean().backward()
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        results.append(y.detach())
    assert torch.allclose(*results, atol=1e-4 * float(results[0].abs().max()))


def test_cumulative_statistics() -> None:
    """momentum=None averages over all batches, as torch does."""
    models = pair()
    for model in models:
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.momentum = None
        model(X)
        model(2 * X)
    for a, b in zip(*(m.buffers() for m in models), strict=True):
        assert torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-5)


def test_too_few_values_are_refused() -> None:
    _, fused = pair()
    with pytest.raises(ValueError, match="training needs a batch of 2 or more"):
        fused(X[:1])
    with pytest.raises(ValueError, match="fused_training=True needs fused=True"):
        load(None, fused=False, fused_training=True, device="cpu")


def test_training_repeats_to_the_bit() -> None:
    """Dropout follows torch's generator, and no sum of ours depends on the threads' order."""
    losses = []
    for _ in range(2):
        torch.manual_seed(5)
        model = FusedFastSCNN(4, aux=True, fused_training=True).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(3):
            loss = sum(s.square().mean() for s in model.scores_aux(X))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[union-attr]
            optimizer.step()
        losses.append(loss)
    assert losses[0] == losses[1]
