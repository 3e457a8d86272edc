"""Train's controller as a run has it."""

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from training import trainer
from training.feed import Feed
from training.trainer import LateStateActor


class _Shown:
    """Stands for the actor behind the dashboard's Train tab."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def create_or_update_train_run(self, run: Any) -> None:
        self.seen.append((run.id, run.status))

    def create_or_update_train_run_attempt(self, attempt: Any) -> None:
        self.seen.append((attempt.attempt_id, attempt.status))

    def all(self) -> list[tuple[str, str]]:
        return self.seen


@pytest.fixture
def feed(ray_once: None) -> Iterator[Any]:
    import ray

    actor = ray.remote(num_cpus=0)(Feed).remote(SimpleNamespace(splits={}, max_bad_share=0.0))
    yield actor
    ray.kill(actor)


def test_the_train_tab_shows_a_run_from_the_moment_on_when_there_is_a_dashboard(
    feed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then no process is started for it; then it shows how the run is, and follows it."""
    import ray

    started: list[Any] = []

    def start() -> Any:
        started.append(ray.remote(num_cpus=0)(_Shown).remote())
        return started[-1]

    monkeypatch.setattr(trainer, "get_or_create_state_actor", start)
    late = LateStateActor(feed)
    run, attempt = SimpleNamespace(id="run", status="scheduling"), SimpleNamespace(attempt_id="first", status="pending")
    late.create_or_update_train_run.remote(run)
    late.create_or_update_train_run_attempt.remote(attempt)
    run.status = "running"
    ray.get(late.create_or_update_train_run.remote(run), timeout=10)
    assert started == []

    ray.get(feed.be_seen.remote(), timeout=10)
    deadline = time.monotonic() + 20
    while not started and time.monotonic() < deadline:
        time.sleep(0.1)
    run.status = "finished"
    ray.get(late.create_or_update_train_run.remote(run), timeout=20)
    assert ray.get(started[0].all.remote(), timeout=10) == [
        ("run", "running"),
        ("first", "pending"),
        ("run", "finished"),
    ]
    ray.kill(started[0])
