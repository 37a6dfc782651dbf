"""The page in a real browser: upload, overlay, legend, keyboard, phone, camera, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest
from browser import Page
from PIL import Image
from test_server import Service

from fastscnn.media.demo import street_scene


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    made = Page(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def service(page: Page) -> Iterator[Service]:
    made = Service("--max-mib", "4")
    yield made
    made.end()


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A real frame where there is one, else the drawn one."""
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    folder = request.config.getoption("--data")
    if folder is None:
        frame = Image.fromarray(street_scene(512, 1024))
    else:
        frame = Image.open(sorted((folder / "street" / "images").glob("*.png"))[0])
    frame.convert("RGB").resize((1024, 512)).save(path, quality=92)
    return path


@pytest.fixture
def opened(page: Page, service: Service) -> Page:
    """The page anew, on a desktop."""
    page.size(1280, 900, phone=False)
    page.events.clear()
    page.go(f"{service.url}/")
    return page


LOADED = "document.querySelector('#labels').naturalWidth"


def test_upload(opened: Page, service: Service, photo: Path, tmp_path: Path) -> None:
    opened.screenshot(tmp_path / "desktop_before.png")
    assert opened.run("document.querySelector('#result').hidden")
    opened.choose("#file", photo)
    assert opened.wait(LOADED) == 1024
    found = httpx.post(
        f"{service.url}/v1/segment?output=shares",
        content=photo.read_bytes(),
        headers={"Content-Type": "image/jpeg"},
        timeout=60,
    ).json()
    rows = opened.run("[...document.querySelectorAll('#legend tr')].map(r => r.innerText)")
    for row, entry in zip(rows, found["classes"], strict=True):
        name, share = row.split("\t")
        value = "< 0.1 %" if entry["share"] < 0.001 else f"{100 * entry['share']:.1f} %"
        assert (name, share) == (entry["name"], value)
    status = opened.run("document.querySelector('#status').textContent")
    assert status.startswith(f"1024 x 512: {found['classes'][0]['name']} covers ")
    boxes = opened.run(
        "['photo', 'labels'].map(i => JSON.stringify(document.getElementById(i)"
        ".getBoundingClientRect()))"
    )
    assert boxes[0] == boxes[1], "the overlay does not lie on the photo"
    opened.screenshot(tmp_path / "desktop_after.png")
    assert opened.complaints() == []
    own = (service.url, "blob:", "data:")
    assert [url for url in opened.requested() if not url.startswith(own)] == []


def test_a_tall_picture_stands_without_bars(opened: Page, photo: Path, tmp_path: Path) -> None:
    Image.open(photo).crop((0, 0, 200, 500)).save(tmp_path / "tall.png")
    opened.choose("#file", tmp_path / "tall.png")
    opened.wait(LOADED)
    width, height = opened.run(
        "(b => [b.width, b.height])(document.querySelector('#photo').getBoundingClientRect())"
    )
    assert height == pytest.approx(0.75 * 900, abs=1)
    assert width == pytest.approx(height * 200 / 500, abs=1)


def test_keyboard(opened: Page, photo: Path) -> None:
    """Tab reaches every control in order; arrows move the overlay; each says its name."""
    opened.choose("#file", photo)
    opened.wait(LOADED)
    reached = []
    for _ in range(6):
        opened.press("Tab", 9)
        reached.append(opened.run("document.activeElement.id || document.activeElement.tagName"))
        if reached[-1] == "opacity":
            opened.press("ArrowRight", 39)
    assert reached[:4] == ["file", "live", "opacity", "save"]
    assert opened.run("document.querySelector('#labels').style.opacity") == "0.56"
    assert opened.run("document.querySelector('#percent').value") == "56 %"
    opened("Accessibility.enable")
    nodes = opened("Accessibility.getFullAXTree")["nodes"]
    kinds = ("button", "slider", "link", "image", "table", "textbox")
    named = {
        (n["role"]["value"], n.get("name", {}).get("value", ""))
        for n in nodes
        if not n["ignored"] and n["role"]["value"] in kinds
    }
    assert {kind for kind, _ in named} >= {"button", "slider", "link", "image", "table"}
    assert all(name.strip() for _, name in named), named


def test_phone(opened: Page, photo: Path, tmp_path: Path) -> None:
    opened.size(390, 844, phone=True)
    opened("Page.reload")
    opened.wait("document.readyState === 'complete' && !document.querySelector('#shot').hidden")
    opened.screenshot(tmp_path / "phone_before.png")
    assert opened.run("document.querySelector('#capture').getAttribute('capture')") == "environment"
    opened.choose("#capture", photo)
    opened.wait(LOADED)
    opened.screenshot(tmp_path / "phone_after.png")
    assert opened.run("document.documentElement.scrollWidth") == 390
    small = opened.run(
        "[...document.querySelectorAll('.button, #opacity')].filter(b => b.offsetHeight)"
        ".map(b => b.offsetHeight).filter(h => h < 32)"
    )
    assert small == [], "too low for a thumb"


def test_refusals_are_shown(opened: Page, photo: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.jpg"
    wrong.write_bytes(b"this is text")
    opened.choose("#file", wrong)
    assert "expected JPEG, PNG" in opened.wait("document.querySelector('#error').textContent")
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    opened.choose("#file", tmp_path / "large.png")
    opened.wait("document.querySelector('#error').textContent.includes('larger than 4 MiB')")
    opened.choose("#file", photo)
    opened.wait(LOADED)
    assert opened.run("document.querySelector('#error').hidden")


def test_camera(opened: Page, tmp_path: Path) -> None:
    opened.run("document.querySelector('#live').click()")
    opened.wait(LOADED)
    assert not opened.run("document.querySelector('#video').hidden")
    opened.screenshot(tmp_path / "camera.png")
    opened.wait(
        "performance.getEntriesByType('resource').filter(e => e.name.includes('segment'))"
        ".length > 3"
    )
    opened.run("document.querySelector('#live').click()")
    assert opened.run("document.querySelector('#video').srcObject") is None
    assert opened.run("document.querySelector('#result').hidden")
    assert opened.complaints() == []


def test_documents(opened: Page, service: Service, tmp_path: Path) -> None:
    opened.go(f"{service.url}/docs")
    opened.wait("document.querySelectorAll('.opblock').length >= 3")
    opened.screenshot(tmp_path / "docs.png")
    assert [url for url in opened.requested() if not url.startswith((service.url, "data:"))] == []
    assert opened.complaints() == []
