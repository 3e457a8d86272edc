"""Every file of a dataset is met once, and said what it is."""

import os
from pathlib import Path

import pytest

from classifier.errors import DatasetError
from training.listing import (
    HIDDEN,
    LISTING,
    NAME_NOT_UTF8,
    NO_CLASS_FOLDER,
    NO_PICTURE_SUFFIX,
    Entry,
    find_dataset,
    list_dataset,
    tabulate,
)


def _touch(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x")
    return file


def test_files_of_any_depth_and_any_case_belong_to_their_class_folder(tmp_path: Path) -> None:
    """A class is the first folder below the dataset, whatever lies between it and the picture."""
    for name in ("cat/a.JPG", "cat/2024/june/b.jpeg", "dog/c.Png", "dog/d.tiff", "dog/e.WebP"):
        _touch(tmp_path / name)

    entries = list_dataset(tmp_path)

    assert [(entry.path, entry.label, entry.reason) for entry in entries] == [
        ("cat/2024/june/b.jpeg", "cat", None),
        ("cat/a.JPG", "cat", None),
        ("dog/c.Png", "dog", None),
        ("dog/d.tiff", "dog", None),
        ("dog/e.WebP", "dog", None),
    ]


def test_what_is_no_picture_is_listed_with_its_reason(tmp_path: Path) -> None:
    """Nothing is dropped silently: a stray file has a row that says why it is not used."""
    for name in ("cat/a.jpg", "dog/b.jpg", "cat/notes.txt", "cat/.DS_Store", "readme.md", "cat/._a.jpg"):
        _touch(tmp_path / name)

    reasons = {entry.path: entry.reason for entry in list_dataset(tmp_path) if entry.reason}

    assert reasons == {
        "cat/notes.txt": NO_PICTURE_SUFFIX,
        "cat/.DS_Store": HIDDEN,
        "cat/._a.jpg": HIDDEN,
        "readme.md": NO_CLASS_FOLDER,
    }


def test_loops_of_symlinks_end_and_a_name_that_is_not_utf8_is_set_aside(tmp_path: Path) -> None:
    """A link back up is entered once at most; bytes that are no text cannot stand in a catalog."""
    _touch(tmp_path / "cat/a.jpg")
    _touch(tmp_path / "dog/b.jpg")
    (tmp_path / "cat/again").symlink_to(tmp_path)
    (tmp_path / "cat/self").symlink_to(tmp_path / "cat")
    Path(os.fsdecode(os.fsencode(tmp_path / "dog") + b"/\xff.jpg")).write_bytes(b"x")

    entries = list_dataset(tmp_path)

    assert sorted((entry.path, entry.reason) for entry in entries) == [
        ("cat/a.jpg", None),
        ("dog/\\udcff.jpg", NAME_NOT_UTF8),
        ("dog/b.jpg", None),
    ]


def test_a_class_folder_whose_name_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """Escaped, it would be another name than the one that the person gave it, in every answer of the model."""
    for name in ("cat", "dog", os.fsdecode(b"\xff\xfe")):
        _touch(tmp_path / name / "a.jpg")

    with pytest.raises(DatasetError, match=r"the name of the class folder \\udcff\\udcfe is not UTF-8; rename it$"):
        list_dataset(tmp_path)


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".", "/etc", "a\\b"])
def test_a_dataset_name_that_is_a_path_is_refused(tmp_path: Path, name: str) -> None:
    """The name becomes folders under metadata and models: it must not climb."""
    with pytest.raises(DatasetError, match="is a path"):
        find_dataset(name, raw_data=tmp_path)


def test_a_missing_dataset_names_those_that_exist(tmp_path: Path) -> None:
    """A typo is mended by reading the message."""
    (tmp_path / "EXAMS").mkdir()

    with pytest.raises(DatasetError, match=r"datasets in .*: EXAMS"):
        find_dataset("EXAM", raw_data=tmp_path)


@pytest.mark.parametrize(("folders", "said"), [([], "no class folders"), (["cat"], r"1 class folder \(cat\)")])
def test_fewer_than_two_classes_are_refused(tmp_path: Path, folders: list[str], said: str) -> None:
    """One class cannot be told apart from anything."""
    for folder in folders:
        _touch(tmp_path / folder / "a.jpg")

    with pytest.raises(DatasetError, match=said):
        list_dataset(tmp_path)


@pytest.mark.parametrize("count", [0, 1, 2500])
def test_a_table_holds_every_entry_in_its_place(count: int) -> None:
    entries = [
        Entry(f"cat/{place}.png", None if place % 2 else "cat", place, 2 * place, None) for place in range(count)
    ]

    table = tabulate(entries)

    assert table.schema == LISTING
    assert [tuple(row.values()) for row in table.to_pylist()] == [tuple(entry) for entry in entries]
