"""Replicas come with the load and go with it."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import requests
from ray import serve

from tests.serving.conftest import Deploy, encoded, photo, scrape


def _running(app: str) -> int:
    deployment = serve.status().applications[app].deployments["Classifier"]
    return {str(state): count for state, count in deployment.replica_states.items()}.get("RUNNING", 0)


def _wait_for(reached: Callable[[], bool], *, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if reached():
            return True
        time.sleep(0.1)
    return False


def test_replicas_follow_the_load_up_and_down(deploy: Deploy, animals: Path) -> None:
    """One replica at rest, two under load, one again after it; no request is lost, and batches form across requests."""
    # A batch that waits makes a request last without using the processor.
    url = deploy(
        "/scaled",
        model=str(animals),
        min_replicas=1,
        max_replicas=2,
        target_ongoing_requests=1,
        upscale_delay_s=0,
        downscale_delay_s=1,
        load_window_s=2,
        batch_wait_ms=200,
    )
    assert _running("scaled") == 1
    picture, quiet, statuses = encoded(photo(), "JPEG"), threading.Event(), []

    def ask() -> None:
        while not quiet.is_set():
            statuses.append(requests.post(f"{url}/predict", data=picture, timeout=20).status_code)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    grown = _wait_for(lambda: _running("scaled") == 2, timeout_s=40)
    quiet.set()
    for thread in threads:
        thread.join()
    assert grown, serve.status().applications["scaled"]
    assert _wait_for(lambda: _running("scaled") == 1, timeout_s=30), serve.status().applications["scaled"]
    assert set(statuses) == {200}
    assert _wait_for(lambda: _pictures_in_a_batch("scaled") > 1.2, timeout_s=20)


def _pictures_in_a_batch(app: str) -> float:
    """The mean over all replicas, as Prometheus sees it; 0 before there is one."""
    totals = {
        kind: sum(
            float(line.rsplit(" ", 1)[1])
            for line in scrape().splitlines()
            if line.startswith(f"ray_classifier_batch_size_{kind}{{") and f'application="{app}"' in line
        )
        for kind in ("sum", "count")
    }
    return totals["sum"] / totals["count"] if totals["count"] else 0.0
