"""Memory of the process while ways to run the network are compared."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: glibc's options of `mallopt`, and what they grow to by themselves.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_USUAL = {_TRIM_THRESHOLD: 64 << 20, _MMAP_THRESHOLD: 32 << 20}


@contextmanager
def kept() -> Iterator[None]:
    """Lets glibc's allocator keep large blocks for the next frame, as tcmalloc and jemalloc would.

    By itself it gives them back, and every frame's full-size logits fault in page by page: PyTorch
    then takes 606 ms instead of 322 at 1024x2048 on one thread. Runtimes with an arena of their own
    do not notice. Without glibc nothing happens.
    """
    _set(dict.fromkeys(_USUAL, 1 << 30))
    try:
        yield
    finally:
        _set(_USUAL)
        forget_peak()


def _set(options: dict[int, int]) -> None:
    try:
        for option, value in options.items():
            ctypes.CDLL(None).mallopt(option, value)
    except (OSError, AttributeError):
        pass


def forget_peak() -> None:
    """Gives unused memory back and starts the count anew, where the system lets us."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        pass


def peak() -> float | None:
    """The most memory that the process has held since, in MB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    held = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return held[0] / 1e3 if held else None
