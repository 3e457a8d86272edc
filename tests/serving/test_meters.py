"""What Prometheus sees, and what the dashboard asks it for."""

import json
import re
import time
from pathlib import Path

import requests

from tests.serving.conftest import encoded, photo, scrape

_DASHBOARD = Path(__file__).resolve().parents[2] / "cluster" / "monitoring" / "serving.json"


def test_our_metrics_are_exported_and_the_dashboard_asks_for_what_there_is(url: str) -> None:
    """Predictions by label, refusals by reason, batch sizes, seconds of decoding and of the network."""
    best = requests.post(f"{url}/predict", data=encoded(photo(), "JPEG"), timeout=10).json()["predictions"][0]["label"]
    requests.post(f"{url}/predict", data=b"no picture", timeout=10)
    wanted = {
        "ray_classifier_predictions_total": f'label="{best}"',
        "ray_classifier_rejected_inputs_total": 'reason="unsupported_format"',
        "ray_classifier_batch_size_bucket": "le=",
        "ray_classifier_decode_seconds_bucket": "le=",
        "ray_classifier_forward_seconds_bucket": "le=",
    }
    panels = json.loads(_DASHBOARD.read_text())["panels"]
    asked = {name for panel in panels for target in panel["targets"] for name in re.findall(r"ray_\w+", target["expr"])}
    assert len(asked) >= 8
    deadline = time.monotonic() + 40  # every process hands its numbers over at an interval of its own
    while True:
        lines = scrape().splitlines()
        missing = {name for name, tag in wanted.items() if not _is_there(lines, name, tag)}
        missing |= asked - {line.partition("{")[0] for line in lines}
        if not missing or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert not missing


def _is_there(lines: list[str], name: str, tag: str) -> bool:
    return any(line.startswith(name + "{") and tag in line and 'application="default"' in line for line in lines)
