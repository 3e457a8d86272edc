"""What `resume=` takes up, and what it refuses."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from classifier.errors import ConfigError, OutputError
from training import run
from training.catalog import INFO, Catalog
from training.checkpoint import CKPT, INDEX, METRICS, find_candidates, keep_checkpoints
from training.config import TrainConfig
from training.inspection import ROW
from training.resume import check_dataset, check_resumable
from training.run_folder import RunFolder, held
from training.settings import read_settings, write_settings

RULE: dict[str, Any] = {"monitor": "val_acc", "mode": "max", "save_top_k": 2}


def _catalog(*labels: str, fingerprint: str) -> Catalog:
    return Catalog("PETS", Path(), Path(), ROW.empty_table(), labels, fingerprint, seed=42, reused=False)


def _epoch(folder: RunFolder, epoch: int, *, val_acc: float) -> None:
    place = folder.ray / f"train-00-x/checkpoint_{epoch}"
    place.mkdir(parents=True)
    (place / CKPT).write_text(f"weights of epoch {epoch}")
    (place / METRICS).write_text(json.dumps({"epoch": epoch, "val_acc": val_acc, "val_loss": 1.0}))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run of three epochs with a model."""
    found = RunFolder(tmp_path / "models/PETS/default/2026-11-22/14-03-55")
    found.train_info.mkdir(parents=True)
    write_settings(found, read_settings(["ds=PETS", "model=tiny"]))
    info = 'class_map: {0: cat, 1: dog}\nseed: 42\nfingerprint: "sha256:1"\n'
    (found.train_info / INFO).write_text(info)
    for epoch, val_acc in enumerate((0.5, 0.9, 0.8)):
        _epoch(found, epoch, val_acc=val_acc)
    keep_checkpoints(found, **RULE)
    (found.path / "classifier.json").write_text("{}")
    return found


def _resumed(folder: RunFolder, *arguments: str) -> TrainConfig:
    return read_settings([f"resume={folder.path}", *arguments])


def test_a_run_goes_on_with_its_own_dataset(folder: RunFolder) -> None:
    """Whatever the dates of the files are; and so does one that kept no record."""
    config = _resumed(folder, "trainer.max_epochs=100", "model.lr=1e-5")

    check_resumable(config, folder)
    check_dataset(config, folder, _catalog("cat", "dog", fingerprint="sha256:1"))
    (folder.train_info / INFO).unlink()
    check_dataset(config, folder, _catalog("cat", "dog", fingerprint="sha256:2"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["seed=7"], r"with seed=7 \(then 42\): pictures that were trained on would be tested with"),
        (["data.split={train: 0.6, val: 0.2, test: 0.2}"], r"data.split.train=0.6 \(then 0.7\), data.split.val=0.2"),
    ],
)
def test_a_run_does_not_go_on_with_another_split(folder: RunFolder, arguments: list[str], said: str) -> None:
    """Its accuracy would be that of pictures it knows."""
    with pytest.raises(ConfigError, match=said):
        check_resumable(_resumed(folder, *arguments), folder)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (("cat", "dog"), "has other pictures than when the run began"),
        (("bird", "cat"), r"has other classes \(without dog; with bird\) than when the run began"),
    ],
)
def test_a_run_does_not_go_on_with_another_dataset(folder: RunFolder, labels: tuple[str, ...], said: str) -> None:
    """One more picture moves others between the splits."""
    with pytest.raises(ConfigError, match=said) as refused:
        check_dataset(_resumed(folder), folder, _catalog(*labels, fingerprint="sha256:2"))

    assert str(refused.value).endswith("begin a new run with python -m training.run ds=PETS")


def test_a_model_whose_checkpoints_are_gone_is_not_trained_from_scratch(folder: RunFolder) -> None:
    """It would be written over. A run that was killed in its first epoch has nothing to lose."""
    for file in folder.checkpoints.iterdir():
        file.unlink()

    with pytest.raises(
        ConfigError, match=r"no checkpoint to go on from; .* from its weights with .* ds=PETS model\.model_name="
    ):
        check_resumable(_resumed(folder), folder)
    (folder.path / "classifier.json").unlink()
    check_resumable(_resumed(folder), folder)


def test_ctrl_c_removes_no_folder_of_an_earlier_command(folder: RunFolder) -> None:
    """Stopped before its first epoch was over, a run takes back what it has made itself, and nothing else."""
    for file in folder.checkpoints.iterdir():
        file.unlink()
    said: list[str] = []
    terminal = cast(Any, SimpleNamespace(say=said.append))

    run._close_interrupted(_resumed(folder), cast(Any, None), cast(Any, None), folder, terminal)
    assert (folder.path / "config.yaml").exists()
    assert said == ["Stopped before the first epoch was over."]

    models = folder.path.parents[3]
    new = read_settings(["ds=PETS", "model=tiny", f"paths.models={models}"])
    run._close_interrupted(new, cast(Any, None), cast(Any, None), folder, terminal)
    assert list(models.iterdir()) == []


def test_two_commands_do_not_work_in_one_folder(folder: RunFolder) -> None:
    """`resume=` of a run that is still going on."""
    with held(folder), pytest.raises(OutputError, match="another command is training there; wait for it"), held(folder):
        pass
    with held(folder):
        pass


def test_going_on_without_a_new_epoch_keeps_every_checkpoint(folder: RunFolder) -> None:
    """The latest epoch is there twice, under two names; it counts once, and nothing else is left behind."""
    _epoch(folder, 3, val_acc=0.95)

    for _ in range(2):
        keep_checkpoints(folder, **RULE)
        names = {"epoch=1-val_acc=0.900.ckpt", "epoch=3-val_acc=0.950.ckpt", CKPT, INDEX}
        assert {file.name for file in folder.checkpoints.iterdir()} == names
    assert [found.metrics["epoch"] for found in find_candidates(folder)] == [1, 3]
    assert (folder.checkpoints / CKPT).read_text() == "weights of epoch 3"
