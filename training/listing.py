"""Every file of a dataset, before any is opened."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow as pa

from classifier.errors import ConfigError, DatasetError
from classifier.image import SUFFIXES
from cluster.bucket import Bucket, open_place
from training.root import Root, folders

NO_CLASS_FOLDER, HIDDEN, NO_PICTURE_SUFFIX = "no_class_folder", "hidden", "no_picture_suffix"
NAME_NOT_UTF8 = "name_not_utf8"
FEWEST_PICTURES = 3  # of a class: one for each split
_SHOWN_NAMES = 5


class Entry(NamedTuple):
    """A file that was met."""

    path: str  # relative to the dataset, with /
    label: str | None  # the class folder's name; None for a file beside the class folders
    size_bytes: int
    modified_ns: int
    reason: str | None  # why it is not even opened; None for a candidate


# The same in Arrow's form; `aside` is why a file is not even opened.
LISTING = pa.schema(
    {
        "path": pa.string(),
        "label": pa.string(),
        "size_bytes": pa.int64(),
        "modified_ns": pa.int64(),
        "aside": pa.string(),
    }
)
_ROWS_AT_A_TIME = 1000


def find_dataset(name: str, *, raw_data: str | Path) -> Root:
    """The folder of a dataset.

    Raises:
        DatasetError: the name is a path, or no such dataset is there; names those that are.
        ConfigError: `raw_data` is a URL that cannot be opened or listed.
    """
    place = open_place(raw_data, key="paths.raw_data")
    try:
        there = [] if isinstance(place, Path) and not place.is_dir() else folders(place)
    except OSError as error:
        raise ConfigError(f"paths.raw_data={error}") from error
    found = f"datasets in {place}: {', '.join(there) or 'none'}"
    if name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise DatasetError(f"ds={name} is a path; expected the name of a folder in {place} ({found})")
    if name not in there:
        raise DatasetError(
            f"ds={name}: no such dataset; put its pictures in {place}/{name}/<class>/<picture> ({found})"
        )
    return place.below(name) if isinstance(place, Bucket) else place / name


def list_dataset(root: Root) -> list[Entry]:
    """List every file below a dataset's folder, sorted by path.

    Symlinks are followed, a folder that was entered already is not entered again (loops end).

    Raises:
        DatasetError: it cannot be listed, or there are fewer than two class folders.
    """
    return _list_bucket(root) if isinstance(root, Bucket) else _list_local(root)


def tabulate(entries: Sequence[Entry]) -> pa.Table:
    """The entries as a table with the schema `LISTING`: as Python's objects they take five times its room."""
    parts = [LISTING.empty_table()]
    for start in range(0, len(entries), _ROWS_AT_A_TIME):
        columns = zip(*entries[start : start + _ROWS_AT_A_TIME], strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, LISTING, strict=True)]
        parts.append(pa.Table.from_arrays(arrays, schema=LISTING))
    return pa.concat_tables(parts).combine_chunks()


def check_candidates(name: str, root: Root, entries: Sequence[Entry]) -> None:
    """Find out early, before any file is opened, whether each class folder may have pictures enough.

    Raises:
        DatasetError: one has fewer files that may be pictures than a class needs.
    """
    counts = Counter(entry.label for entry in entries if entry.reason is None)
    passed_over = [entry.path for entry in entries if entry.reason == NO_PICTURE_SUFFIX]
    refuse_small_classes(name, root, counts, what="pictures", passed_over=passed_over)


def refuse_small_classes(
    name: str, root: Root, counts: "Counter[str | None]", *, what: str, passed_over: Sequence[str]
) -> None:
    """Refuse a dataset with a class that cannot be split.

    Args:
        name: the dataset.
        root: its folder, which says what classes there are: one without a file is one too.
        counts: class -> how many it has of `what`.
        what: what was counted, for the message.
        passed_over: the files that are not opened because of their suffix.

    Raises:
        DatasetError: a class has fewer than three.
    """
    classes = [label for label in folders(root) if not label.startswith(".")]
    small = {label: counts[label] for label in classes if counts[label] < FEWEST_PICTURES}
    if not small:
        return
    shown = ", ".join(f"{label} has {count}" for label, count in list(small.items())[:_SHOWN_NAMES])
    message = (
        f"{name}: {len(small)} of {len(classes)} classes have fewer than {FEWEST_PICTURES} {what} ({shown}); need one for "
        "each of train, val and test: add pictures, or move the class folder away"
    )
    others = [PurePosixPath(path) for path in passed_over]
    suffixes = Counter(path.suffix.lower() or "no suffix" for path in others if path.parts[0] in small)
    if suffixes:
        found = ", ".join(f"{count:,} {suffix}" for suffix, count in suffixes.most_common(_SHOWN_NAMES))
        message += (
            f"; passed over because of the suffix: {found}; convert pictures to one of {', '.join(sorted(SUFFIXES))}"
        )
    raise DatasetError(message)


def _check_classes(root: Root, classes: list[str]) -> None:
    for label in classes:
        try:
            label.encode()
        except UnicodeEncodeError:  # a class's name stands in the model, in JSON and on the page
            shown = label.encode(errors="backslashreplace").decode()
            raise DatasetError(f"{root}: the name of the class folder {shown} is not UTF-8; rename it") from None
    if len(classes) < 2:
        held = f"has 1 class folder ({classes[0]})" if classes else "has no class folders"
        raise DatasetError(f"{root} {held}; need at least 2: {root}/<class>/<picture>")


def _list_bucket(root: Bucket) -> list[Entry]:
    """One listing, however deep: a bucket has no folders to enter, only names with a / in them."""
    try:
        found = root.listing(recursive=True)
    except OSError as error:
        raise DatasetError(str(error)) from error
    below = [(PurePosixPath(info.path).relative_to(root.root), info) for info in found]
    _check_classes(
        root, [path.name for path, info in below if not info.is_file and len(path.parts) == 1 and path.name[0] != "."]
    )
    entries = []
    for path, info in below:
        if info.is_file:
            label = path.parts[0] if len(path.parts) > 1 and path.parts[0][0] != "." else None
            reason = NO_CLASS_FOLDER if label is None else _reason(path.name)
            entries.append(Entry(str(path), label, info.size or 0, info.mtime_ns or 0, reason))
    return sorted(entries)


def _list_local(root: Path) -> list[Entry]:
    try:
        top = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise DatasetError(f"{root} cannot be read: {error.strerror}") from error
    classes = [entry.name for entry in top if entry.is_dir() and not entry.name.startswith(".")]
    _check_classes(root, classes)
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
        else:
            yield _entry(child, path, label, _reason(child.name))


def _reason(name: str) -> str | None:
    """Why a file in a class folder is not opened."""
    if name.startswith("."):
        return HIDDEN
    return None if PurePosixPath(name).suffix.lower() in SUFFIXES else NO_PICTURE_SUFFIX


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
