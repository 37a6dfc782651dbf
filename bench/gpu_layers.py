"""Rows of single layers in float16: CUDA C++, Triton and PyTorch, each in graphs of many calls."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from gpu_clock import CALLS, ROTATED, Call, Clock, facts, limits, measure, rates
from gpu_groups import Layer, op_cases
from gpu_providers import HALF, need_cuda_kernels
from gpu_steps import STEP_SECONDS, say, step
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import fastscnn_kernels
from fastscnn.inference.fold import Conv
from fastscnn.inference.gpu_runtime import _laid_out
from fastscnn.inference.plan import BYTES_PER_SECOND, FLOPS_PER_SECOND
from fastscnn_kernels import composition, reference
from fastscnn_kernels.cuda import operations as cuda


def layer_rows(
    group: Layer, skip: set[str], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    device = torch.device(options.device)
    inputs = []
    for seed in range(ROTATED):
        torch.manual_seed(seed)
        inputs.append(group.make(HALF))
    on_device = [moved(arguments, device) for arguments in inputs]
    calls: dict[str, Call] = {}
    for name in (n for n in group.implementations if n not in skip):
        with step(group.name, name, STEP_SECONDS) as allowed:
            if not allowed:
                continue
            ready = [implementation(name, group.op, *one, device) for one in on_device]
            got = moved(ready[0](), torch.device("cpu"))
            if name != "torch":  # whose twin is the truth
                if group.op == "argmax_head":  # confidence, which nobody asked for, may be None
                    got = got[0], torch.empty(0)
                case = op_cases.Case(group.op, group.name, group.make)
                op_cases.check(case, got, *inputs[0])
            calls[name] = queued(ready, device)
    before = lambda name: say(start=name, group=group.name, seconds=STEP_SECONDS)  # noqa: E731
    times = measure(calls, Clock(device), before, **limits(options))
    args, kwargs = inputs[0]
    known = rates(*layer_cost(group.op, args, kwargs))
    for name in calls:
        found = facts(*times[name], calls=CALLS)
        yield {"contestant": name, **found, **known, "kind": "layer", "op": group.op,
               "ours": name != "torch", "dtype": "float16", "images": 1}  # fmt: skip


def implementation(
    name: str, op: str, args: Any, kwargs: Any, device: torch.device
) -> Callable[[], Any]:
    """The operation on these arguments, weights packed in advance where the engine does so."""
    if name == "torch":
        reference.normalize = normalize
        return lambda: getattr(reference, op)(*args, **kwargs)
    if name == "Triton":
        args, kwargs = laid_out((args, kwargs))
        ops = composition.on(device, "triton") if device.type == "cuda" else fastscnn_kernels
        return lambda: getattr(ops, op)(*args, **kwargs)
    need_cuda_kernels(device)
    if op == "argmax_head":
        return lambda: cuda.argmax_head(*args, **kwargs)
    shared = {"counters": cuda.counters(device)} if op == "inverted_residual" else {}
    bound = cuda.bind(op, *args[1:], **kwargs, **shared)
    return lambda: bound(args[0])


@functools.cache
def _on(device: torch.device, values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, device=device)


def normalize(frame: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """`reference.normalize` with its constants made in advance, as a careful user does: its eight
    small kernels would count against PyTorch."""
    m, s = _on(frame.device, tuple(mean)), _on(frame.device, tuple(std))
    return ((frame.float() / 255 - m) / s).permute(0, 3, 1, 2)


def queued(ready: list[Callable[[], Any]], device: torch.device) -> Call:
    """CALLS calls over all inputs, on a GPU in one graph."""

    def run(_: int) -> None:
        for i in range(CALLS):
            ready[i % ROTATED]()

    if device.type != "cuda":
        return run
    for call in ready:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(0)
    return lambda _: graph.replay()


def layer_cost(op: str, args: Any, kwargs: Any) -> tuple[int, int, float]:
    """(bytes of inputs, weights and output, flops of the convolutions, us that they need)."""
    args, kwargs = moved((args, kwargs), torch.device("meta"))
    with FlopCounterMode(display=False) as counter:
        y = getattr(reference, op)(*args, **kwargs)
    size = sum(t.numel() * t.element_size() for t in tensors((args, kwargs, y)))
    flops = counter.get_total_flops()
    return size, flops, 1e6 * max(size / BYTES_PER_SECOND, flops / FLOPS_PER_SECOND[HALF])


def moved(value: Any, device: torch.device) -> Any:
    """The same with every tensor in it on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {k: moved(v, device) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(moved(v, device) for v in value)
    return value


def laid_out(value: Any) -> Any:
    """The same with every 3x3 weight in it stored as the engine does, which decides the kernel."""
    if isinstance(value, Tensor):
        is_weight = value.dim() == 4 and value.shape[-2:] == (3, 3)
        return _laid_out(Conv(value, value), value.dtype).weight if is_weight else value
    if isinstance(value, dict):
        return {k: laid_out(v) for k, v in value.items()}
    return type(value)(laid_out(v) for v in value) if isinstance(value, list | tuple) else value


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in tensors(v)] if isinstance(value, list | tuple) else []
