"""Bad input: one line, exit code 2, nothing left behind."""

import re
import shutil
from pathlib import Path

import pytest

from cluster import configuration
from cluster.terminal import run_command
from tests.training.digits import write_picture
from training import digits
from training.run import main
from training.settings import read_settings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one good dataset, EXAMS, and the current folder in it."""
    for number in range(4):
        write_picture(tmp_path / f"data/raw_data/EXAMS/good/{number}.png", colour=(number, 0, 0))
        write_picture(tmp_path / f"data/raw_data/EXAMS/bad/{number}.png", colour=(0, number, 9))
    write_picture(tmp_path / "data/raw_data/ALONE/only/1.png")
    (tmp_path / "data/raw_data/EMPTY").mkdir()
    for name in (
        "cat/1.heic",
        "cat/2.HEIC",
        "dog/3.heic",
        "dog/notes",
        "ok/notes.txt",
        "ok/1.jpg",
        "ok/2.jpg",
        "ok/3.jpg",
    ):
        (tmp_path / "data/raw_data/PHONE" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data/raw_data/PHONE" / name).write_bytes(b"x")
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
        (["ds="], "Error: ds is not set; expected the name of a dataset"),
        (["ds", "=", "EXAMS"], "Error: ds: expected key=value, for example ds=EXAMS (no spaces"),
        (["EXAMS"], "Error: EXAMS: expected key=value"),
        (["md=EXAMS"], "Error: md: no such setting; did you mean ds?"),
        (["ds=EXAM"], "ds=EXAM: no such dataset; put its pictures in data/raw_data/EXAM/<class>/<picture>"),
        (["ds=EXAM"], "datasets in data/raw_data: ALONE, EMPTY, EXAMS, PHONE"),
        (["ds=../x"], "ds=../x is a path"),
        (["ds=EMPTY"], "has no class folders; need at least 2"),
        (["ds=ALONE"], "has 1 class folder (only); need at least 2"),
        (["ds=PHONE"], "PHONE: 2 of 3 classes have fewer than 3 pictures (cat has 0, dog has 0); need one for each"),
        (
            ["ds=PHONE"],
            "; passed over because of the suffix: 3 .heic, 1 no suffix; convert pictures to one of .bmp, .gif, .jpeg, ",
        ),
        ([*TINY, "model.lrr=1"], "model.lrr: no such setting; did you mean model.lr?"),
        ([*TINY, "lr=1"], "lr: no such setting; did you mean model.lr?"),
        ([*TINY, "model.learning_rate=1"], "model.learning_rate: no such setting; did you mean model.lr?"),
        ([*TINY, "epochs=1"], "epochs: no such setting; did you mean trainer.max_epochs?"),
        ([*TINY, "model.epochs=1"], "model.epochs: no such setting; did you mean model.warmup_epochs?"),
        ([*TINY, "early_stopping=null"], "early_stopping: no such setting; did you mean callbacks.early_stopping?"),
        ([*TINY, "model.lr=fast"], "model.lr=fast"),
        ([*TINY, "model.lr=-1"], "model.lr=-1"),
        ([*TINY, "trainer.gradient_clip=0"], "trainer.gradient_clip=0"),
        ([*TINY, "data.batch_size=0"], "data.batch_size=0"),
        ([*TINY, "trainer.max_epochs=2.5"], "trainer.max_epochs=2.5"),
        ([*TINY, "num_workers=0"], "num_workers=0: expected a whole number from 1 to 1024, auto, or a range"),
        ([*TINY, "num_workers=many"], "num_workers=many"),
        ([*TINY, "trainer=tpu"], "trainer=tpu: expected one of auto, cpu, gpu"),
        ([*TINY, "category=../../x"], "category=../../x: expected a folder's name of letters, digits"),
        ([*TINY, "category="], "category=: expected a folder's name"),
        ([*TINY, "data.split.train=0.9"], "Error: data.split: train + val + test is 1.2; expected 1"),
        ([*TINY, "callbacks.early_stopping=false"], "monitor; null switches it off"),
        (
            [*TINY, "callbacks.model_checkpoint.monitor=val_loss"],
            "callbacks.model_checkpoint.mode=max: expected min with monitor=val_loss, else the worst epoch",
        ),
        ([*TINY, "callbacks.early_stopping.monitor=val_loss"], "callbacks.early_stopping.mode=max: expected min"),
        ([*TINY, "callbacks.early_stopping.mode=min"], "callbacks.early_stopping.mode=min: expected max"),
        ([*TINY, "callbacks.early_stopping.monitor=val_f1"], "callbacks.early_stopping.monitor=val_f1"),
        ([*TINY, "--fast"], "--fast: expected key=value"),
        (["ds=EXAMS", "model.model_name=google/vit-base-patch16-224-in21k"], "cannot be reached; connect, or set"),
        (["ds=EXAMS", "model.model_name=./nowhere"], "model.model_name=./nowhere: no such folder"),
        (["ds=EXAMS", "model=tiny", "model.config.model_type=nonsense"], "model_type=nonsense cannot be loaded"),
        (["resume=models/EXAMS/default/x"], "no such folder; expected the folder of a training run"),
        (["resume=EXAMS"], "models/EXAMS/default/DATE/TIME, not a dataset's name"),
        (["resume=data"], "resume=data: no config.yaml in it; expected the folder of a training run"),
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


@pytest.mark.parametrize(("argument", "exit_code"), [("--help", 0), ("here", 2)])
def test_the_digits_are_not_written_where_help_or_something_else_is_asked_for(
    argument: str, exit_code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It takes no settings, and says so."""
    monkeypatch.chdir(tmp_path)

    assert run_command(digits.main, [argument]) == exit_code

    assert "1,797 pictures of digits to data/raw_data/DIGITS; it takes no settings" in capfd.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_dataset_may_stand_in_the_yaml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A `ds:` in configs/train.yaml counts like any other setting there."""
    configs = shutil.copytree(configuration.CONFIGS_DIR, tmp_path / "configs")
    train = configs / "train.yaml"
    train.write_text(train.read_text().replace("ds: null", "ds: EXAMS"))
    monkeypatch.setattr(configuration, "CONFIGS_DIR", configs)

    assert read_settings([]).ds == "EXAMS"


def test_a_job_that_brings_its_working_directory_must_not_keep_its_model_there(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ray job submit --working-dir .` runs in a copy that Ray removes, and the model with it."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}}')

    line = _refused(TINY, folder, capfd)

    assert line.startswith(
        "Error: paths.models=models is in the copy of the working directory that Ray makes for a job"
    )
