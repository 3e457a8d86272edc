"""The page that a colleague uses, in a real browser."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.serving.browser import Tab, browser_tab, find_browser
from tests.serving.conftest import encoded, photo


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    pytest.importorskip("websockets", reason="drives Chromium over a web socket: pip install websockets")
    if find_browser() is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with browser_tab(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


def test_dropped_pictures_are_answered_and_a_bad_one_says_why(tab: Tab, url: str, tmp_path: Path) -> None:
    """What the page shows is what the endpoint answers."""
    good, bad = tmp_path / "good.jpg", tmp_path / "letter.jpg"
    good.write_bytes(encoded(photo(), "JPEG"))
    bad.write_bytes(b"%PDF-1.7")
    tab.resize(900, 900)
    tab.open(url + "/")
    tab.wait_for("document.querySelectorAll('#classes li').length === 4")
    assert "test accuracy 90.0 %" in tab.evaluate("document.querySelector('#model-facts').innerText")
    tab.drop([good, bad], "#drop")
    tab.wait_for("document.querySelectorAll('.bars li').length === 3 && document.querySelector('.card.bad')")
    expected = requests.post(f"{url}/predict", data=good.read_bytes(), timeout=10).json()["predictions"]
    shown = tab.evaluate("[...document.querySelectorAll('.bars li')].map((item) => item.innerText.split('\\n'))")
    assert shown == [[label["label"], f"{label['probability'] * 100:.1f} %"] for label in expected]
    widths = tab.evaluate(
        "[...document.querySelectorAll('.fill')].map((bar) => bar.offsetWidth / bar.parentElement.offsetWidth)"
    )
    assert widths == pytest.approx([label["probability"] for label in expected], abs=0.01)
    assert "Not a picture in a known format" in tab.evaluate("document.querySelector('.card.bad').innerText")
    assert "1 answered, 1 could not be used" in tab.evaluate("document.querySelector('#status').innerText")
    assert tab.evaluate("document.querySelector('.card img').naturalWidth") == 96
    assert [text for text in tab.complaints if "415" not in text] == []


def test_a_pasted_picture_is_answered(tab: Tab, url: str) -> None:
    """A screenshot comes over the clipboard and has no name worth showing."""
    tab.open(url + "/")
    tab.wait_for("document.querySelectorAll('#classes li').length === 4")
    picture = base64.b64encode(encoded(photo(), "PNG")).decode()
    tab.evaluate(
        f"(() => {{ const bytes = Uint8Array.from(atob('{picture}'), (each) => each.charCodeAt(0));"
        " const clipboardData = new DataTransfer();"
        " clipboardData.items.add(new File([bytes], 'image.png', { type: 'image/png' }));"
        " document.body.dispatchEvent(new ClipboardEvent('paste', { clipboardData, bubbles: true })); })()"
    )
    tab.wait_for("document.querySelectorAll('.bars li').length === 3")


def test_the_page_works_by_keyboard_and_on_a_phone(tab: Tab, url: str) -> None:
    """The first stops of the Tab key are the classes and the file chooser; nothing is wider than the screen."""
    tab.resize(360, 640)
    tab.open(url + "/")
    tab.wait_for("document.querySelectorAll('#classes li').length === 4")
    stops = []
    for _ in range(3):
        tab.press("Tab")
        stops.append(tab.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert stops == ["SUMMARY", "files", "A"]
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_page_asks_for_the_key_and_keeps_it_for_the_tab(tab: Tab, guarded: str, tmp_path: Path) -> None:
    """Under a route of its own, too: its links are relative."""
    tab.open(guarded + "/")
    tab.wait_for("!document.querySelector('#key-form').hidden")
    assert tab.evaluate("document.activeElement.id") == "key"
    tab.call("Input.insertText", text="open sesame")
    tab.press("Enter")
    tab.wait_for("document.querySelectorAll('#classes li').length === 4")
    assert tab.evaluate("document.querySelector('#key-form').hidden")
    picture = tmp_path / "a.jpg"
    picture.write_bytes(encoded(photo(), "JPEG"))
    tab.drop([picture], "#drop")
    tab.wait_for("document.querySelectorAll('.bars li').length === 3")


def test_the_docs_page_shows_every_route(tab: Tab, url: str) -> None:
    """Drawn from openapi.json by a script of ours."""
    tab.open(url + "/docs")
    tab.wait_for("document.querySelectorAll('#routes .route').length > 0")
    shown = tab.evaluate("[...document.querySelectorAll('#routes h2')].map((title) => title.innerText)")
    assert shown == [
        "POST /predict",
        "POST /predict/batch",
        "POST /hf",
        "GET /model",
        "GET /healthz",
        "GET /readyz",
    ]
    assert '"probability": 0.93' in tab.evaluate("document.querySelector('#routes').innerText")


def test_pages_name_nothing_that_lies_elsewhere(url: str) -> None:
    """No CDN: the machine may be offline. The browser is told so as well."""
    for path in ("/", "/docs", "/page/page.js", "/page/docs.js", "/page/page.css"):
        response = requests.get(url + path, timeout=10)
        assert response.status_code == 200
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", response.text), path
        assert response.headers["Content-Security-Policy"].startswith("default-src 'self'")
        again = requests.get(url + path, headers={"If-None-Match": response.headers["ETag"]}, timeout=10)
        assert again.status_code == 304


def test_every_reason_that_a_problem_can_have_is_explained_in_the_docs(url: str) -> None:
    """A problem's `type` points there."""
    from classifier.errors import BadImage

    page = requests.get(url + "/docs", timeout=10).text
    explained = set(re.findall(r'<tr id="([a-z_]+)"', page))
    sources = "".join(file.read_text() for file in Path("serving").glob("*.py"))
    reasons = set(re.findall(r'Refused\(\s*\d{3},\s*"([a-z_]+)"', sources))
    of_storages = {"not_a_file", "out_of_reach"}
    pictures = {kind.reason for kind in (BadImage, *BadImage.__subclasses__())} - of_storages
    assert reasons | pictures <= explained
    assert len(reasons) >= 7
