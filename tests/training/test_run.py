"""`python -m training.run`, from the command line to the model folder."""

import csv
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from PIL import Image

from classifier.model_folder import find_model
from classifier.predict import Predictor
from classifier.preprocess import load_pixels
from tests.training.conftest import Project
from training.checkpoint import CKPT, INDEX

SETTINGS = ("ds=DIGITS", "augment=none", "data.batch_size=16", "trainer=cpu")
TINY = (*SETTINGS, "model=tiny")
# A network without BatchNorm: each worker's batch statistics are its own, so only such a one is comparable to the digit.
VIT = (
    *SETTINGS,
    "model.lr=1e-3",
    "model.config={model_type: vit, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, "
    "intermediate_size: 64, image_size: 32, patch_size: 8}",
)


@pytest.fixture(scope="session")
def trained(joining: Project) -> tuple[Project, Path, str]:
    """One ordinary run, on a cluster, that the tests below look at: (project, model folder, what was printed)."""
    ended = joining.train(*TINY, "num_workers=2", "trainer.max_epochs=6", "callbacks.early_stopping=null")
    assert ended.exit_code == 0, ended.output
    return joining, ended.model, ended.output


def test_a_run_says_what_it_does_and_where_the_model_is(trained: tuple[Project, Path, str]) -> None:
    """From the first line on, and nothing of Ray's or Lightning's in between."""
    _, model, output = trained
    lines = output.splitlines()

    assert lines[0].startswith("Reading the settings")
    assert "120 pictures of 3 classes (prepared): 84 to train on, 18 to validate, 18 to test." in lines
    assert any(line.startswith("Ray dashboard: http://127.0.0.1:") for line in lines)
    assert sum(line.startswith("Epoch ") for line in lines) == 6
    assert re.fullmatch(r"models/DIGITS/default/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d", str(model))
    assert not [line for line in lines if re.search(r"WARNING|INFO|pid=|ray\.|lightning|transformers", line)]


def test_the_model_folder_holds_what_is_promised(trained: tuple[Project, Path, str]) -> None:
    """The files and keys that others read."""
    project, model, _ = trained
    folder = project.folder / model
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}

    assert {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "classifier.json",
        "README.md",
        "config.yaml",
        "train.log",
        f"checkpoints/{CKPT}",
        f"checkpoints/{INDEX}",
        "train_info/metrics.json",
        "train_info/history.csv",
        "train_info/classification_errors.csv",
        "train_info/confusion_matrix.png",
        "train_info/data_info.yaml",
        "train_info/set_aside.csv",
        "train_info/conflicts.csv",
    } <= names
    assert not [name for name in names if name.startswith(".")]
    metrics = project.metrics(model)
    assert {"accuracy", "macro_f1", "loss", "per_class", "epochs", "best_epoch", "val_acc"} <= metrics.keys()
    assert metrics["epochs"] == 6
    with (folder / "train_info/history.csv").open() as file:
        history = list(csv.DictReader(file))
    assert list(history[0]) == [
        "epoch",
        "train_loss",
        "val_loss",
        "val_acc",
        "lr",
        "seconds",
        "computing_s",
        "pictures_per_s",
    ]
    assert [int(row["epoch"]) for row in history] == list(range(6))
    best = f"checkpoints/epoch={metrics['best_epoch']}-val_acc={metrics['val_acc']:.3f}.ckpt"
    assert {name for name in names if name.endswith(".ckpt")} == {best, f"checkpoints/{CKPT}"}
    assert float(history[metrics["best_epoch"]]["val_acc"]) == max(float(row["val_acc"]) for row in history)
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["lr"] == 2e-3
    assert "Trained from random weights (`resnet`) on the dataset DIGITS" in (folder / "README.md").read_text()


def test_tensorboard_shows_the_curves_and_the_confusion_matrix(trained: tuple[Project, Path, str]) -> None:
    """Read by TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    project, model, _ = trained
    events = EventAccumulator(str(project.folder / model / "tensorboard"))
    events.Reload()

    assert {"train_loss", "val_loss", "val_acc", "lr"} <= set(events.Tags()["scalars"])
    assert "confusion_matrix" in events.Tags()["images"]
    assert [event.step for event in events.Scalars("val_acc")] == list(range(6))


def test_the_reported_accuracy_is_that_of_the_shipped_weights(trained: tuple[Project, Path, str]) -> None:
    """Scored again from the folder alone, picture by picture: the seed program tested the last epoch instead."""
    import pyarrow.parquet as pq

    project, model, _ = trained
    predictor = Predictor.load(project.folder / model, device="cpu")
    rows = pq.read_table(project.folder / "data/metadata/DIGITS/catalog.parquet").to_pylist()
    test = [row for row in rows if row["split"] == "test"]
    root = project.folder / "data/raw_data/DIGITS"
    pixels = np.stack([load_pixels((root / row["path"]).read_bytes(), predictor.spec) for row in test])

    predicted = predictor.probabilities(pixels).argmax(1)

    right = [predictor.labels[code] == row["label"] for code, row in zip(predicted, test, strict=True)]
    assert np.mean(right) == pytest.approx(project.metrics(model)["accuracy"])
    assert np.mean(right) > 0.8
    errors = (project.folder / model / "train_info/classification_errors.csv").read_text().splitlines()[1:]
    assert len(errors) == len(right) - sum(right)


def test_transformers_reads_the_folder_and_agrees(trained: tuple[Project, Path, str], tmp_path: Path) -> None:
    """Anybody's pipeline gives our labels and, on a picture of the network's size, our probabilities."""
    from transformers import pipeline

    project, model, _ = trained
    predictor = Predictor.load(project.folder / model, device="cpu")
    random = np.random.default_rng(0)
    file = tmp_path / "a.png"
    Image.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(file)

    theirs = pipeline("image-classification", model=str(project.folder / model))(str(file), top_k=3)

    ours = predictor.probabilities(load_pixels(file.read_bytes(), predictor.spec)[None])[0]
    assert {row["label"]: pytest.approx(row["score"], abs=1e-3) for row in theirs} == dict(
        zip(predictor.labels, ours.tolist(), strict=True)
    )


def test_the_newest_model_of_a_dataset_is_found_by_its_name(trained: tuple[Project, Path, str]) -> None:
    """`md=DIGITS` and `model=DIGITS`."""
    project, model, _ = trained

    assert find_model("DIGITS/default", models_dir=project.folder / "models").parts[-4:-2] == model.parts[-4:-2]


def test_the_number_of_workers_does_not_change_the_result(project: Project) -> None:
    """1, 2 and 4 workers take the same steps: the losses agree to rounding; so they do with the pixels kept on disk."""
    histories = []
    for workers, cache in ((1, "memory"), (2, "disk"), (4, "memory")):
        arguments = (f"num_workers={workers}", f"data.cache={cache}", "trainer.max_epochs=2", "category=workers")
        ended = project.train(*VIT, *arguments)
        assert ended.exit_code == 0, ended.output
        with (project.folder / ended.model / "train_info/history.csv").open() as file:
            rows = list(csv.DictReader(file))
        history = [float(row[key]) for row in rows for key in ("train_loss", "val_loss", "val_acc")]
        histories.append([*history, project.metrics(ended.model)["accuracy"], project.metrics(ended.model)["loss"]])

    assert histories[1] == pytest.approx(histories[0], abs=2e-3)
    assert histories[2] == pytest.approx(histories[0], abs=2e-3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trainer=gpu"], "trainer=gpu, but the cluster has 0 GPUs; set trainer=cpu or trainer=auto"),
        (["num_workers=1000"], "num_workers=1000 does not fit"),
        (
            ["data.cache=disk", "data.disk_limit_gb=0.0001", "model.size_px=24"],
            "decoded pixels need 0.0 GiB: more than",
        ),
    ],
)
def test_what_the_cluster_can_never_hold_is_refused_with_the_numbers(
    joining: Project, arguments: list[str], said: str
) -> None:
    """At once: Ray would place workers for ever."""
    ended = joining.train(*TINY, "category=refused", *arguments)

    assert ended.exit_code == 2
    assert said in ended.output.splitlines()[-1]
    assert not (joining.folder / "models/DIGITS/refused").exists()


def test_ctrl_c_keeps_the_best_epoch_and_the_run_goes_on_where_it_was(project: Project) -> None:
    """Epochs, optimizer, patience and best value are those of one uninterrupted run."""
    settings = (*VIT, "num_workers=2", "seed=3", "callbacks.early_stopping.patience=50", "category=stopped")
    with project.start(*settings, "trainer.max_epochs=500") as process:
        assert process.stdout is not None
        printed = []
        for line in process.stdout:
            printed.append(line)
            if line.startswith("Epoch   2"):
                process.send_signal(signal.SIGINT)
                break
        printed += process.communicate(timeout=120)[0].splitlines(keepends=True)
    output = "".join(printed)

    assert process.returncode == 130, output
    resume = next(word for word in output.split() if word.startswith("resume="))
    folder = project.folder / resume.removeprefix("resume=")
    epochs = len((folder / "train_info/history.csv").read_text().splitlines()) - 1
    assert epochs >= 3
    assert Predictor.load(folder, device="cpu").labels == ("0", "1", "2")
    assert json.loads((folder / "checkpoints" / INDEX).read_text())[CKPT]["epoch"] == epochs - 1

    ended = project.train(resume, f"trainer.max_epochs={epochs + 2}")
    whole = project.train(*settings, f"trainer.max_epochs={epochs + 2}", "category=whole")

    assert ended.exit_code == 0, ended.output
    assert project.folder / ended.model == folder
    with (folder / "train_info/history.csv").open() as file:
        resumed = [float(row["val_loss"]) for row in csv.DictReader(file)]
    with (project.folder / whole.model / "train_info/history.csv").open() as file:
        uninterrupted = [float(row["val_loss"]) for row in csv.DictReader(file)]
    assert resumed == pytest.approx(uninterrupted, abs=2e-3)
    assert project.metrics(ended.model)["best_epoch"] == project.metrics(whole.model)["best_epoch"]


def test_a_run_on_its_own_ray_with_more_workers_than_cores_leaves_no_process(project: Project) -> None:
    """`num_workers=4` on a small machine, from a shell where nothing runs."""
    before = {process.pid for process in psutil.process_iter()}

    with project.start(*TINY, "num_workers=4", "trainer.max_epochs=1", "category=alone") as process:
        output, _ = process.communicate(timeout=240)

    assert process.returncode == 0, output
    assert "Training on 4 workers." in output
    left = [each for each in psutil.process_iter() if each.pid not in before and _is_of(each, process.pid)]
    _, alive = psutil.wait_procs(left, timeout=15)
    assert not [each for each in alive if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def _is_of(process: psutil.Process, driver: int) -> bool:
    """Whether a process is one that this driver's Ray started: they carry its session in their command line."""
    try:
        return "ray" in " ".join(process.cmdline()) and str(driver) in " ".join(process.cmdline())
    except psutil.Error:
        return False


def test_the_command_keeps_no_memory_that_arrow_has_freed_and_its_workers_are_not_told() -> None:
    """Arrow's own allocator keeps it, 60 MB for 100,000 pictures; workers use theirs again."""
    asked = """
import os
from training.run import _have_arrow_give_back
_have_arrow_give_back()
import pyarrow
print(pyarrow.default_memory_pool().backend_name, "ARROW_DEFAULT_MEMORY_POOL" in os.environ)
"""
    answer = subprocess.run([sys.executable, "-c", asked], check=True, capture_output=True, text=True, timeout=60)

    assert answer.stdout.split() == ["system", "False"]
