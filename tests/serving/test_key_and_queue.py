"""Who comes in, and how many at a time."""

import http.client
import json
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from classifier.errors import ConfigError
from serving.key import exposure_warning, is_right, read_key_digest
from serving.problem import Refused
from serving.room import Room
from tests.serving.conftest import encoded, photo


def test_without_the_key_nothing_but_the_pages_opens(guarded: str) -> None:
    """Health checks and the page, which asks for the key, need none."""
    picture = encoded(photo(), "JPEG")
    for headers in ({}, {"Authorization": "Bearer wrong key"}, {"X-API-Key": ""}):
        for path in ("predict", "predict/batch", "hf"):
            response = requests.post(f"{guarded}/{path}", data=picture, headers=headers, timeout=10)
            assert response.status_code == 401
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert response.json()["reason"] == "no_key"
        assert requests.get(f"{guarded}/model", headers=headers, timeout=10).status_code == 401
    for path in ("", "docs", "openapi.json", "healthz", "readyz"):
        assert requests.get(f"{guarded}/{path}", timeout=10).status_code == 200


@pytest.mark.parametrize("headers", [{"Authorization": "Bearer open sesame"}, {"X-API-Key": "open sesame"}])
def test_with_the_key_it_answers(guarded: str, headers: dict[str, str]) -> None:
    """Both headers that clients use."""
    response = requests.post(f"{guarded}/predict", data=encoded(photo(), "JPEG"), headers=headers, timeout=10)
    assert response.status_code == 200


def test_a_full_queue_refuses_at_once_and_says_when_to_come_again(guarded: str) -> None:
    """A queue that grows only makes everybody wait longer."""
    picture, headers = encoded(photo(), "JPEG"), {"X-API-Key": "open sesame"}
    answers: list[requests.Response] = []

    def ask() -> None:
        answers.append(requests.post(f"{guarded}/predict", data=picture, headers=headers, timeout=20))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in answers) == [200, 503, 503, 503]
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["reason"] == "busy"


def test_a_body_that_does_not_arrive_in_time_gives_its_place_back(guarded: str) -> None:
    """Else as many senders as there are places, a byte a minute each, would keep everybody out."""
    parts, headers = urlsplit(guarded), {"X-API-Key": "open sesame"}
    slow = http.client.HTTPConnection(parts.netloc, timeout=10)
    slow.putrequest("POST", f"{parts.path}/predict")
    for name, value in {**headers, "Content-Length": "1000"}.items():
        slow.putheader(name, value)
    slow.endheaders(b"the first bytes")
    refusal = slow.getresponse()
    assert (refusal.status, json.loads(refusal.read())["reason"]) == (408, "too_slow")
    assert refusal.headers["Connection"] == "close", "what is still to come is no next request"
    picture = encoded(photo(), "JPEG")
    assert requests.post(f"{guarded}/predict", data=picture, headers=headers, timeout=10).status_code == 200


def test_a_replica_holds_so_many_pictures_and_bytes() -> None:
    """A request of many pictures counts as many; what is refused or answered gives back what it held."""
    room = Room(max_pictures=3, max_bytes=100)
    with room.place() as one, room.place() as two:
        one.take_pictures(63)  # the other request leaves room for one
        with pytest.raises(Refused, match="64 pictures wait here already"):
            two.take_pictures(1)
        with pytest.raises(Refused, match="65 pictures wait"), room.place():
            pass
        one.take_bytes(60)
        two.take_bytes(40)
        with pytest.raises(Refused, match="already have 100 bytes") as refused:
            two.take_bytes(1)
        assert (refused.value.status, refused.value.reason) == (503, "busy")
    assert (room.pictures, room.bytes) == (0, 0)


def test_the_key_comes_from_the_environment_or_a_file(tmp_path: Path) -> None:
    """An empty variable is a mistake, not an open door."""
    file = tmp_path / "key"
    file.write_text("from the file\n")
    digest = read_key_digest({"SERVE_API_KEY": "from the environment"}, None)
    assert digest is not None and "from" not in digest
    assert is_right({"x-api-key": "from the environment"}, digest)
    from_file = read_key_digest({}, file)
    assert from_file is not None and is_right({"authorization": "bearer from the file"}, from_file)
    assert read_key_digest({}, None) is None
    for environment, place in (
        ({"SERVE_API_KEY": ""}, None),
        ({"SERVE_API_KEY": "Schlüsselwort"}, None),  # a header's bytes are read as Latin-1: it would never match
        ({}, tmp_path / "absent"),
        ({}, tmp_path),
    ):
        with pytest.raises(ConfigError):
            read_key_digest(environment, place)


def test_listening_to_other_machines_without_a_key_is_warned_of() -> None:
    """Off by default is right for this machine only."""
    assert exposure_warning("127.0.0.1", has_key=False) is None
    assert exposure_warning("0.0.0.0", has_key=True) is None
    warning = exposure_warning("0.0.0.0", has_key=False)
    assert warning is not None and "0.0.0.0" in warning and "SERVE_API_KEY" in warning
