"""The fused network inside other people's training code gives the reference's losses."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from fastscnn import FastSCNN, load
from fastscnn.network.segment import torch_threads


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of this one process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def foreign_loop(
    model: FastSCNN, *, amp: torch.dtype | None, scaled: bool, parallel: bool
) -> tuple[list[float], list[torch.Tensor], nn.Module]:
    """Losses and validation logits of a plain loop: AMP, GradScaler, an EMA copy, maybe DDP."""
    torch.manual_seed(7)
    x, y = torch.randn(3, 2, 3, 64, 96), torch.randint(0, 4, (3, 2, 64, 96))
    frame = torch.randint(0, 256, (64, 96, 3), dtype=torch.uint8)
    net: Any = nn.parallel.DistributedDataParallel(model) if parallel else model
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=4e-5)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    average = copy.deepcopy(model).eval()
    losses, validations = [], []
    for step in range(6):
        net.train()
        with torch.autocast("cpu", amp or torch.bfloat16, enabled=amp is not None):
            logits = net(x[step % 3])
            loss = F.cross_entropy(logits.float(), y[step % 3])
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        with torch.no_grad():
            for mean, new in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(new, 0.1)
        for validated in (model.eval(), average):
            with torch.no_grad():
                validations.append(validated(x[0]))
            validated.segment(frame)
        losses.append(float(loss.detach()))
    return losses, validations, average


@pytest.mark.parametrize("parallel", [False, True], ids=["one", "ddp"])
@pytest.mark.parametrize(
    ("amp", "scaled"),
    [(None, False), (torch.bfloat16, False), (torch.bfloat16, True)],
    ids=["fp32", "bf16", "bf16 scaled"],
)
def test_a_foreign_loop_gets_the_references_losses(
    group: None, amp: torch.dtype | None, scaled: bool, parallel: bool
) -> None:
    with torch_threads(1):
        torch.manual_seed(0)
        reference = load(None, fused=False, device="cpu", num_classes=4)
        fused = load(None, fused=True, device="cpu", num_classes=4)
        fused.load_state_dict(reference.state_dict())
        options: dict[str, Any] = {"amp": amp, "scaled": scaled, "parallel": parallel}
        expected, their_logits, their_average = foreign_loop(reference, **options)
        losses, our_logits, our_average = foreign_loop(fused, **options)
    assert losses == expected  # bit for bit
    assert losses[3] < losses[0]  # the same batch
    for a, b in zip(our_logits, their_logits, strict=True):  # fused on the weights of that step
        assert torch.allclose(a, b, atol=1e-4 * float(b.abs().max()))
    ours, theirs = fused.state_dict(), reference.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    ours, theirs = our_average.state_dict(), their_average.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
