"""Every file of a dataset, before any is opened."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from classifier.errors import DatasetError
from classifier.image import SUFFIXES

NO_CLASS_FOLDER, HIDDEN, NO_PICTURE_SUFFIX = "no_class_folder", "hidden", "no_picture_suffix"
NAME_NOT_UTF8 = "name_not_utf8"


class Entry(NamedTuple):
    """A file that was met."""

    path: str  # relative to the dataset, with /
    label: str | None  # the class folder's name; None for a file beside the class folders
    size_bytes: int
    modified_ns: int
    reason: str | None  # why it is not even opened; None for a candidate


def find_dataset(name: str, *, raw_data: Path) -> Path:
    """The folder of a dataset.

    Raises:
        DatasetError: the name is a path, or no such dataset is there; names those that are.
    """
    there = sorted(entry.name for entry in raw_data.iterdir() if entry.is_dir()) if raw_data.is_dir() else []
    found = f"datasets in {raw_data}: {', '.join(there) or 'none'}"
    if name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise DatasetError(f"ds={name} is a path; expected the name of a folder in {raw_data} ({found})")
    folder = raw_data / name
    if not folder.is_dir():
        raise DatasetError(
            f"ds={name}: no such dataset; put its pictures in {raw_data}/{name}/<class>/<picture> ({found})"
        )
    return folder


def list_dataset(root: Path) -> list[Entry]:
    """List every file below a dataset's folder, sorted by path.

    Symlinks are followed, a folder that was entered already is not entered again (loops end).

    Raises:
        DatasetError: there are fewer than two class folders.
    """
    try:
        top = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise DatasetError(f"{root} cannot be read: {error.strerror}") from error
    classes = [entry.name for entry in top if entry.is_dir() and not entry.name.startswith(".")]
    if len(classes) < 2:
        held = f"has 1 class folder ({classes[0]})" if classes else "has no class folders"
        raise DatasetError(f"{root} {held}; need at least 2: {root}/<class>/<picture>")
    entries = [
        _entry(entry, entry.name, None, NO_CLASS_FOLDER) for entry in top if not entry.is_dir() or entry.name[0] == "."
    ]
    seen = {root.resolve()}
    for label in classes:
        entries.extend(_below(root / label, label, label, seen))
    return sorted(entries)


def _below(folder: Path, relative: str, label: str, seen: set[Path]) -> Iterator[Entry]:
    real = folder.resolve()
    if real in seen:
        return
    seen.add(real)
    try:
        children = list(os.scandir(folder))
    except OSError as error:
        raise DatasetError(
            f"{folder} cannot be read: {error.strerror}; mend its permissions or move it away"
        ) from error
    for child in children:
        path = f"{relative}/{child.name}"
        if child.is_dir():
            yield from _below(folder / child.name, path, label, seen)
        elif child.name.startswith("."):
            yield _entry(child, path, label, HIDDEN)
        elif Path(child.name).suffix.lower() not in SUFFIXES:
            yield _entry(child, path, label, NO_PICTURE_SUFFIX)
        else:
            yield _entry(child, path, label, None)


def _entry(entry: "os.DirEntry[str]", path: str, label: str | None, reason: str | None) -> Entry:
    try:
        path.encode()
    except UnicodeEncodeError:  # bytes that no Parquet string holds
        return Entry(path.encode(errors="backslashreplace").decode(), label, 0, 0, NAME_NOT_UTF8)
    try:
        status = entry.stat()
    except OSError:  # a dangling symlink: opening it will say so
        return Entry(path, label, 0, 0, reason)
    return Entry(path, label, status.st_size, status.st_mtime_ns, reason)
