"""The lazy listing of an input folder."""

import os
from pathlib import Path

import pytest

from serving.listing import holds_fewer_than, list_chunks, list_pictures
from serving.storage import LocalStorage

NOBODY = 65_534


def _listed(root: Path) -> list[str]:
    return [found.path for found in list_pictures(LocalStorage(str(root))) if found is not None]


def _touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def test_pictures_come_in_the_order_of_their_names_folder_by_folder(tmp_path: Path) -> None:
    _touch(*(tmp_path / name for name in ("b/2.jpg", "b/1.png", "a/x/3.jpg", "a/4.jpg", "z.jpg", "a.txt")))

    assert _listed(tmp_path) == ["z.jpg", "a/4.jpg", "a/x/3.jpg", "b/1.png", "b/2.jpg"]


def test_a_symlink_that_leads_back_up_makes_no_loop(tmp_path: Path) -> None:
    _touch(tmp_path / "a" / "1.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a")

    assert _listed(tmp_path) == ["a/1.jpg"]


def test_a_linked_folder_is_followed_once_and_a_real_path_wins(tmp_path: Path) -> None:
    """Two links to one folder outside give its pictures once; a link to a folder that is in the tree adds nothing."""
    _touch(tmp_path / "outside" / "1.jpg", tmp_path / "in" / "real" / "2.jpg")
    for name, place in (("a", "outside"), ("b", "outside"), ("c", "in/real")):
        (tmp_path / "in" / name).symlink_to(tmp_path / place)

    assert _listed(tmp_path / "in") == ["real/2.jpg", "a/1.jpg"]


def test_a_linked_picture_is_a_picture(tmp_path: Path) -> None:
    _touch(tmp_path / "in" / "1.jpg")
    (tmp_path / "in" / "2.jpg").symlink_to(tmp_path / "in" / "1.jpg")

    assert _listed(tmp_path / "in") == ["1.jpg", "2.jpg"]


@pytest.mark.skipif(os.geteuid() != 0, reason="takes on another user's rights")
def test_a_folder_that_cannot_be_listed_is_accounted_for(tmp_path: Path) -> None:
    _touch(tmp_path / "closed" / "1.jpg", tmp_path / "open" / "2.jpg")
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    (tmp_path / "closed").chmod(0o700)
    os.seteuid(NOBODY)
    try:
        found = [item for item in list_pictures(LocalStorage(str(tmp_path))) if item is not None]
    finally:
        os.seteuid(0)

    assert [item.path for item in found] == ["closed", "open/2.jpg"]
    assert [item.fault for item in found] == ["folder cannot be listed: Permission denied", None]


def test_the_first_chunks_are_small_and_the_last_one_has_the_final_counts(tmp_path: Path) -> None:
    _touch(*(tmp_path / f"{number:03}.jpg" for number in range(100)), tmp_path / "notes.txt", tmp_path / "readme.md")

    chunks = list(list_chunks(LocalStorage(str(tmp_path)), size=32))

    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    assert [len(chunk.found) for chunk in chunks] == [8, 16, 32, 32, 12]
    assert chunks[-1].others == 2
    assert [item.path for chunk in chunks for item in chunk.found] == _listed(tmp_path)


def test_listing_is_lazy(tmp_path: Path) -> None:
    """The first chunk comes before later folders are looked at, so it can be predicted while the listing goes on."""
    _touch(*(tmp_path / "a" / f"{number}.jpg" for number in range(8)), tmp_path / "b" / "late.jpg")
    chunks = list_chunks(LocalStorage(str(tmp_path)), size=8)

    first = next(chunks)
    _touch(tmp_path / "b" / "later.jpg")

    assert len(first.found) == 8
    assert [item.path for item in next(chunks).found] == ["b/late.jpg", "b/later.jpg"]


def test_a_small_folder_is_told_from_a_large_one_without_listing_it_all(tmp_path: Path) -> None:
    _touch(*(tmp_path / f"{number}.jpg" for number in range(5)), tmp_path / "notes.txt")
    storage = LocalStorage(str(tmp_path))

    assert holds_fewer_than(storage, 6)
    assert not holds_fewer_than(storage, 5)
    assert not holds_fewer_than(storage, 0)
