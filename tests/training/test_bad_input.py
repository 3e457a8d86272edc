"""Bad input: one line, exit code 2, nothing left behind."""

import re
from pathlib import Path

import pytest

from tests.training.digits import write_picture
from training.run import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one good dataset, EXAMS, and the current folder in it."""
    for number in range(4):
        write_picture(tmp_path / f"data/raw_data/EXAMS/good/{number}.png", colour=(number, 0, 0))
        write_picture(tmp_path / f"data/raw_data/EXAMS/bad/{number}.png", colour=(0, number, 9))
    write_picture(tmp_path / "data/raw_data/ALONE/only/1.png")
    (tmp_path / "data/raw_data/EMPTY").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


def _refused(arguments: list[str], folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """Run a command that must be refused; returns the line that says why."""
    before = _files(folder)
    exit_code = main(arguments)
    *_, line = capfd.readouterr().out.strip().splitlines()
    assert exit_code == 2, line
    assert _files(folder) == before
    return line


def _files(folder: Path) -> list[Path]:
    """All but the cache, where a model's preprocessing may be remembered by then."""
    return sorted(file for file in folder.rglob("*") if not file.is_relative_to(folder / "data" / "cache"))


TINY = ["ds=EXAMS", "model=tiny"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Error: ds is not set; expected the name of a dataset, for example ds=EXAMS"),
        (["ds=EXAM"], "ds=EXAM: no such dataset; put its pictures in data/raw_data/EXAM/<class>/<picture>"),
        (["ds=EXAM"], "datasets in data/raw_data: ALONE, EMPTY, EXAMS"),
        (["ds=../x"], "ds=../x is a path"),
        (["ds=EMPTY"], "has no class folders; need at least 2"),
        (["ds=ALONE"], "has 1 class folder (only); need at least 2"),
        ([*TINY, "model.lrr=1"], "model.lrr: no such setting; did you mean model.lr?"),
        ([*TINY, "lr=1"], "lr: no such setting; did you mean model.lr?"),
        ([*TINY, "model.lr=fast"], "model.lr=fast"),
        ([*TINY, "model.lr=-1"], "model.lr=-1"),
        ([*TINY, "trainer.gradient_clip=0"], "trainer.gradient_clip=0"),
        ([*TINY, "data.batch_size=0"], "data.batch_size=0"),
        ([*TINY, "trainer.max_epochs=2.5"], "trainer.max_epochs=2.5"),
        ([*TINY, "num_workers=0"], "num_workers=0: expected a whole number from 1 to 1024, auto, or a range"),
        ([*TINY, "num_workers=many"], "num_workers=many"),
        ([*TINY, "trainer=tpu"], "trainer=tpu: expected one of auto, cpu, gpu"),
        ([*TINY, "category=../../x"], "category=../../x"),
        ([*TINY, "data.split.train=0.9"], "train + val + test is 1.2; expected 1"),
        ([*TINY, "callbacks.early_stopping.monitor=val_f1"], "callbacks.early_stopping.monitor=val_f1"),
        ([*TINY, "--fast"], "--fast: expected key=value"),
        (["ds=EXAMS", "model.model_name=google/vit-base-patch16-224-in21k"], "cannot be reached; connect, or set"),
        (["ds=EXAMS", "model.model_name=./nowhere"], "model.model_name=./nowhere: no such folder"),
        (["ds=EXAMS", "model=tiny", "model.config.model_type=nonsense"], "model_type=nonsense cannot be loaded"),
        (["resume=models/EXAMS/default/x"], "expected the folder of a training run"),
        ([*TINY, "paths.models=data/raw_data/EXAMS/good/0.png"], "paths.models=data/raw_data/EXAMS/good/0.png"),
        ([*TINY, "paths.metadata=data/raw_data/EXAMS/good/0.png/x"], "cannot be written; set paths.metadata"),
    ],
)
def test_what_cannot_be_run_is_refused_before_ray_starts(
    arguments: list[str], said: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The line names the key, what was found and what is expected."""
    assert said in _refused(arguments, folder, capfd)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "nothing answers there"),
        ("ray://127.0.0.1:1", "ray job submit"),
        ("cluster", "expected host:port"),
    ],
)
def test_a_cluster_that_cannot_be_reached_is_said_at_once(
    address: str, said: str, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself would try for minutes."""
    monkeypatch.setenv("RAY_ADDRESS", address)

    assert said in _refused(TINY, folder, capfd)


def test_help_explains_every_setting(capfd: pytest.CaptureFixture[str]) -> None:
    """In words, with the defaults."""
    assert main(["--help"]) == 0
    output = capfd.readouterr().out

    for key, default in (("model.lr", "0.0001"), ("callbacks.early_stopping.patience", "3"), ("num_workers", "auto")):
        assert re.search(rf"^  {re.escape(key)} +{default} +\w", output, re.MULTILINE), key
    assert "learning rate of AdamW" in output


def test_a_job_that_brings_its_working_directory_must_not_keep_its_model_there(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ray job submit --working-dir .` runs in a copy that Ray removes, and the model with it."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}}')

    line = _refused(TINY, folder, capfd)

    assert line.startswith(
        "Error: paths.models=models is in the copy of the working directory that Ray makes for a job"
    )
