"""Every file is accounted for; only what changed is looked at again."""

import csv
import functools
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from classifier import image
from classifier.errors import DatasetError, OutputError
from cluster.terminal import run_command
from tests.training.digits import write_picture
from training.catalog import Catalog, prepare_catalog, write_summaries
from training.config import DataConfig
from training.inspection import ROW, inspect
from training.listing import list_dataset, tabulate
from training.progress import show_dataset

DATA = DataConfig.model_validate(
    {
        "batch_size": 16,
        "split": {"train": 0.7, "val": 0.15, "test": 0.15},
        "max_bad_share": 0.5,
        "max_pixels": image.MAX_PIXELS,
        "cache": "auto",
        "memory_share": 0.3,
        "disk_limit_gb": 1,
    }
)


class _Project:
    """A project folder with one dataset of two classes of four different pictures."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.dataset = folder, folder / "data/raw_data/PETS"
        self.opened: list[str] = []
        self.away: set[str] = set()  # pictures that cannot be opened
        for number in range(4):
            write_picture(self.dataset / "cat" / f"{number}.png", colour=(number, 0, 0))
            write_picture(self.dataset / "dog" / f"{number}.JPG", colour=(0, 40 * number, 0))

    def prepare(self, *, seed: int = 42, data: DataConfig = DATA) -> Catalog:
        self.opened = []
        return prepare_catalog(
            "PETS",
            root=self.dataset,
            listing=tabulate(list_dataset(self.dataset)),
            metadata=self.folder / "data/metadata",
            config=data,
            seed=seed,
            inspect=self._inspect,
        )

    def _inspect(self, listing: pa.Table, root: Path):  # type: ignore[no-untyped-def]
        self.opened = listing["path"].to_pylist()
        look = functools.partial(inspect, max_pixels=DATA.max_pixels, task_cpus=1, tasks=2)
        rows = look(listing, root, on_progress=lambda done, total: None).to_pylist()
        unknown = dict.fromkeys(("group", "sha256", "width", "height", "mode"))
        rows = [row | {"reason": "unreadable"} | unknown if row["path"] in self.away else row for row in rows]
        return pa.Table.from_pylist(rows, schema=ROW)


@pytest.fixture
def project(tmp_path: Path, ray_once: None) -> _Project:
    return _Project(tmp_path)


def test_the_catalog_has_a_row_for_every_file_and_the_summary_adds_up(project: _Project) -> None:
    """Used or set aside with a reason; the originals are not touched."""
    (project.dataset / "cat/broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    (project.dataset / "cat/empty.png").touch()
    (project.dataset / "dog/notes.txt").write_text("x")
    before = {file: file.read_bytes() for file in project.dataset.rglob("*") if file.is_file()}

    project.prepare()

    rows = pq.read_table(project.folder / "data/metadata/PETS/catalog.parquet").to_pylist()
    info = yaml.safe_load((project.folder / "data/metadata/PETS/data_info.yaml").read_text())
    assert {row["path"]: row["reason"] for row in rows if row["state"] == "set_aside"} == {
        "cat/broken.jpg": "unsupported_format",
        "cat/empty.png": "empty",
        "dog/notes.txt": "no_picture_suffix",
    }
    used = [row for row in rows if row["state"] == "used"]
    assert {(row["width"], row["height"], row["mode"]) for row in used} == {(24, 16, "RGB")}
    assert all(len(row["sha256"]) == 64 and row["split"] in ("train", "val", "test") for row in used)
    assert info["num_classes"] == 2
    assert info["class_map"] == {0: "cat", 1: "dog"}
    assert info["counts"] == {
        "train": {"cat": 2, "dog": 2},
        "val": {"cat": 1, "dog": 1},
        "test": {"cat": 1, "dog": 1},
        "set_aside": {"empty": 1, "no_picture_suffix": 1, "unsupported_format": 1},
    }
    assert sum(sum(group.values()) for group in info["counts"].values()) == len(rows) == len(before)
    with (project.folder / "data/metadata/PETS/set_aside.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["path", "reason"],
            ["cat/broken.jpg", "unsupported_format"],
            ["cat/empty.png", "empty"],
            ["dog/notes.txt", "no_picture_suffix"],
        ]
    assert before == {file: file.read_bytes() for file in project.dataset.rglob("*") if file.is_file()}


def test_an_unchanged_dataset_is_not_opened_again(project: _Project) -> None:
    """The second run starts at once, on the same split."""
    first = project.prepare()
    second = project.prepare()

    assert second.reused
    assert project.opened == []
    assert second.table.equals(first.table)
    assert second.fingerprint == first.fingerprint


def test_only_new_and_changed_pictures_are_opened(project: _Project) -> None:
    """A new picture is noticed, a removed one is gone, a changed one is read again."""
    first = project.prepare()
    write_picture(project.dataset / "cat/new.webp", colour=(9, 9, 9))
    write_picture(project.dataset / "dog/0.JPG", colour=(200, 0, 200), size_px=(40, 40))
    (project.dataset / "cat/3.png").unlink()

    second = project.prepare()

    assert sorted(project.opened) == ["cat/new.webp", "dog/0.JPG"]
    assert not second.reused
    assert second.fingerprint != first.fingerprint
    assert "cat/3.png" not in second.table["path"].to_pylist()


def test_another_seed_splits_anew_without_opening_anything(project: _Project) -> None:
    """What the pictures are does not depend on the seed."""
    first = project.prepare(seed=1)
    second = project.prepare(seed=2)

    assert project.opened == []
    assert second.fingerprint == first.fingerprint
    assert second.table["split"].to_pylist() != first.table["split"].to_pylist()


def test_a_copy_of_a_picture_stays_on_its_side_of_the_split(project: _Project) -> None:
    """Under another name, even in another class, it would be a leak."""
    for number in range(4):
        shutil.copy(project.dataset / f"cat/{number}.png", project.dataset / f"cat/copy-{number}.png")

    rows = project.prepare().table.to_pylist()

    split_of = {row["path"]: row["split"] for row in rows}
    assert all(split_of[f"cat/{number}.png"] == split_of[f"cat/copy-{number}.png"] for number in range(4))


def test_what_was_found_is_said_and_listed(
    project: _Project, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same content in two classes is trained with both labels: the user hears of it, and of what is not used."""
    shutil.copy(project.dataset / "cat/0.png", project.dataset / "dog/also, a cat.png")
    shutil.copy(project.dataset / "cat/1.png", project.dataset / "cat/copy.png")  # no contradiction
    (project.dataset / "dog/notes.txt").write_text("x")

    for _ in range(2):  # also when nothing has changed
        run_command(lambda _, terminal: show_dataset(terminal, project.prepare()) or 0, [])
        *_, set_aside, conflicts = capfd.readouterr().out.splitlines()
        folder = project.folder / "data/metadata/PETS"
        assert set_aside == f"Set aside: 1 no picture suffix; {folder}/set_aside.csv names each file."
        assert conflicts == (
            f"2 pictures lie in more than one class with the same content; {folder}/conflicts.csv names them."
        )
    write_summaries(tmp_path / "train_info", project.prepare())
    for place in (project.folder / "data/metadata/PETS", tmp_path / "train_info"):
        with (place / "conflicts.csv").open(newline="") as file:
            rows = [(row["path"], row["label"]) for row in csv.DictReader(file)]
        assert rows == [("cat/0.png", "cat"), ("dog/also, a cat.png", "dog")]


def test_too_many_bad_pictures_stop_a_run_with_the_numbers(project: _Project) -> None:
    """Above the stated share it is no accident."""
    for number in range(3):
        (project.dataset / f"cat/bad{number}.jpg").write_bytes(b"x")

    with pytest.raises(DatasetError, match=r"3 of 11 pictures cannot be used \(3 unsupported_format"):
        project.prepare(data=DATA.model_copy(update={"max_bad_share": 0.1}))
    assert not (project.folder / "data/metadata/PETS/data_info.yaml").exists()


def test_a_catalog_that_is_ready_is_checked_against_the_share_of_now(project: _Project) -> None:
    """The run that made it may have allowed more."""
    (project.dataset / "cat/bad.jpg").write_bytes(b"x")
    project.prepare()

    with pytest.raises(DatasetError, match="1 of 9 pictures cannot be used"):
        project.prepare(data=DATA.model_copy(update={"max_bad_share": 0.1}))


def test_a_picture_that_could_not_be_opened_is_tried_again(project: _Project) -> None:
    """Permissions, a file server: what was wrong passes without a new date of the file. Only such pictures are opened again."""
    project.away = {"cat/0.png"}
    assert project.prepare().counts()["set_aside"] == {"unreadable": 1}

    project.away = set()
    mended = project.prepare()
    assert project.opened == ["cat/0.png"]
    assert mended.counts()["set_aside"] == {}

    assert project.prepare().reused
    assert project.opened == []


def test_a_class_with_fewer_than_three_different_pictures_is_refused(project: _Project) -> None:
    """Copies do not count: they cannot be on both sides."""
    for number in (1, 2, 3):
        shutil.copy(project.dataset / "cat/0.png", project.dataset / f"cat/{number}.png")

    with pytest.raises(DatasetError, match=r"1 of 2 classes have fewer than 3 different usable pictures \(cat has 1\)"):
        project.prepare()


def test_a_metadata_folder_that_cannot_be_written_is_said_in_one_line(project: _Project) -> None:
    """A file where the folder should be."""
    (project.folder / "data/metadata").write_text("in the way")

    with pytest.raises(OutputError, match=r"cannot be written.*paths\.metadata"):
        project.prepare()


def test_a_damaged_catalog_is_made_anew(project: _Project) -> None:
    """It is a cache of what the folder says."""
    project.prepare()
    (project.folder / "data/metadata/PETS/catalog.parquet").write_bytes(b"torn")

    catalog = project.prepare()

    assert not catalog.reused
    assert len(project.opened) == 8
