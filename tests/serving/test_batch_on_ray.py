"""The folder job through Ray Data: the same answers as in one process, faults of workers, kills."""

import random
import re
import time
from pathlib import Path

import pytest

from classifier.errors import ClusterError
from serving.folder import start_tally, total_of
from tests.serving.folders import job, job_process, picture, records, summary


@pytest.fixture
def address(ray_once: None) -> str:
    """The Ray of this test session, for commands that join it."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 pictures in several folders, among them a few that cannot be read."""
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(295):
        picture(folder / f"{seed % 5}" / f"{seed}.jpg", seed)
    for number in range(5):
        (folder / f"{number}" / "bad.jpg").write_bytes(b"x" * number)
    return folder


@pytest.fixture(scope="module")
def undisturbed(source: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What one process answers."""
    target = tmp_path_factory.mktemp("undisturbed")
    assert job(tiny_model, source, target, "predict.ray_from=1000") == 3
    return records(target)


def test_many_workers_answer_as_one_process_does(
    source: Path, undisturbed: dict[str, dict], tiny_model: Path, tmp_path: Path, address: str
) -> None:
    """Every record of 300 is the same, the counts add up, and a second run finds all of them done."""
    process = job_process(tiny_model, source, tmp_path, "num_workers=3", "batch_size=16", address=address)
    printed, _ = process.communicate(timeout=200)

    assert process.returncode == 3, printed
    assert "Joining the Ray cluster." in printed
    assert "3 workers on CPUs" in printed
    assert "300 pictures: 295 predicted, 5 unreadable, 0 already done" in printed
    assert _nearly_equal(records(tmp_path), undisturbed)
    found = summary(tmp_path)
    assert (found["listed"], found["predicted"], found["unreadable"], found["already_done"]) == (300, 295, 5, 0)
    assert found["reasons"] == {"unsupported_format": 4, "empty": 1}

    assert job(tiny_model, source, tmp_path, "predict.ray_from=1000") == 3
    assert (summary(tmp_path)["predicted"], summary(tmp_path)["already_done"]) == (0, 295)


def test_killed_on_ray_it_goes_on(
    source: Path, undisturbed: dict[str, dict], tiny_model: Path, tmp_path: Path, address: str
) -> None:
    """kill -9 of the command as soon as there are results: what is there is whole, and the rest is added."""
    process = job_process(tiny_model, source, tmp_path, "num_workers=2", "batch_size=2", address=address)
    deadline = time.monotonic() + 200
    while len(list(tmp_path.glob("*/*.json"))) < random.Random(3).randint(20, 100):
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert set(records(tmp_path)) < set(undisturbed)

    assert job(tiny_model, source, tmp_path, "predict.ray_from=1000") == 3

    assert _nearly_equal(records(tmp_path), undisturbed)
    assert summary(tmp_path)["already_done"] > 0


def test_a_tally_that_is_not_there_any_more_is_one_line(ray_once: None) -> None:
    """No traceback."""
    import ray

    tally = start_tally()
    ray.get(tally.add.remote(0, 8, 1))
    assert total_of(tally) == (8, 1, False)
    ray.kill(tally)
    with pytest.raises(ClusterError, match=r"does not say how much was listed .*the same command goes on"):
        for _ in range(100):  # Ray ends it a moment after it was asked to
            total_of(tally)
            time.sleep(0.1)


def test_a_worker_that_cannot_write_ends_the_run_with_one_line(
    source: Path, tiny_model: Path, tmp_path: Path, address: str
) -> None:
    (tmp_path / "3" / "3.jpg.json").mkdir(parents=True)
    process = job_process(tiny_model, source, tmp_path, "num_workers=2", address=address)
    printed, _ = process.communicate(timeout=200)

    assert process.returncode == 2, printed
    assert re.search(r"^Error: \S*/3/3\.jpg\.json cannot be written: Is a directory$", printed, re.MULTILINE), printed


def _nearly_equal(found: dict[str, dict], expected: dict[str, dict]) -> bool:
    """The same files, labels and errors; probabilities to the last decimal, which hangs on who shares a batch."""
    assert set(found) == set(expected)
    for name, record in expected.items():
        other = found[name]
        assert other.keys() == record.keys()
        for key in record.keys() - {"predictions", "top_3_probabilities"}:
            assert other[key] == record[key], (name, key)
        if "predictions" in record:
            assert other["top_3_probabilities"] == pytest.approx(record["top_3_probabilities"], abs=2e-6)
    return True
