"""The service as a process: sockets, slow and leaving clients, a thousand at once, its end."""

from __future__ import annotations

import asyncio
import collections
import io
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

import fastscnn
from fastscnn.cli import main
from fastscnn.media.demo import street_scene
from fastscnn.service import server
from fastscnn.service.app import create_app
from fastscnn.service.limits import Limits
from fastscnn.service.workers import Workers

ROOT = Path(__file__).resolve().parents[2]
FRAME = street_scene(96, 128)


def png(frame: np.ndarray = FRAME) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return file.getvalue()


PNG = png()


#: Seconds after which what is waited for will not come, however busy the machine.
LATE = 60


def fetch(url: str) -> httpx.Response:
    return httpx.get(url, timeout=LATE)


class Service:
    """`fastscnn serve` on a free port."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "fastscnn", "serve", "--port", "0", "--device", "cpu"]
        self.process = subprocess.Popen(
            [*command, *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        match = re.search(r"http://127\.0\.0\.1:(\d+) ", line)
        assert match, line
        self.port = int(match[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit code, and what it printed after its first line."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        output = self.process.communicate(timeout=LATE)[0]
        return self.process.returncode, output


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    made = Service("--size", "96x128", "--max-waiting", "40", "--max-per-client", "30")
    yield made
    made.end()


def test_answers(service: Service) -> None:
    answer = httpx.post(f"{service.url}/v1/segment", content=PNG, timeout=LATE)
    expected = fastscnn.load(device="cpu").segment(FRAME, size=(96, 128))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), expected)


async def exchange(port: int, *parts: bytes, pause: float = 0) -> bytes:
    """What comes back for these bytes until the server closes, or has answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        return head + await reader.readexactly(int(length[1]) if length else 0)
    finally:
        writer.close()


def post(body: bytes, *extra: str) -> bytes:
    lines = ["POST /v1/segment?output=shares HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *extra, "", ""]).encode() + body


def open_files(service: Service) -> float:
    text = fetch(f"{service.url}/metrics").text
    found = re.search(r"^process_open_fds (\S+)", text, re.M)
    assert found
    return float(found[1])


def test_a_thousand_at_once(service: Service) -> None:
    """Each gets labels, or is told when to return; none is left waiting, nothing leaks."""

    async def all_of_them() -> list[bytes]:
        return await asyncio.gather(*(exchange(service.port, post(PNG)) for _ in range(1000)))

    before = open_files(service)
    answers = asyncio.run(all_of_them())
    statuses = collections.Counter(int(a.split()[1]) for a in answers)
    assert set(statuses) <= {200, 429}
    assert statuses.total() == 1000
    assert statuses[200] >= 30
    assert statuses[429] > 0
    assert all(b"retry-after: " in a for a in answers if b" 429 " in a.split(b"\r\n")[0])
    assert httpx.post(f"{service.url}/v1/segment", content=PNG, timeout=LATE).status_code == 200
    deadline = time.monotonic() + LATE
    while open_files(service) > before + 5:
        assert time.monotonic() < deadline, f"{open_files(service)} files are open, {before} before"
        time.sleep(0.1)


def test_what_is_no_http(service: Service) -> None:
    assert b" 400 " in asyncio.run(exchange(service.port, b"\x16\x03\x01 what?\r\n\r\n"))
    assert fetch(f"{service.url}/healthz").status_code == 200


def test_too_large_is_told_before_it_is_sent(service: Service) -> None:
    head = b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n"
    answer = asyncio.run(exchange(service.port, head + b"Expect: 100-continue\r\n\r\n"))
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_every_option_reaches_the_application(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    class Asked:
        device, count = "cpu", 3

        def __init__(self, weights: str, **options: Any) -> None:
            given.update(weights=weights, **options)

    def made(workers: Any, **options: Any) -> str:
        given.update(options)
        return "application"

    def run(app: Any, sock: Any, *, stop_seconds: float) -> None:
        given.update(app=app, host=sock.getsockname()[0], stop_seconds=stop_seconds)

    monkeypatch.setattr("fastscnn.service.workers.Workers", Asked)
    monkeypatch.setattr("fastscnn.service.app.create_app", made)
    monkeypatch.setattr("fastscnn.service.server.run", run)
    options = {
        "port": 0, "weights": "w.pth", "device": "cpu", "threads": 2, "workers": 3,
        "size": "96x128", "max-mib": 3, "max-megapixels": 7, "max-waiting": 11,
        "max-per-client": 5, "wait": 13, "opacity": 0.25,
    }  # fmt: skip
    assert main(["serve", *(str(x) for k, v in options.items() for x in (f"--{k}", v))]) == 0
    assert given == {
        "weights": "w.pth", "device": "cpu", "threads": 2, "size": (96, 128), "count": 3,
        "max_pixels": 7_000_000, "opacity": 0.25, "app": "application", "host": "127.0.0.1",
        "stop_seconds": 13,
        "limits": Limits(
            body_bytes=3 * 2**20, pixels=7_000_000, waiting=11, per_client=5, wait_seconds=13
        ),
    }  # fmt: skip


def test_port_in_use(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", str(service.port)]) == 2
    error = capsys.readouterr().err
    assert f"--port {service.port}: Address already in use; give another --port" in error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "256.1.1.1"], "--host 256.1.1.1: not an address"),
        (["--port", "0", "--size", "8x8"], "at least 32"),
        (["--port", "0", "--weights", "nothing"], "nothing"),
    ],
)
def test_wrong_options(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *options]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ends_when_all_is_answered(number: int) -> None:
    service = Service("--threads", "1")
    answers: list[httpx.Response] = []
    body = png(street_scene(300, 400).repeat(5, 0).repeat(5, 1))

    def ask() -> None:
        answers.append(httpx.post(f"{service.url}/v1/segment", content=body, timeout=LATE))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + LATE
    known = r'^(?:fastscnn_requests_at_once|fastscnn_answers_total{status="200"}) (\S+)'
    while sum(map(float, re.findall(known, fetch(f"{service.url}/metrics").text, re.M))) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert service.end(number) == (0, "ended\n")
    for thread in threads:
        thread.join()
    assert [a.status_code for a in answers] == [200] * 4
    with pytest.raises(httpx.ConnectError):
        fetch(f"{service.url}/healthz")


class Running:
    """The server in a thread of this process, around workers that wait for `go`."""

    def __init__(self, limits: Limits) -> None:
        self.go = threading.Event()
        self.begun = 0
        running = self

        class Held(Workers):
            def _answer(self, *args: Any) -> Any:
                running.begun += 1
                assert running.go.wait(LATE)
                return super()._answer(*args)

        self._workers = Held("camvid", device="cpu", size=(96, 128), count=1, max_pixels=10**6)
        self.sock = server.bind("127.0.0.1", 0)
        self.sock.listen()
        self.port = self.sock.getsockname()[1]
        app = create_app(self._workers, limits=limits)
        config = uvicorn.Config(app, http=server.TimedProtocol, ws="none", log_level="warning")
        self.server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self.server.run, args=([self.sock],))
        self._thread.start()

    def metrics(self) -> str:
        return fetch(f"http://127.0.0.1:{self.port}/metrics").text

    def wait_for(self, line: str) -> None:
        deadline = time.monotonic() + LATE
        while line not in self.metrics():
            assert time.monotonic() < deadline, f"no {line} in\n{self.metrics()}"
            time.sleep(0.02)

    def close(self) -> None:
        self.go.set()
        self.server.should_exit = True
        self._thread.join()


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.5)
    made = Running(Limits(body_seconds=0.5))
    yield made
    made.close()


def test_a_client_that_left_costs_no_work(running: Running) -> None:
    first, second = (socket.create_connection(("127.0.0.1", running.port)) for _ in range(2))
    first.sendall(post(PNG))
    running.wait_for("fastscnn_requests_at_once 1.0")
    second.sendall(post(PNG))
    running.wait_for("fastscnn_requests_at_once 2.0")
    second.close()
    running.wait_for("fastscnn_requests_at_once 1.0")
    running.go.set()
    assert first.recv(100).startswith(b"HTTP/1.1 200")
    first.close()
    assert running.begun == 1


def test_a_client_that_leaves_in_its_body_frees_its_place(running: Running) -> None:
    client = socket.create_connection(("127.0.0.1", running.port))
    client.sendall(post(PNG)[:-100])
    running.wait_for("fastscnn_requests_at_once 1.0")
    client.close()
    running.wait_for("fastscnn_requests_at_once 0.0")
    assert running.begun == 0


def test_slow_heads_are_cut_off(running: Running) -> None:
    """Byte by byte would keep a connection for ever."""
    head = post(b"")
    start = time.monotonic()
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        asyncio.run(exchange(running.port, *(head[i : i + 1] for i in range(40)), pause=0.1))
    assert time.monotonic() - start < 3


def test_slow_bodies_are_cut_off(running: Running) -> None:
    whole = post(PNG)
    answer = asyncio.run(exchange(running.port, whole[:-20], whole[-20:-10], pause=0.6))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert running.begun == 0


def ask_for_a_large_answer(running: Running, client: socket.socket) -> None:
    """Small buffers: what is not read stays with the server."""
    running.go.set()
    noise = np.random.default_rng(0).integers(0, 256, (900, 1000, 3), np.uint8)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    running.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client.connect(("127.0.0.1", running.port))
    client.sendall(post(png(noise)).replace(b"output=shares", b"output=overlay"))


def test_who_does_not_read_is_cut_off(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "READ_SECONDS", 0.3)
    with socket.socket() as client:
        ask_for_a_large_answer(running, client)
        client.recv(1000)
        deadline = time.monotonic() + LATE
        while running.server.server_state.connections:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_large_answer_is_read_to_its_end(running: Running) -> None:
    """A client slower than the clock of heads still gets all of it."""
    with socket.socket() as client:
        ask_for_a_large_answer(running, client)
        data = client.recv(1000)
        length = int(re.search(rb"content-length: (\d+)", data)[1])  # type: ignore[index]
        time.sleep(1.5)
        got = len(data) - data.index(b"\r\n\r\n") - 4
        while got < length:
            part = client.recv(1 << 20)
            assert part, f"{got} of {length} bytes"
            got += len(part)
    assert length > 1_000_000


def test_the_file_limit_is_raised() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
        server._raise_file_limit()
        raised = resource.getrlimit(resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert raised == (65536 if before[1] < 0 else min(before[1], 65536), before[1])
