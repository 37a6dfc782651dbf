"""The few things that many processes do together; each is a no-op for one process."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastscnn.load import find_device


def start(device: str) -> torch.device:
    """Joins the processes that `torchrun` started, if it did; returns this one's device."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    place = find_device(f"cuda:{local}" if device == "cuda" else device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    return place


def stop() -> None:
    """Leaves the group; unless after an error, together, as gloo aborts a process whose peer closes
    the connection first."""
    if _active():
        if sys.exc_info()[0] is None:
            dist.barrier()
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process; 0 writes the files."""
    return dist.get_rank() if _active() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if _active() else 1


def total(tensor: Tensor) -> Tensor:
    """Sum over all processes, in place."""
    if _active():
        dist.all_reduce(tensor)
    return tensor


def gathered(value: Any) -> list[Any]:
    """The values of all processes, by rank."""
    if not _active():
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def from_first(value: Any) -> Any:
    """What process 0 gave."""
    values = [value]
    if _active():
        dist.broadcast_object_list(values)
    return values[0]


def share_buffers(*modules: nn.Module | None) -> None:
    """Gives all processes process 0's buffers (batch norm's statistics)."""
    if _active():
        for module in modules:
            for buffer in [] if module is None else module.buffers():
                dist.broadcast(buffer, 0)


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()
