"""How a run ends: Ctrl-C once and twice, the last files, what an earlier end of the same run has left."""

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from classifier import image
from classifier.errors import Interrupted
from classifier.model_folder import MANIFEST, ONNX, load_model, read_manifest
from classifier.network import Network, load_network
from classifier.preprocess import PreprocessSpec
from classifier.processor import load_preprocess
from tests.conftest import TINY_CONFIG
from training import run
from training.batches import Batch, EvalBatches, StopRequested, until_stopped
from training.checkpoint import Candidate
from training.config import TrainConfig
from training.feed import Feed, FeedPlan
from training.finish import finish
from training.loop import Job
from training.run_folder import RunFolder
from training.settings import read_settings

LABELS = ("cat", "dog", "$5_$")
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
CODES = np.array([0, 1, 2, 0, 1, 2])


class _Said:
    """Stands for the terminal."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.say = self.lines.append


def _spec() -> PreprocessSpec:
    return load_preprocess("tiny", size_px=32, max_pixels=image.MAX_PIXELS, config=TINY_CONFIG)


def _network(seed: int) -> Network:
    torch.manual_seed(seed)
    return load_network("tiny", labels=LABELS, spec=_spec(), config=TINY_CONFIG)


def _job(folder: Path) -> Job:
    counts: dict[str, dict[str, int]] = {split: dict.fromkeys(LABELS, 2) for split in ("train", "val", "test")}
    return Job(
        config={"model": {"model_name": "tiny", "config": None}, "seed": 1},
        spec={},
        labels=LABELS,
        codes={"test": CODES},
        test_paths=[f"{number}.png" for number in CODES],
        dataset={"name": "PETS", "fingerprint": "sha256:0", "counts": counts},
        folder=folder,
        run="x",
        attempt="train-00-x",
        threads=1,
        feed=None,
    )


def _epoch(folder: Path, epoch: int, *, val_acc: float) -> Candidate:
    """An epoch's checkpoint; the number is the seed of its weights."""
    place = folder / f".ray/train-00-x/checkpoint_{epoch}"
    place.mkdir(parents=True)
    state = {f"network.{key}": value for key, value in _network(epoch).state_dict().items()}
    torch.save({"state_dict": state}, place / "last.ckpt")
    metrics = {"epoch": epoch, "val_acc": val_acc, "val_loss": 1.0}
    (place / "metrics.json").write_text(json.dumps(metrics))
    (folder / "train_info").mkdir(exist_ok=True)
    (folder / "train_info/history.csv").write_text("epoch\n" + "0\n" * (epoch + 1))
    return Candidate(metrics, place / "last.ckpt")


def _config(folder: Path) -> TrainConfig:
    config = read_settings(["ds=PETS", "model=tiny", "logger=none", f"paths.models={folder.parents[3]}"])
    return config.model_copy(update={"model": config.model.model_copy(update={"config": TINY_CONFIG})})


class _Pixels:
    def rows(self, places: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        return torch.from_numpy(PIXELS[places]), np.ones(len(places), bool)


def _test_split() -> EvalBatches:
    return EvalBatches(cast(Any, _Pixels()), CODES, batch_size=16, rank=0, world_size=1, pin=False)


def _finish(folder: Path, test: Iterable[Batch] | None = None, **changes: Any) -> Network:
    network = _network(99)
    options: dict[str, Any] = {"rank": 0, "tell": lambda event: None, "agree": lambda best: best} | changes
    finish(
        _job(folder),
        _config(folder),
        _spec(),
        network,
        test or _test_split(),
        RunFolder(folder),
        world_size=1,
        samples=PIXELS,
        writes=lambda: None,
        **options,
    )
    return network


def _stopped(folder: Path) -> list[str]:
    """What Ctrl-C makes of a run folder, and says."""
    said = _Said()
    code = run._close_interrupted(_config(folder), _job(folder), _spec(), RunFolder(folder), cast(Any, said))
    assert code == 130
    return said.lines


def _weights_of(folder: Path) -> int:
    """The epoch whose weights a model folder holds."""
    found = load_model(folder).network.state_dict()
    for epoch in range(5):
        if all(torch.equal(value, found[key]) for key, value in _network(epoch).state_dict().items()):
            return epoch
    raise AssertionError("weights of no epoch")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder."""
    place = tmp_path / "models/PETS/default/2026-11-22/14-03-55"
    place.mkdir(parents=True)
    return place


def _hangs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run that does not end by itself; gives what was done to it."""
    done: list[str] = []
    over = threading.Event()

    def run_experiment(*_: object) -> None:
        over.wait(60)

    def end_experiment(_: object) -> None:
        done.append("ended")
        over.set()

    monkeypatch.setattr("training.experiment.run_experiment", run_experiment)
    monkeypatch.setattr("training.experiment.end_experiment", end_experiment)
    return done


def _experiment(done: list[str]) -> Any:
    stop = SimpleNamespace(remote=lambda: done.append("asked"))
    return SimpleNamespace(job=SimpleNamespace(feed=SimpleNamespace(stop=stop)))


def test_the_second_ctrl_c_ends_a_run_that_does_not_stop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """At once, as the first one's line says."""
    done, said = _hangs(monkeypatch), _Said()

    def press() -> None:
        for _ in range(2):
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    began_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run._run_until_stopped(_experiment(done), RunFolder(tmp_path), cast(Any, said))

    assert time.monotonic() - began_s < 10
    assert done == ["asked", "ended"]
    assert said.lines == ["Stopping after the steps under way; press Ctrl-C again to stop at once."]


def test_a_run_that_does_not_stop_in_time_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The line says "now"."""
    done = _hangs(monkeypatch)
    monkeypatch.setattr(run, "_STOP_TIMEOUT_S", 0.3)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()

    began_s = time.monotonic()
    with pytest.raises(Interrupted, match="it is ended now"):
        run._run_until_stopped(_experiment(done), RunFolder(tmp_path), cast(Any, _Said()))

    assert time.monotonic() - began_s < 10
    assert done == ["asked", "ended"]


def _feed() -> Feed:
    return Feed(
        FeedPlan(
            Path(),
            {"train": []},
            _spec(),
            1e3,
            decode_cpus=1,
            decode_tasks=1,
            shards=None,
            name="x",
            max_bad_share=0.2,
        )
    )


def test_what_is_ended_is_the_trial_and_then_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the other order the trial would start workers anew; and no new trial follows."""
    killed: list[object] = []
    monkeypatch.setattr("ray.kill", killed.append)

    async def story() -> tuple[dict[str, Any] | None, int]:
        feed = _feed()
        await feed.take_trial("trial")
        for rank in range(2):
            await feed.join("first", rank, "here", f"worker {rank}")
        await feed.end()
        return await feed.verdict()

    fault, _ = asyncio.run(story())

    assert killed == ["trial", "worker 0", "worker 1"]
    assert fault is not None


def test_a_run_was_stopped_when_its_workers_were_told_to() -> None:
    """Ctrl-C after the last batch comes too late: the run is as whole as without it."""

    async def story() -> list[bool]:
        feed = _feed()
        await feed.join("first", 0, "here", None)
        assert await feed.tick("first", 0, 3, 0, 2)
        await feed.stop()
        before = await feed.was_stopped()
        assert not await feed.tick("first", 0, 3, 1, 2)
        return [before, await feed.was_stopped()]

    assert asyncio.run(story()) == [False, True]


def test_ctrl_c_while_the_test_split_is_scored_leaves_nothing_half_written(folder: Path) -> None:
    """The model is then written as after any Ctrl-C."""
    _epoch(folder, 1, val_acc=0.5)

    with pytest.raises(StopRequested):
        _finish(folder, until_stopped(_test_split(), lambda batch, batches: batch < batches - 1))

    assert not (folder / MANIFEST).exists()
    assert "test split was not scored" in _stopped(folder)[0]
    assert _weights_of(folder) == 1


def test_the_first_worker_says_which_epoch_is_the_best(folder: Path, tmp_path: Path) -> None:
    """On a network's file system another one may not see the last checkpoint in its listing yet."""
    late = _epoch(tmp_path / "later", 3, val_acc=0.9)
    _epoch(folder, 2, val_acc=0.5)

    network = _finish(folder, rank=1, agree=lambda mine: late if mine is None else mine)

    expected = _network(3).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())


def test_a_folder_is_a_model_once_and_for_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that starts while `model.onnx` is made would take a digest that is another one seconds later."""
    import training.finish

    _epoch(folder, 1, val_acc=0.5)
    export_onnx = training.finish.export_onnx
    was_model: list[bool] = []

    def export(staged: Path, pixels: np.ndarray) -> Any:
        was_model.append((folder / MANIFEST).exists())
        return export_onnx(staged, pixels)

    monkeypatch.setattr(training.finish, "export_onnx", export)
    _finish(folder)

    assert was_model == [False]
    manifest = read_manifest(folder)
    assert manifest.onnx is not None and manifest.onnx.kept
    assert ONNX in manifest.files
    assert _weights_of(folder) == 1
    assert sorted(file.name for file in folder.iterdir() if file.name.startswith(".")) == [".ray"]


def test_a_run_that_went_on_and_was_stopped_ships_its_better_epoch(folder: Path) -> None:
    """And neither the test results nor the `model.onnx` of the earlier weights."""
    _epoch(folder, 1, val_acc=0.5)
    _finish(folder)
    _epoch(folder, 2, val_acc=0.9)

    said = _stopped(folder)

    assert "The best epoch so far, 2 (val_acc 0.9000), has been saved" in said[0]
    assert _weights_of(folder) == 2
    assert not (folder / ONNX).exists()
    assert [file.name for file in (folder / "train_info").iterdir()] == ["history.csv"]


def test_a_run_that_went_on_and_was_stopped_keeps_a_model_that_is_still_the_best(folder: Path) -> None:
    """With its test results and its `model.onnx`."""
    _epoch(folder, 1, val_acc=0.5)
    _finish(folder)
    before = read_manifest(folder)
    _epoch(folder, 2, val_acc=0.4)

    said = _stopped(folder)

    assert "Epoch 1 (val_acc 0.5000) is still the best" in said[0]
    assert read_manifest(folder) == before
    assert (folder / ONNX).exists()
    assert (folder / "train_info/metrics.json").exists()
