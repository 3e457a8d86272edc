"""Every picture below a folder, met one folder at a time: a million paths are never held at once.

Real folders come first, in the order of their names; then the folders that symlinks lead to, each once, however many
links or loops there are.
"""

import itertools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from classifier.errors import ConfigError
from classifier.image import SUFFIXES
from cluster.bucket import Bucket
from serving.storage import LocalStorage, Storage

_FIRST_CHUNK = 8


class Found(NamedTuple):
    """One thing that a listing met."""

    path: str  # relative, with /
    fault: str | None = None  # a folder that cannot be listed; None for a picture


class Chunk(NamedTuple):
    """Neighbours in a listing: they are read, predicted and written together."""

    number: int
    found: Sequence[Found]
    others: int  # files met so far, in the whole listing, that have no picture's suffix


def check_input(storage: Storage, *, key: str) -> None:
    """Fail early when there is nothing that could be listed.

    Raises:
        ConfigError: no such folder, or it is a file.
    """
    if isinstance(storage, LocalStorage):
        is_folder, exists = os.path.isdir(storage.root), os.path.exists(storage.root)  # noqa: PTH110, PTH112
    else:
        assert isinstance(storage, Bucket)
        from pyarrow.fs import FileType

        try:
            kind = storage.filesystem.get_file_info(storage.root).type
        except Exception as error:  # every filesystem of fsspec has errors of its own
            raise ConfigError(f"{key}={storage.url} cannot be reached: {' '.join(str(error).split())[:300]}") from error
        is_folder, exists = kind == FileType.Directory, kind != FileType.NotFound
    if not exists:
        raise ConfigError(f"{key}={storage.uri('')}: no such folder; put the pictures there, or set {key}=FOLDER")
    if not is_folder:
        raise ConfigError(f"{key}={storage.uri('')} is not a folder; for one picture: file=PATH")


def list_chunks(storage: Storage, *, size: int) -> Iterator[Chunk]:
    """Cut a listing into chunks.

    Args:
        storage: what is listed.
        size: pictures in a chunk. The first few are smaller, so that answers begin to come soon.
    """
    found: list[Found] = []
    number, others, limit = 0, 0, min(size, _FIRST_CHUNK)
    for item in list_pictures(storage):
        if item is None:
            others += 1
            continue
        found.append(item)
        if len(found) == limit:
            yield Chunk(number, found, others)
            found, number, limit = [], number + 1, min(size, 2 * limit)
    yield Chunk(number, found, others)  # the last one may be empty: it carries the final counts


def holds_fewer_than(storage: Storage, count: int) -> bool:
    """Whether a listing ends before `count` pictures; stops listing there."""
    pictures = (item for item in list_pictures(storage) if item is not None)
    return sum(1 for _ in itertools.islice(pictures, count)) < count


def list_pictures(storage: Storage) -> Iterator[Found | None]:
    """Every file with a picture's suffix, and a None for every other file."""
    if isinstance(storage, LocalStorage):
        return _list_local(storage.root)
    assert isinstance(storage, Bucket)
    return _list_remote(storage)


def _list_local(root: str) -> Iterator[Found | None]:
    links: deque[str] = deque()
    seen: set[tuple[int, int]] = set()
    yield from _list_tree(root, "", links, seen)
    while links:
        yield from _list_tree(root, links.popleft(), links, seen)


def _list_tree(root: str, top: str, links: deque[str], seen: set[tuple[int, int]]) -> Iterator[Found | None]:
    pending = [top]
    while pending:
        folder = pending.pop()
        place = os.path.join(root, folder)  # noqa: PTH118
        try:
            status = os.stat(place)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            files, folders, linked = _scan(place)
        except OSError as error:
            yield Found(folder or ".", f"folder cannot be listed: {error.strerror}")
            continue
        prefix = f"{folder}/" if folder else ""
        for name in files:
            yield Found(prefix + name) if _is_picture(name) else None
        links.extend(prefix + name for name in linked)
        pending.extend(prefix + name for name in reversed(folders))


def _scan(place: str) -> tuple[list[str], list[str], list[str]]:
    """Names of the files, of the folders, and of the links to folders in a folder, each sorted."""
    files, folders, linked = [], [], []
    with os.scandir(place) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            elif entry.is_symlink() and os.path.isdir(entry.path):  # noqa: PTH112 - entry.is_dir() raises on a loop
                linked.append(entry.name)
            else:
                files.append(entry.name)
    return sorted(files), sorted(folders), sorted(linked)


def _list_remote(storage: Bucket) -> Iterator[Found | None]:
    from pyarrow.fs import FileSelector, FileType

    pending = [storage.root]
    while pending:
        folder = pending.pop()
        try:
            infos = storage.filesystem.get_file_info(FileSelector(folder))
        except Exception as error:  # every filesystem of fsspec has errors of its own
            path = folder[len(storage.root) :].strip("/") or "."
            yield Found(path, f"folder cannot be listed: {' '.join(str(error).split())[:200]}")
            continue
        infos.sort(key=lambda info: info.path)
        for info in infos:
            if info.type != FileType.Directory:
                path = info.path[len(storage.root) :].strip("/")
                yield Found(path) if _is_picture(info.base_name) else None
        pending.extend(info.path for info in reversed(infos) if info.type == FileType.Directory)


def _is_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES
