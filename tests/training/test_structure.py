"""What makes training fast, by counts and not by times: nothing is done twice, and no step waits."""

import collections
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from classifier import image
from classifier.network import load_network
from classifier.processor import load_preprocess
from tests.conftest import TINY_CONFIG
from tests.training.digits import write_picture
from training.averaging import WarmedUpAverage
from training.batches import EvalBatches, Pixels, TrainBatches
from training.config import TrainConfig
from training.epoch_report import EpochReport
from training.feed import Feed, FeedPlan
from training.module import ClassifierModule
from training.settings import read_settings

PICTURES, EPOCHS = 1000, 3
# What makes the host wait until the device has computed a value.
_WAITS = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero")


@pytest.fixture
def feed(tmp_path: Path, ray_once: None) -> Iterator[tuple[Any, list[Path]]]:
    """A Feed of a thousand small pictures, and their files."""
    import ray

    files = [tmp_path / f"{number:04d}.png" for number in range(PICTURES)]
    for number, file in enumerate(files):
        write_picture(file, colour=(number % 256, number // 256, 9))
    spec = load_preprocess("tiny", size_px=32, max_pixels=image.MAX_PIXELS, config=TINY_CONFIG)
    plan = FeedPlan(
        root=tmp_path,
        splits={"train": [file.name for file in files]},
        spec=spec,
        mean_bytes=1e3,
        decode_cpus=1,
        decode_tasks=2,
        shards=None,
        name="counted",
        max_bad_share=0.0,
    )
    actor = ray.remote(num_cpus=0)(Feed).remote(plan)
    yield actor, files
    ray.kill(actor)


def test_a_picture_is_read_once_however_many_epochs_there_are(feed: tuple[Any, list[Path]]) -> None:
    """The files are gone after the first epoch; and a second call to start does not decode them again."""
    import ray

    actor, files = feed
    ray.get([actor.start.remote(), actor.start.remote()])
    pixels = Pixels(actor, "train")
    first, readable = pixels.rows(np.arange(PICTURES))
    for file in files:
        file.unlink()

    assert readable.all()
    assert len(np.unique(first.reshape(PICTURES, -1).numpy(), axis=0)) == PICTURES
    for epoch in range(1, EPOCHS):
        order = np.random.default_rng(epoch).permutation(PICTURES)
        again, readable = pixels.rows(order)
        assert readable.all()
        assert torch.equal(again, first[order])
    blocks = ray.get(actor.blocks.remote("train", 0))
    assert sum(rows for _, rows in blocks) == PICTURES


def test_a_thousand_pictures_take_a_handful_of_tasks(feed: tuple[Any, list[Path]]) -> None:
    """A task of Ray costs as much as several pictures; none is spent on anything but decoding."""
    import ray

    before = _tasks_so_far()
    actor, _ = feed
    ray.get(actor.start.remote())
    Pixels(actor, "train").rows(np.arange(PICTURES))

    after = _tasks_so_far()
    started = {name: count for name, count in (after - before).items() if not name.startswith(("Feed.", "_"))}
    decoding = sum(count for name, count in started.items() if "_decode_batch" in name)
    assert 1 <= decoding <= 5, started
    assert "get_table_block_metadata_schema" not in started
    assert sum(started.values()) <= 10, started


def _tasks_so_far() -> "collections.Counter[str]":
    """Each task that this Ray has seen, by name."""
    import ray
    from ray.util.state import list_tasks

    time.sleep(1.5)  # they are told of once a second
    address = ray.get_runtime_context().gcs_address
    return collections.Counter(task.name for task in list_tasks(address=address, limit=10_000))


class _Counted(TorchDispatchMode):
    """Counts the operations that would make a GPU's host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().split(".")[0] in _WAITS:
            self.waits[func.name()] += 1
        return func(*args, **(kwargs or {}))


class _Watched(lightning.Callback):
    """Turns the counting on from a step's batch to the next one's."""

    def __init__(self) -> None:
        self.counted, self.steps = _Counted(), 0

    def on_train_batch_start(self, *_: Any) -> None:
        self.counted.__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        self.counted.__exit__(None, None, None)
        self.steps += 1


class _NoSync(lightning.Callback):
    """Lets a CUDA call that makes the host wait fail, from a step's batch to the next one's."""

    steps = 0

    def on_train_batch_start(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
        self.steps += 1


class _InMemory:
    """Random pictures."""

    def __init__(self, count: int) -> None:
        random = np.random.default_rng(0)
        self._pixels = torch.from_numpy(random.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8))

    def rows(self, places: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        return self._pixels[places], np.ones(len(places), dtype=bool)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[_Watched, list[dict[str, Any]], list[dict[str, Any]]]:
    """Three epochs in this process, with everything that a worker has: (watch, reports, events)."""
    watched = _Watched()
    reports, events = _fit(tmp_path_factory.mktemp("info"), watched, on_gpu=False)
    return watched, reports, events


def _fit(folder: Path, watch: lightning.Callback, *, on_gpu: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    config: TrainConfig = read_settings(
        ["ds=X", "model=tiny", "augment=strong", "callbacks.early_stopping=null", f"trainer.max_epochs={EPOCHS}"]
    )
    spec = load_preprocess("tiny", size_px=32, max_pixels=image.MAX_PIXELS, config=TINY_CONFIG)
    network = load_network("tiny", labels=("a", "b"), spec=spec, config=TINY_CONFIG)
    labels = np.arange(48) % 2
    reports: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    epochs = EpochReport(
        config.callbacks,
        report=lambda metrics, _: reports.append(metrics),
        tell=events.append,
        keep=lambda write, what: write(),
        history_file=folder / "history.csv",
        scratch=folder,
        pictures=len(labels),
    )
    place = {"batch_size": 16, "rank": 0, "world_size": 1, "pin": on_gpu}
    batches = TrainBatches(
        _InMemory(48),  # type: ignore[arg-type]
        labels,
        seed=1,
        epoch=lambda: epochs.epoch,
        tick=lambda *_: True,
        **place,  # type: ignore[arg-type]
    )
    validation = EvalBatches(_InMemory(20), labels[:20], **place)  # type: ignore[arg-type]
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="gpu" if on_gpu else "cpu",
        devices=1,
        precision="bf16-mixed",
        logger=False,
        callbacks=[WarmedUpAverage(decay=0.99, device="cuda" if on_gpu else "cpu"), epochs, watch],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(ClassifierModule(network, config, steps_per_epoch=len(batches)), batches, validation)
    return reports, events


def test_an_epoch_is_reported_once(fitted: tuple[_Watched, list[dict[str, Any]], list[dict[str, Any]]]) -> None:
    """A report is a barrier of all workers and a checkpoint: one each, and one line on the terminal."""
    _, reports, events = fitted

    assert [report["epoch"] for report in reports] == list(range(EPOCHS))
    assert [event["kind"] for event in events] == ["started", *["epoch"] * EPOCHS]


def test_an_epoch_says_how_much_of_it_was_computing(
    fitted: tuple[_Watched, list[dict[str, Any]], list[dict[str, Any]]],
) -> None:
    """The rest is what everything around the steps costs."""
    _, reports, _ = fitted

    assert all(0 < report["computing_s"] < report["seconds"] for report in reports)


def test_no_step_waits_for_the_device(fitted: tuple[_Watched, list[dict[str, Any]], list[dict[str, Any]]]) -> None:
    """Loss, metrics, clipping and averaging stay on the device; a wait in each step would idle a GPU."""
    watched, _, _ = fitted

    assert watched.steps == EPOCHS * 3
    assert not watched.counted.waits


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_step_waits_for_a_gpu(tmp_path: Path) -> None:
    """The same by CUDA's own account: a call that waits raises an error."""
    watch = _NoSync()
    _fit(tmp_path, watch, on_gpu=True)

    assert watch.steps == EPOCHS * 3
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError, match="synchronizing"):
        torch.ones(1, device="cuda").item()
    torch.cuda.set_sync_debug_mode("default")


def test_the_count_sees_a_wait() -> None:
    """The check above can fail."""
    counted = _Counted()
    with counted:
        torch.ones(1).item()
        bool(torch.ones(1) > 0)

    assert sum(counted.waits.values()) == 2
