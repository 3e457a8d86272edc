"""Every limit has its own status and a sentence, and none of them is a 500."""

import contextlib
import http.client
import json
import select
import struct
import zlib
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import requests

from tests.serving.conftest import encoded, photo


def _refusal(response: requests.Response) -> tuple[int, str]:
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == response.status_code
    assert problem["detail"]
    assert problem["type"] == f"/docs#{problem['reason']}"
    return response.status_code, problem["reason"]


def _bomb(width_px: int, height_px: int) -> bytes:
    """A PNG of a few bytes that declares as many pixels as it is told to."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", (422, "empty")),
        (encoded(photo(), "JPEG")[:300], (422, "unreadable")),
        (_bomb(30_000, 30_000), (422, "too_many_pixels")),
        (_bomb(0, 10), (415, "unsupported_format")),
        (b"BM" + b"\0" * 60, (422, "unreadable")),
        (b"%PDF-1.7 a.jpg", (415, "unsupported_format")),
        (b'{"url": "http://example.com/a.jpg"}', (415, "unsupported_format")),
        (b"x" * (1024 * 1024 + 1), (413, "too_many_bytes")),
    ],
    ids=["empty", "truncated", "bomb", "zero-size", "broken-header", "pdf", "url", "too-large"],
)
def test_a_bad_body_is_its_senders_error(url: str, body: bytes, expected: tuple[int, str]) -> None:
    """By content, never by name."""
    assert _refusal(requests.post(f"{url}/predict", data=body, timeout=10)) == expected


def test_a_form_is_judged_as_a_bare_body_is(url: str) -> None:
    """The limit is on the picture, not on the form's own lines."""
    large = b"x" * (1024 * 1024 + 1)
    assert _refusal(requests.post(f"{url}/predict", files={"file": ("a.jpg", large)}, timeout=10))[0] == 413
    assert _refusal(requests.post(f"{url}/predict", files={"file": ("a.jpg", b"x")}, timeout=10))[0] == 415
    nothing = requests.post(f"{url}/predict", files={"note": (None, "no file")}, timeout=10)
    assert _refusal(nothing) == (422, "empty")
    torn = requests.post(
        f"{url}/predict", data=b"no boundary in here", headers={"Content-Type": "multipart/form-data"}, timeout=10
    )
    assert _refusal(torn) == (400, "bad_form")


def test_a_body_of_unknown_length_is_counted_while_it_is_read(url: str) -> None:
    """Chunked transfer states no length to check beforehand."""

    def endless():
        for _ in range(64):
            yield b"x" * 65_536

    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    connection.request(
        "POST", "/predict", body=endless(), encode_chunked=True, headers={"Transfer-Encoding": "chunked"}
    )
    assert connection.getresponse().status == 413


def test_bodies_that_wait_may_not_fill_the_memory(url: str) -> None:
    """Each is within its own limit; together they are above the replica's, so one is sent away."""
    with contextlib.ExitStack() as stack:
        senders = [stack.enter_context(_unfinished(f"{url}/predict/batch", 1_600_000)) for _ in range(3)]
        answered, _, _ = select.select([sender.sock for sender in senders], [], [], 10)
        (refused,) = [sender for sender in senders if sender.sock in answered]
        answer = refused.getresponse()
        assert (answer.status, json.loads(answer.read())["reason"]) == (503, "busy")


@contextlib.contextmanager
def _unfinished(url: str, size_bytes: int) -> Iterator[http.client.HTTPConnection]:
    """A form of which so many bytes have been sent, and one byte has not."""
    parts = urlsplit(url)
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'.ljust(size_bytes, b"x")
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    connection.putrequest("POST", parts.path)
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.putheader("Content-Length", str(size_bytes + 1))
    connection.endheaders(body)
    with contextlib.closing(connection):
        yield connection


def test_too_many_files_and_no_form(url: str) -> None:
    """The batch route has limits of its own."""
    picture = encoded(photo(), "JPEG")
    files = [("file", (f"{number}.jpg", picture)) for number in range(9)]
    assert _refusal(requests.post(f"{url}/predict/batch", files=files, timeout=10)) == (413, "too_many_files")
    assert _refusal(requests.post(f"{url}/predict/batch", data=picture, timeout=10)) == (415, "not_a_form")


def test_unknown_pages_and_methods_are_problems_too(url: str) -> None:
    """A client needs one way to read errors."""
    assert _refusal(requests.get(f"{url}/nowhere", timeout=10))[0] == 404
    assert _refusal(requests.get(f"{url}/predict", timeout=10))[0] == 405


def test_bad_pictures_do_not_harm_the_replica(url: str) -> None:
    """It still answers after all of them."""
    assert requests.post(f"{url}/predict", data=encoded(photo(), "JPEG"), timeout=10).status_code == 200
