"""Which faults end a run, which are started anew, and what is said of either."""

import errno
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray
import torch
from ray.exceptions import ActorDiedError, ObjectLostError, OutOfMemoryError, RayTaskError
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import NoopDecision
from rich.console import Console

from classifier.errors import DatasetError, OutputError
from training.checkpoint import CKPT, METRICS, find_candidates, move_checkpoint
from training.experiment import _cause, _fit
from training.failures import (
    CodeFailed,
    FailureReport,
    GrowthReport,
    StorageFailed,
    SystemFailed,
    how_it_died,
    in_one_line,
    is_systems,
    patiently,
)
from training.progress import EpochProgress
from training.run_folder import RunFolder
from training.trainer import PatientPolicy
from training.watch import Watch

_PEER_GONE = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:36571"
_SIZES_DIFFER = "[enforce fail at /pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:446] op.preamble.length <= 20"


def _from_a_task(cause: Exception) -> RayTaskError:
    return RayTaskError("blocks", "Traceback ...", cause, pid=1, ip="10.0.0.1")


@pytest.mark.parametrize(
    "error",
    [
        ActorDiedError(),
        ObjectLostError("00" * 28, None, ""),
        RuntimeError(_PEER_GONE),
        RuntimeError("Application timeout caused pair closure"),
        torch.distributed.DistNetworkError("Connection reset by peer"),
        OSError(errno.ESTALE, "Stale file handle"),
        OSError(errno.ENOSPC, "No space left on device"),
        _from_a_task(OSError(errno.EIO, "Input/output error")),
        _from_a_task(ActorDiedError()),
    ],
    ids=str,
)
def test_what_may_go_well_the_next_time_is_the_systems(error: Exception) -> None:
    """Ray, the network, the disk; also when a worker only hears of it from the feed."""
    assert is_systems(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("image size 32 does not match 64"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (16x128 and 64x10)"),
        RuntimeError(_SIZES_DIFFER),
        RuntimeError("CUDA error: device-side assert triggered"),
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        FileNotFoundError(errno.ENOENT, "No such file"),
        PermissionError(errno.EACCES, "Permission denied"),
        OSError("We couldn't connect to huggingface.co"),
        OutputError("models cannot be written"),
        _from_a_task(KeyError("label")),
    ],
    ids=str,
)
def test_what_would_come_again_is_the_codes(error: Exception) -> None:
    """Trained three times, it would fail three times."""
    assert not is_systems(error)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a\n  b"), "ValueError: a b"),
        (AssertionError(), "AssertionError"),
        (DatasetError("data/raw_data/EXAMS has 1 class folder"), "data/raw_data/EXAMS has 1 class folder"),
        (RuntimeError(_PEER_GONE), "lost its connection to the other workers"),
        (torch.OutOfMemoryError("CUDA out of memory."), "OutOfMemoryError: CUDA out of memory.; lower data.batch_size"),
        (_from_a_task(KeyError("label")), "KeyError: 'label'"),
        (ValueError("x" * 1000), f"ValueError: {'x' * 300} ..."),
    ],
)
def test_a_cause_is_one_line(error: Exception, line: str) -> None:
    """As the terminal shows it; the whole story is in the log."""
    assert in_one_line(error) == line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("The actor died because its node has died. Node Id: 7c", "was lost with its machine"),
        ("3 worker(s) were killed due to the node running low on memory.", "ran out of memory; lower data.batch_size"),
        ("A worker health check has been hanging for 601.00 seconds", "does not answer any more"),
        ("The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR", "was killed"),
    ],
)
def test_the_end_of_a_worker_has_a_sentence(text: str, said: str) -> None:
    """Ray's own texts are paragraphs of guesses."""
    assert said in how_it_died(text)


class _Feed:
    """Stands for the actor's handle: keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[dict[int, str]] = []
        self.fail = SimpleNamespace(remote=lambda said: ray.put(self.told.append(said)))
        self.workers = SimpleNamespace(remote=lambda: ray.put({}))


def test_the_controller_ends_a_run_whose_code_failed_and_tells_of_other_failures_once(ray_once: None) -> None:
    """It is asked again and again while it waits for a preempted node; beside a dead worker the others are not at fault."""
    feed = _Feed()
    report = FailureReport(feed)
    lost = {1: SystemFailed("lost its connection"), 0: ActorDiedError()}

    report.after_exception(None, cast(dict[int, Exception], lost))
    report.after_exception(None, cast(dict[int, Exception], lost))
    report.after_exception(None, {0: CodeFailed("RuntimeError: never seen before"), 1: ActorDiedError()})
    with pytest.raises(CodeFailed, match="KeyError"):
        report.after_exception(None, {0: SystemFailed("lost its connection"), 1: CodeFailed("KeyError: 'label'")})

    assert feed.told == [{0: how_it_died("")}, {1: how_it_died("")}]
    assert str(pickle.loads(pickle.dumps(StorageFailed("no room")))) == "no room"


def test_a_trial_that_ray_ends_for_memory_is_a_loss_and_not_a_bug(
    ray_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune knows no such end and raises a RuntimeError of its own; any other of those is a bug."""
    said = "7 worker(s) were killed due to the node running low on memory."
    experiment = cast(Any, SimpleNamespace(job=SimpleNamespace(attempt="train-00-X")))

    def fit_as_tune_does(cause: Exception) -> BaseException | None:
        def fit(_: Any) -> None:
            raise RuntimeError(f"Caught unexpected exception: {cause}") from cause

        monkeypatch.setattr("ray.tune.Tuner.fit", fit)
        return _fit(experiment, RunFolder(tmp_path))

    lost = fit_as_tune_does(OutOfMemoryError(said))
    assert lost is not None
    assert "ran out of memory" in _cause(lost)
    with pytest.raises(RuntimeError, match="no such trial"):
        fit_as_tune_does(KeyError("no such trial"))


def test_a_run_that_takes_up_more_room_says_so_before(ray_once: None) -> None:
    """The epoch under way ends for it. A start, a start anew and fewer workers after a loss have lines of their own."""
    told: list[str] = []
    feed = SimpleNamespace(post=SimpleNamespace(remote=lambda event: ray.put(told.append(event["text"]))))
    report = GrowthReport(feed)

    for workers in (2, 3, 3, 1, 2):
        report.before_controller_execute_resize_decision(SimpleNamespace(num_workers=workers))

    said = "There is room for {} workers now; starting anew with them from the last checkpoint."
    assert told == [said.format(3), said.format(2)]


def test_a_range_of_workers_without_room_for_the_fewest_is_not_waited_for_for_ever(ray_once: None) -> None:
    """After machines were lost, say: Ray's own policy would ask again until the end of days."""
    blamed: list[dict[str, Any]] = []
    feed = SimpleNamespace(blame=SimpleNamespace(remote=lambda fault: ray.put(blamed.append(fault))))
    asked = ScalingConfig(num_workers=(64, 70), resources_per_worker={"CPU": 1})
    policy = PatientPolicy(asked, feed, room_within_s=3)
    policy.after_controller_start(cast(Any, SimpleNamespace(run_id="no-room")))
    deadline = time.monotonic() + 60
    try:
        with pytest.raises(CodeFailed, match="no room for the 64 workers"):
            while time.monotonic() < deadline:
                assert isinstance(policy.make_decision_for_non_running_worker_group(), NoopDecision)
                time.sleep(0.1)
    finally:
        policy.before_controller_abort()

    assert [fault["users"] for fault in blamed] == [True]


class _Said:
    """Stands for the terminal."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.starts = 0
        self.say, self.console, self.is_interactive = self.lines.append, Console(quiet=True), False

    def start(self) -> None:
        self.starts += 1


def _epoch(number: int) -> dict[str, Any]:
    numbers = dict.fromkeys(("train_loss", "val_loss", "val_acc", "best", "pictures_per_s", "seconds"), 0.5)
    return {"kind": "epoch", "epoch": number, "best_epoch": number, **numbers}


def _progress(said: _Said, *, slow_after_s: float = 60) -> EpochProgress:
    return EpochProgress(
        cast(Any, said),
        None,
        workers=3,
        pictures=10,
        max_epochs=9,
        monitor="val_acc",
        max_failures=2,
        slow_after_s=slow_after_s,
        on_start=said.start,
    )


def test_a_run_that_waits_for_room_says_so_before_its_first_start_and_after_a_loss() -> None:
    """On a full cluster the last line would be "Starting ..." for as long as the others run; it knows how many it needs."""
    said = _Said()
    progress = _progress(said, slow_after_s=0)
    nothing: dict[str, Any] = {"events": [], "workers": 0, "slowest": None, "place": None}
    lost = {"kind": "failure", "text": "Worker 0 was lost with its machine", "number": 1}

    progress._show(nothing)
    progress._show(nothing)
    progress._show(nothing | {"workers": 3})  # they are there, and load the network
    progress._show(nothing | {"workers": 3, "events": [lost]})
    progress._show(nothing | {"workers": 3})
    progress._show(nothing | {"workers": 2, "events": [{"kind": "started", "world_size": 2, "epoch": 0, "last": None}]})
    progress._show(nothing | {"workers": 2})

    assert said.lines == [
        "Waiting for room for 3 workers on the cluster ...",
        "Worker 0 was lost with its machine; starting anew from the last checkpoint (failure 1, trainer.max_failures=2).",
        "Waiting for room for 3 workers on what is left of the cluster ...",
        "Training on 2 workers.",
    ]


def test_an_epoch_whose_worker_died_before_it_could_tell_is_told_of_by_the_next() -> None:
    """Its checkpoint counts: it is not trained again. With `resume=`, the epochs of the earlier command are not told again."""
    said = _Said()
    progress = _progress(said)
    for event in (
        {"kind": "started", "world_size": 2, "epoch": 4, "last": _epoch(3)},
        _epoch(4),
        {"kind": "started", "world_size": 2, "epoch": 5, "last": _epoch(4)},
        {"kind": "started", "world_size": 1, "epoch": 6, "last": _epoch(5)},
    ):
        progress._show({"events": [event], "workers": 2, "slowest": None, "place": None})

    assert [line.partition("train_loss")[0].rstrip() for line in said.lines] == [
        "Training goes on with epoch 4 on 2 workers.",
        "Epoch   4",
        "Training goes on with epoch 5 on 2 workers.",
        "Epoch   5",
        "Training goes on with epoch 6 on 1 worker.",
    ]
    assert said.starts == 1


def test_a_write_that_succeeds_in_time_is_told_of_once() -> None:
    """A file server that restarts."""
    told: list[str] = []
    answers = iter([OSError(errno.ESTALE, "Stale file handle"), OSError(errno.EIO, "Input/output error")])

    def write() -> str:
        for error in answers:
            raise error
        return "written"

    assert patiently(write, wait_s=10, what="checkpoint of epoch 3", tell=told.append) == "written"
    assert told == ["The checkpoint of epoch 3 cannot be written (Stale file handle); trying again for 10 s."]


def test_a_write_that_never_succeeds_ends_in_time() -> None:
    """It is a failure of the system, not of the code."""

    def write() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(
        StorageFailed, match=r"could not write the checkpoint of epoch 3 for 1 s \(No space left on device\)"
    ):
        patiently(write, wait_s=0.6, what="checkpoint of epoch 3", tell=lambda text: None)


def test_a_torn_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    """Killed at any point: the metrics come last, and without them it is none."""
    folder, source = RunFolder(tmp_path / "run"), tmp_path / "source"
    source.mkdir()
    for epoch in range(2):
        (source / CKPT).write_bytes(b"weights")
        (source / METRICS).write_text(f'{{"epoch": {epoch}}}')
        target = folder.ray / "train-00-x" / f"checkpoint_{epoch}"
        target.parent.mkdir(parents=True, exist_ok=True)
        move_checkpoint(source, target)
    assert [candidate.metrics["epoch"] for candidate in find_candidates(folder)] == [0, 1]

    (target / METRICS).unlink()
    torn = folder.ray / "train-00-x" / "checkpoint_2"
    torn.mkdir()
    (torn / METRICS).write_text('{"epo')
    (torn / CKPT).write_bytes(b"weights")

    assert [candidate.file.parent.name for candidate in find_candidates(folder)] == ["checkpoint_0"]


def _watch(**options: Any) -> Watch:
    return Watch(epoch=lambda: 3, **options)


def test_a_worker_tells_what_it_does_and_for_how_long() -> None:
    """Epoch, batch, phase: what it is behind in."""
    told: list[tuple[tuple[int, int, int] | None, float]] = []
    twice, over = threading.Event(), threading.Event()

    def tell(doing: tuple[int, int, int] | None, since_s: float) -> None:
        told.append((doing, since_s))
        if len(told) == 2:
            twice.set()
        if doing is None:
            over.set()

    none = cast(Any, None)
    with _watch(tell=tell, hang_after_s=60, beat_s=0.05) as watch:
        watch.on_train_batch_start(none)
        watch.on_before_backward()
        watch.on_train_batch_end()
        watch.on_train_batch_start(none)
        assert twice.wait(10)
    assert over.wait(10)

    assert told[1][0] == (3, 1, 1)
    assert 0 < told[0][1] < told[1][1]


_HANG = """
import time
from training.watch import Watch
watch = Watch(epoch=lambda: 0, tell=lambda doing, since_s: None, hang_after_s=0.2, beat_s=0.1)
def waits_for_ever():
    time.sleep(60)
with watch:
    for batch in watch.follow(["pictures"]):
        waits_for_ever()
"""


def test_a_worker_that_hangs_ends_itself_and_leaves_its_stacks() -> None:
    """Alone it would hang for ever; among others it would hold them up. Also after the last epoch."""
    done = subprocess.run(
        [sys.executable, "-c", _HANG],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        cwd=Path(__file__).parents[2],
    )

    assert done.returncode == 1
    assert "No progress for 0 s while computing" in done.stdout
    assert "waits_for_ever" in done.stderr
