"""Prints how long a new process takes from weights on disk to its first labels.

    python bench/first_frame.py "CUDA C++ alone"|cold|warm [cuda|cpu]

The import of torch and the GPU's context come before the clock starts. "cold" and "warm" speak of
Triton's cache, which the caller provides. Exit status 2: cannot run here, for the printed reason.
"""

from __future__ import annotations

import json
import sys
import time

import torch


def main(start: str, place: str) -> None:
    device = torch.device(place)
    if start == "CUDA C++ alone":
        sys.modules["triton"] = None  # type: ignore[assignment]
    torch.zeros(1, device=device) + 1
    frame = torch.randint(0, 256, (1, 1024, 2048, 3), dtype=torch.uint8, device=device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    import fastscnn
    from fastscnn.inference.engine import Engine
    from fastscnn_kernels.cuda import operations as cuda

    if start == "CUDA C++ alone" and (device.type != "cuda" or cuda.missing(device)):
        print(cuda.missing(device) if device.type == "cuda" else "CUDA C++ kernels need a GPU")
        sys.exit(2)

    dtype = torch.float16 if device.type == "cuda" else torch.float32
    model = fastscnn.load("camvid", device=device, dtype=dtype)
    loaded = time.perf_counter()
    labels = Engine(model)(frame)["labels"].cpu()
    ended = time.perf_counter()
    assert labels.shape == (1, 1024, 2048)
    found = {"seconds": ended - began, "load_seconds": loaded - began}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "cuda")
