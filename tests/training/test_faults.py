"""What a run survives, and what it must not try again: real runs, one after the other."""

import csv
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.training.digits import write_few_digits
from tests.training.faults import Run, find, kill, of_ours, scratch_files, training

_EPOCHS = 4
_VIT = (
    "{{model_type: vit, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64, "
    "image_size: {}, patch_size: 4}}"
)
# Without BatchNorm, a run that went on must be the undisturbed one's equal. Steps are many, so that a kill meets one.
_SETTINGS = (
    "ds=DIGITS",
    "augment=none",
    "trainer=cpu",
    "trainer.precision=32",
    "num_workers=2",
    "data.batch_size=4",
    "model.lr=1e-3",
    f"trainer.max_epochs={_EPOCHS}",
    "callbacks.early_stopping=null",
)
_TOKEN_OFF = {"RAY_AUTH_MODE": "disabled"}


@dataclass(frozen=True)
class Scene:
    """A project folder."""

    folder: Path
    scratch: Path  # for temporary files
    rays: str  # for what Ray keeps; short, because its sockets are there

    def train(self, *settings: str, address: str | None = None) -> AbstractContextManager[Run]:
        return training(
            self.folder,
            *_SETTINGS,
            *settings,
            address=address,
            environment=_TOKEN_OFF | {"TMPDIR": str(self.scratch), "RAY_TMPDIR": self.rays},
        )


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("faults")
    write_few_digits(folder / "data/raw_data/DIGITS", classes=3, each=40)
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as rays:
        yield Scene(folder, tmp_path_factory.mktemp("scratch"), rays)


@pytest.fixture
def cluster(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a cluster that goes on after the run."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_TMPDIR", scene.rays)
    monkeypatch.setenv("TMPDIR", str(scene.scratch))
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 10**8})
    try:
        yield started.address
    finally:
        started.shutdown()


@pytest.fixture(scope="module")
def undisturbed(scene: Scene) -> Run:
    with scene.train(f"model.config={_VIT.format(32)}") as run:
        assert run.end() == 0, run.output
    return run


def _history(run: Run) -> list[float]:
    with (run.model / "train_info/history.csv").open() as file:
        return [float(row[key]) for row in csv.DictReader(file) for key in ("train_loss", "val_loss", "val_acc")]


def test_a_killed_worker_costs_at_most_the_epoch_and_changes_nothing(scene: Scene, undisturbed: Run) -> None:
    """The terminal says who, where and from which epoch it goes on; the result is the undisturbed run's."""
    with scene.train(f"model.config={_VIT.format(32)}") as run:
        run.wait_for(r"^Epoch   1")
        kill(find("ray::RayTrainWorker", below=run.process.pid)[-1])
        assert run.end() == 0, run.output

    said = run.wait_for(r"^Worker \d \(.*, process \d+\) was killed or crashed")
    assert "starting anew from the last checkpoint (failure 1, trainer.max_failures=2)" in said
    on = [line for line in run.lines if line.startswith("Training goes on with epoch")]
    assert len(on) == 1 and on[0] in [f"Training goes on with epoch {epoch} on 2 workers.\n" for epoch in (2, 3)]
    assert [int(line.split()[1]) for line in run.lines if line.startswith("Epoch ")] == list(range(_EPOCHS))
    assert _history(run) == pytest.approx(_history(undisturbed), abs=2e-3)
    assert not list(run.model.rglob(".*"))
    assert scratch_files(scene.scratch) == []


def test_a_fault_of_the_code_ends_the_run_at_once_with_its_own_traceback(scene: Scene, cluster: str) -> None:
    """One attempt: it would fail again. Nothing of it stays on the cluster."""
    with scene.train(f"model.config={_VIT.format(64)}", "model.size_px=32", address=cluster) as run:
        assert run.end() == 1, run.output

    last = [line for line in run.lines if line.startswith("Failed: ")]
    assert len(last) == 1
    assert "ValueError: Input image size (32*32) doesn't match model (64*64)" in last[0]
    assert not [line for line in run.lines if "starting anew" in line or "goes on" in line]
    log = Path(run.lines[-1].split()[-1])
    text = log.read_text()
    assert 'training/loop.py", line' in text
    assert len(list((log.parent / ".ray").glob("train-*"))) <= 1
    assert of_ours(cluster, _TOKEN_OFF) == []
    assert scratch_files(scene.scratch) == []
