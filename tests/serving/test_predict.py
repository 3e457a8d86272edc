"""Pictures in, the best three labels out."""

from pathlib import Path

import numpy as np
import pytest
import requests

from classifier.predict import Predictor, top
from classifier.preprocess import load_pixels
from tests.serving.conftest import encoded, photo, pictures_of_every_kind


def test_a_bare_body_and_a_form_get_the_same_answer(url: str, animals: Path) -> None:
    """curl --data-binary and curl -F are two ways to say the same."""
    data = encoded(photo(), "JPEG")
    bare = requests.post(f"{url}/predict", data=data, timeout=10).json()
    form = requests.post(f"{url}/predict", files={"file": ("a.jpg", data)}, timeout=10).json()
    assert bare["file"] is None and form["file"] == "a.jpg"
    assert bare["predictions"] == form["predictions"]
    assert [set(label) for label in bare["predictions"]] == [{"label", "code", "probability"}] * 3
    assert bare["model"]["name"] == "ANIMALS/default/2026-11-22/14-03-55"
    assert bare["model"]["digest"] == Predictor.load(animals, device="cpu").manifest.digest


def test_every_kind_of_picture_is_answered_as_the_model_was_evaluated(url: str, animals: Path) -> None:
    """EXIF rotation, CMYK, palettes, alpha, 16 bits, WebP: the endpoint's answer is the Predictor's own."""
    predictor = Predictor.load(animals, device="cpu")
    for name, data in pictures_of_every_kind().items():
        pixels = load_pixels(data, predictor.spec)
        expected = top(predictor.probabilities(pixels[np.newaxis])[0], labels=predictor.labels)
        answer = requests.post(f"{url}/predict", data=data, timeout=10).json()
        found = answer["predictions"]
        assert [label["label"] for label in found] == [label.label for label in expected], name
        assert [label["probability"] for label in found] == pytest.approx(
            [label.probability for label in expected], rel=1e-5
        ), name


def test_of_an_animation_the_first_frame_counts_and_the_answer_says_so(url: str) -> None:
    """A sender must know that most of the file was not looked at."""
    kinds = pictures_of_every_kind()
    moving = requests.post(f"{url}/predict", data=kinds["moving.gif"], timeout=10).json()
    assert "first one" in moving["note"]
    still = requests.post(f"{url}/predict", data=kinds["palette.png"], timeout=10).json()
    assert still["note"] is None


def test_many_files_get_their_answers_in_order_and_a_bad_one_its_own_error(url: str) -> None:
    """One broken upload costs its neighbours nothing."""
    good = [encoded(photo(seed), "JPEG") for seed in range(3)]
    files = [
        ("file", ("0.jpg", good[0])),
        ("file", ("broken.jpg", good[1][:200])),
        ("file", ("1.jpg", good[1])),
        ("file", ("notes.jpg", b"not a picture")),
        ("file", ("2.jpg", good[2])),
    ]
    response = requests.post(f"{url}/predict/batch", files=files, timeout=10)
    assert response.status_code == 200
    results = response.json()["results"]
    assert [result["file"] for result in results] == [name for _, (name, _) in files]
    assert results[1]["error"]["status"] == 422 and results[1]["error"]["type"] == "unreadable"
    assert results[3]["error"]["status"] == 415
    for place, data in ((0, good[0]), (2, good[1]), (4, good[2])):
        alone = requests.post(f"{url}/predict", data=data, timeout=10).json()
        found = [label["probability"] for label in results[place]["predictions"]]
        assert found == pytest.approx([label["probability"] for label in alone["predictions"]], rel=1e-5)


def test_the_model_says_what_it_is(url: str) -> None:
    """The page and monitoring read it."""
    card = requests.get(f"{url}/model", timeout=10).json()
    assert card["labels"] == ["cat", "dog", "emu", "fox"]
    assert card["input"] == {"width_px": 32, "height_px": 32}
    assert card["metrics"]["accuracy"] == 0.9
    assert requests.get(f"{url}/healthz", timeout=10).json() == {"status": "ok"}
    assert requests.get(f"{url}/readyz", timeout=10).json() == {"status": "ready"}


def test_every_answer_names_its_model_in_a_header_too(url: str) -> None:
    """Hugging Face's form has no place for it in the body."""
    response = requests.post(f"{url}/hf", data=encoded(photo(), "JPEG"), timeout=10)
    assert response.headers["X-Model-Name"] == "ANIMALS/default/2026-11-22/14-03-55"
    assert response.headers["X-Model-Digest"].startswith("sha256:")
