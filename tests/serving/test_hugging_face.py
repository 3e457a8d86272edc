"""Hugging Face's own client, unchanged."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import requests

from tests.serving.conftest import encoded, photo

_CLIENT = """
import json, sys
from huggingface_hub import InferenceClient
client = InferenceClient(model=sys.argv[1])
answers = [client.image_classification(sys.argv[2], **options) for options in ({}, {"top_k": 1}, {"top_k": 4})]
try:
    client.image_classification(sys.argv[3])
except Exception as error:
    refusal = str(error)
print(json.dumps([answers, refusal]))
"""


def test_inference_client_works_unchanged(url: str, tmp_path: Path) -> None:
    """With and without parameters: it sends JSON in one case and bare bytes in the other."""
    good, bad = tmp_path / "a.jpg", tmp_path / "bad.jpg"
    good.write_bytes(encoded(photo(), "JPEG"))
    bad.write_bytes(b"no picture")
    # A process of its own: the suite's own offline switch stops the client even on this machine.
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    command = [sys.executable, "-c", _CLIENT, f"{url}/hf", str(good), str(bad)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True)
    (plain, one, all_four), refusal = json.loads(done.stdout.splitlines()[-1])
    expected = requests.post(f"{url}/predict", data=good.read_bytes(), timeout=10).json()["predictions"]
    assert [score["label"] for score in plain] == [label["label"] for label in expected]
    assert one == plain[:1]
    assert len(all_four) == 4
    assert abs(sum(score["score"] for score in all_four) - 1) < 1e-5
    assert "Not a picture in a known format" in refusal


def test_a_broken_request_is_told_what_is_wrong(url: str) -> None:
    """JSON of another form, base64 that is none, a parameter of another task."""
    picture = base64.b64encode(encoded(photo(), "JPEG")).decode()
    for body, words in (
        ({"inputs": "%%%"}, "base64"),
        ({"image": picture}, "inputs"),
        ({"inputs": picture, "parameters": {"top_k": 0}}, "parameters.top_k"),
        ({"inputs": picture, "parameters": {"candidate_labels": ["cat"]}}, "candidate_labels"),
    ):
        response = requests.post(f"{url}/hf", data=json.dumps(body), timeout=10)
        assert response.status_code == 422
        assert words in response.json()["detail"]
