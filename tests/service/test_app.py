"""The service in this process: every kind of answer, by value, and every refusal."""

from __future__ import annotations

import asyncio
import base64
import io
import struct
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

import fastscnn
from fastscnn.media.demo import street_scene
from fastscnn.media.outputs import render
from fastscnn.service.app import create_app
from fastscnn.service.limits import Limits, Queue, Refusal
from fastscnn.service.workers import Workers

SIZE = (96, 128)
LIMITS = Limits(body_bytes=400_000, pixels=1_000_000)


def encoded(frame: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, kind, **options)
    return file.getvalue()


FRAME = street_scene(180, 240)
PNG = encoded(FRAME)


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    made = Workers("camvid", device="cpu", size=SIZE, count=2, max_pixels=LIMITS.pixels)
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(workers: Workers) -> TestClient:
    return TestClient(create_app(workers, limits=LIMITS))  # no `with`: the workers live on


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    found: np.ndarray = fastscnn.load(device="cpu").segment(FRAME, size=SIZE)
    return found


def picture(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def test_labels_are_the_models(client: TestClient, labels: np.ndarray) -> None:
    answer = client.post("/v1/segment", content=PNG, headers={"Content-Type": "image/png"})
    assert np.array_equal(picture(answer), labels)
    assert Image.open(io.BytesIO(answer.content)).getpalette()[:3] == list(
        fastscnn.CAMVID.colors[0]
    )
    stages = [part.partition(";")[0] for part in answer.headers["server-timing"].split(", ")]
    assert stages == ["wait", "decode", "network", "encode"]


@pytest.mark.parametrize("kind", ["overlay", "color"])
def test_pictures_are_those_of_the_command(
    client: TestClient, labels: np.ndarray, kind: str
) -> None:
    answer = client.post(f"/v1/segment?output={kind}&opacity=0.25", content=PNG)
    expected = np.asarray(render(kind, FRAME, labels, fastscnn.CAMVID, 0.25))
    assert np.array_equal(picture(answer), expected)


def test_overlays_have_the_applications_opacity_unless_asked(
    workers: Workers, labels: np.ndarray
) -> None:
    client = TestClient(create_app(workers, limits=LIMITS, opacity=0.75))
    for query, opacity in (("", 0.75), ("&opacity=0.25", 0.25)):
        answer = client.post(f"/v1/segment?output=overlay{query}", content=PNG)
        expected = np.asarray(render("overlay", FRAME, labels, fastscnn.CAMVID, opacity))
        assert np.array_equal(picture(answer), expected)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/json", "application/json"),
        ("image/png, application/json", "image/png"),
        ("*/*", "image/png"),
    ],
)
def test_what_is_accepted_is_answered(client: TestClient, accept: str, kind: str) -> None:
    answer = client.post("/v1/segment", content=PNG, headers={"Accept": accept})
    assert answer.headers["content-type"] == kind
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"


def test_who_is_alone_has_the_threads_of_the_others(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And there are as many workers as fit the cores, each with a model of its own."""
    asked, free = [], workers._models

    class Model:
        def input_size(self, shape: Any, size: Any) -> Any:
            return size

        def segment(self, frame: np.ndarray, *, threads: int, **_: Any) -> np.ndarray:
            asked.append(threads)
            return np.zeros(frame.shape[:2], np.uint8)

    one, other = free.get(), free.get()
    assert one is not other
    assert one.classifier.conv.weight.data_ptr() != other.classifier.conv.weight.data_ptr()
    workers._labels(Model(), FRAME)  # both are busy
    free.put(other)
    workers._labels(Model(), FRAME)
    free.put(one)
    assert asked == [1, 2]
    monkeypatch.setattr("fastscnn.service.workers.cores", lambda: 5)
    made = Workers("camvid", device="cpu", threads=2, size=SIZE, max_pixels=10**6)
    assert (made.count, made.threads) == (2, 2)
    made.close()


def test_a_form_gives_the_same_as_a_body(client: TestClient) -> None:
    form = client.post("/v1/segment", files={"image": ("photo.png", PNG, "image/png")})
    assert form.content == client.post("/v1/segment", content=PNG).content


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP"])
def test_formats(client: TestClient, kind: str) -> None:
    data = encoded(FRAME, kind)
    decoded = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    expected = fastscnn.load(device="cpu").segment(decoded, size=SIZE)
    headers = {"Content-Type": f"image/{kind.lower()}"}
    assert np.array_equal(
        picture(client.post("/v1/segment", content=data, headers=headers)), expected
    )


def test_a_turned_photo_is_labelled_upright(client: TestClient, labels: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it 90 degrees clockwise
    data = encoded(np.rot90(FRAME), exif=exif)
    assert np.array_equal(picture(client.post("/v1/segment", content=data)), labels)


def test_shares(client: TestClient, labels: np.ndarray) -> None:
    found = client.post("/v1/segment?output=shares", content=PNG).json()
    assert (found["height"], found["width"]) == labels.shape
    counts = np.bincount(labels.ravel(), minlength=11)
    for entry in found["classes"]:
        assert entry["name"] == fastscnn.CAMVID.names[entry["index"]]
        assert entry["share"] == pytest.approx(counts[entry["index"]] / labels.size, abs=1e-6)
        assert entry["color"] == "#{:02x}{:02x}{:02x}".format(
            *fastscnn.CAMVID.colors[entry["index"]]
        )
    shares = [entry["share"] for entry in found["classes"]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert "picture" not in found


def test_json_holds_the_picture(client: TestClient, labels: np.ndarray) -> None:
    headers = {"Accept": "application/json"}
    found = client.post("/v1/segment", content=PNG, headers=headers).json()
    kind, _, data = found["picture"].partition(",")
    assert kind == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), labels)


def bomb() -> bytes:
    """A PNG of 40000 x 40000 black pixels in a few hundred bytes of header and some zeros."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(10_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


REFUSED = {
    "empty": (b"", {}, 422, "is empty"),
    "not a picture": (b"hello", {}, 415, "expected JPEG, PNG, WEBP or BMP"),
    "a type that Pillow knows": (encoded(FRAME, "TIFF"), {}, 415, "expected JPEG"),
    "truncated": (PNG[: len(PNG) // 2], {}, 422, "cannot be read as an image"),
    "a bomb": (bomb(), {}, 413, "at most 1 million: scale it down"),
    "too many pixels": (encoded(np.zeros((1001, 1000, 3), np.uint8)), {}, 413, "at most 1 million"),
    "too many scans": (b"\xff\xd8" + 101 * b"\xff\xda", {}, 422, "more than 100 scans"),
    "too large": (bytes(400_001), {}, 413, "send a smaller picture"),
    "wrong type": (PNG, {"Content-Type": "text/plain"}, 415, "Content-Type text/plain"),
    "no form": (b"--x", {"Content-Type": "multipart/form-data; boundary=y"}, 422, "form"),
    "form without boundary": (b"--x", {"Content-Type": "multipart/form-data"}, 422, "form"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(client: TestClient, case: str) -> None:
    data, headers, status, words = REFUSED[case]
    answer = client.post("/v1/segment", content=data, headers=headers)
    assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text
    assert client.post("/v1/segment", content=PNG).status_code == 200


def test_a_large_body_without_announcement_is_not_read_on(client: TestClient) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 10_000
            yield bytes(10_000)

    assert client.post("/v1/segment", content=endless()).status_code == 413


def test_the_address_opened_in_a_browser(client: TestClient) -> None:
    answer = client.get("/v1/segment")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
    assert "send the picture with POST" in answer.json()["detail"]


def test_a_form_of_other_fields(client: TestClient) -> None:
    answer = client.post("/v1/segment", data={"a": "b"}, files={})
    assert answer.status_code == 415  # urlencoded
    answer = client.post("/v1/segment", files={"a": (None, "b")})
    assert answer.status_code == 422
    assert "no file" in answer.json()["detail"]


@pytest.mark.parametrize("query", ["output=depth", "opacity=2", "opacity=nan", "opacity=x"])
def test_wrong_parameters(client: TestClient, query: str) -> None:
    answer = client.post(f"/v1/segment?{query}", content=PNG)
    name, _, value = query.partition("=")
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(f"{name}='{value}': ")


def test_a_sliver_is_not_scaled_up_without_end() -> None:
    """A picture of 40 pixels must not ask for a network input of millions."""
    workers = Workers("camvid", device="cpu", count=1, max_pixels=10**6)
    try:
        with pytest.raises(Refusal, match="720x28800: send one that is less narrow") as raised:
            workers.submit(encoded(np.zeros((1, 40, 3), np.uint8)), "labels", 0.5).result()
        assert raised.value.status == 422
    finally:
        workers.close()


def test_page_documents_and_state(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for path in ("page.js", "page.css", "icon.svg", "static-offline-docs/swagger-ui-bundle.js"):
        assert client.get(f"/{path}").status_code == 200, path
    for path in ("/", "/page.js", "/page.css", "/docs"):  # the SVG's name space is no address
        assert "http://" not in client.get(path).text.replace("http://www.w3.org", ""), path
        assert "https://" not in client.get(path).text, path
    assert client.get("/healthz").json() == {"status": "ok", "workers": 2, "device": "cpu"}
    described = client.get("/openapi.json").json()["paths"]["/v1/segment"]["post"]
    assert set(described["responses"]) == {"200", "408", "413", "415", "422", "429", "503"}
    assert "multipart/form-data" in described["requestBody"]["content"]


def metric(client: TestClient, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name + " "))


def test_metrics(client: TestClient) -> None:
    names = [
        'fastscnn_answers_total{status="200"}',
        'fastscnn_answers_total{status="415"}',
        "fastscnn_pixels_total",
        'fastscnn_stage_seconds_count{stage="network"}',
    ]
    before = [metric(client, name) for name in names]
    client.post("/v1/segment", content=PNG)
    client.post("/v1/segment", content=b"?")
    after = [metric(client, name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 180 * 240, 1]
    assert metric(client, "fastscnn_requests_at_once") == 0


class Held(Workers):
    """Workers that answer when `go` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = 0
        super().__init__("camvid", device="cpu", size=SIZE, count=1, max_pixels=10**6)

    def _answer(self, *args: Any) -> Any:
        self.begun += 1
        assert self.go.wait(60)
        return super()._answer(*args)


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    yield made
    made.go.set()
    made.close()


def at_once(
    app: Any, clients: list[str], act: Any = None, after: float = 0.3
) -> list[httpx.Response]:
    """The answers to one request of each client (by address), in order of sending; `act` is called
    some seconds `after` the last."""

    async def one(address: str, delay: float) -> httpx.Response:
        await asyncio.sleep(delay)
        transport = httpx.ASGITransport(app, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/v1/segment", content=PNG, timeout=60)

    async def all_of_them() -> list[httpx.Response]:
        tasks = [asyncio.ensure_future(one(c, 0.02 * i)) for i, c in enumerate(clients)]
        await asyncio.sleep(0.02 * len(clients) + after)
        if act:
            act()
        return await asyncio.gather(*tasks)

    return asyncio.run(all_of_them())


def test_full(held: Held) -> None:
    """Places are counted for all and for each client; who comes too late is told when to return."""
    app = create_app(held, limits=Limits(waiting=3, per_client=2))
    answers = at_once(app, ["a", "a", "a", "b", "c"], held.go.set)
    assert [a.status_code for a in answers] == [200, 200, 429, 200, 503]
    assert all(int(answers[i].headers["retry-after"]) >= 1 for i in (2, 4))
    assert at_once(app, ["a", "c"])[1].status_code == 200  # the places are free again


def test_waiting_ends(held: Held) -> None:
    """What no worker began in time is given up: it takes no worker's time later."""
    app = create_app(held, limits=Limits(wait_seconds=0.5))
    answers = at_once(app, ["a", "b"], held.go.set, after=1)
    assert [a.status_code for a in answers] == [200, 503]
    assert "no worker was free for 0.5 s" in answers[1].json()["detail"]
    assert held.begun == 1


def test_work_is_counted_without_the_wait(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else `Retry-After` would count it twice."""
    worked: list[float] = []
    monkeypatch.setattr(Queue, "worked", lambda _, seconds: worked.append(seconds))
    answer = at_once(create_app(held), ["a"], held.go.set)[0]
    stages = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    assert float(stages.pop("wait")) > 100
    assert worked == [pytest.approx(sum(map(float, stages.values())) / 1e3, abs=1e-3)]


def test_slow_body(workers: Workers) -> None:
    """All of its parts together have the time, not each."""
    app = create_app(workers, limits=Limits(body_seconds=0.2))

    async def slow() -> Any:
        for i in range(40):
            yield PNG[i : i + 1]
            await asyncio.sleep(0.05)
        yield PNG[40:]

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/v1/segment", content=slow())

    answer = asyncio.run(send())
    assert (answer.status_code, answer.headers["connection"]) == (408, "close")


def test_out_of_memory_is_one_clients_trouble(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(Workers, "_labels", fail)
        answer = client.post("/v1/segment", content=PNG)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert client.post("/v1/segment", content=PNG).status_code == 200


def test_a_fault_is_an_answer_too(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """And gives the model and the place back: there are two of each."""

    def fail(*_: Any) -> None:
        raise RuntimeError("a fault")

    app = create_app(workers, limits=Limits(waiting=2, per_client=2))
    client = TestClient(app, raise_server_exceptions=False)
    with monkeypatch.context() as patched:
        patched.setattr(Workers, "_labels", fail)
        for _ in range(3):
            assert client.post("/v1/segment", content=PNG).status_code == 500
            assert workers._models.qsize() == 2
    assert client.post("/v1/segment", content=PNG).status_code == 200


def test_retry_after_grows_with_the_queue() -> None:
    queue = Queue(Limits(waiting=100, per_client=100), workers=2)
    queue.worked(1.1)
    assert queue._seconds == pytest.approx(0.2)  # a tenth of the way
    for _ in range(200):
        queue.worked(1.0)
    assert queue.retry_after == 1
    with queue.place("a"), queue.place("b"), queue.place("c"):
        assert queue.retry_after == 2


def test_closing_waits_for_what_is_under_way(held: Held) -> None:
    job = held.submit(PNG, "labels", 0.5)
    threading.Timer(0.3, held.go.set).start()
    held.close()
    assert job.result(0).size == FRAME.shape[:2]
