"""Checkpoints of any known implementation: recognise, read, save, convert."""

from fastscnn.checkpoints.card import Card
from fastscnn.checkpoints.files import (
    Checkpoint,
    CheckpointError,
    convert,
    find_checkpoint,
    read_checkpoint,
    save,
)
from fastscnn.checkpoints.shipped import shipped_weights

__all__ = [
    "Card",
    "Checkpoint",
    "CheckpointError",
    "convert",
    "find_checkpoint",
    "read_checkpoint",
    "save",
    "shipped_weights",
]
