"""The service under Ray Serve, with two replicas."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CODE = """
import io, socket
import httpx2 as httpx
import numpy as np
from PIL import Image
import ray
from ray import serve
import fastscnn
from fastscnn.media.demo import street_scene
from fastscnn.service.replicas import app

with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
ray.init(num_cpus=2, include_dashboard=False, logging_level="warning")
serve.start(http_options={"host": "127.0.0.1", "port": port})
serve.run(app({"replicas": "2", "size": "96x128", "device": "cpu"}))
states = serve.status().applications["default"].deployments["fastscnn"].replica_states
print("replicas", sum(states.values()))
frame = street_scene(96, 128)
file = io.BytesIO()
Image.fromarray(frame).save(file, "PNG")
url, kind = f"http://127.0.0.1:{port}", {"Content-Type": "image/png"}
expected = fastscnn.load(device="cpu").segment(frame, size=(96, 128))
for _ in range(8):
    answer = httpx.post(f"{url}/v1/segment", content=file.getvalue(), headers=kind, timeout=60)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), expected)
large = httpx.post(f"{url}/v1/segment", content=bytes(17 << 20), headers=kind, timeout=60)
print("large", large.status_code, "page", httpx.get(f"{url}/", timeout=60).text[:15])
serve.shutdown()
ray.shutdown()
"""


@pytest.mark.slow
def test_two_replicas() -> None:
    pytest.importorskip("ray.serve", reason="needs Ray: pip install 'fastscnn[ray]'")
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "replicas 2\n" in done.stdout
    assert "large 413 page <!doctype html>" in done.stdout


def test_options_are_checked() -> None:
    pytest.importorskip("ray.serve", reason="needs Ray: pip install 'fastscnn[ray]'")
    from fastscnn.service.replicas import app

    with pytest.raises(ValueError, match="replica=2: expected one of replicas, weights"):
        app({"replica": "2"})
