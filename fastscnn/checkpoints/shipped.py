"""The checkpoints that come with the package."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent.parent / "weights"


def shipped_weights() -> list[str]:
    """Names that `fastscnn.load` takes."""
    return sorted(p.stem for p in FOLDER.glob("*.safetensors"))
