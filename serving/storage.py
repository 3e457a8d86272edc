"""Where pictures are read and results are written: a folder of this machine, or a bucket.

A path inside a storage is relative, with `/`; names that are not UTF-8 are held as Python holds them (surrogateescape).
"""

import contextlib
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from typing_extensions import override

from classifier import image
from classifier.errors import BadImage, ConfigError, OutputError
from cluster import claim
from cluster.bucket import Bucket, open_place

# What the job keeps beside the results: ledger, files that are being written, lock, log.
BOOKS = ".batch"
_SCRATCH = f"{BOOKS}/scratch"


class Storage(Protocol):
    """Reads and writes by relative path. Picklable: it travels to the workers."""

    def uri(self, path: str) -> str:
        """What a person would type: an absolute local path, or `s3://...`."""

    def read(self, path: str) -> bytes:
        """Read a file. Raises an OSError, FileNotFoundError when it is not there."""

    def read_pictures(self, paths: Sequence[str]) -> Iterator[bytes | BadImage]:
        """The bytes of each picture, or why it cannot be read, in order. Result files are read in the same way."""

    def writing(self, path: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """A file that is there, whole, when the block ends, and not before. Raises OutputError."""

    def write_all(self, files: Iterable[tuple[str, bytes]]) -> None:
        """Write many small files as `writing` does."""

    def names(self, folder: str) -> list[str]:
        """The files directly in a folder, sorted; none when there is no such folder."""

    def remove(self, paths: Iterable[str]) -> None:
        """Remove files; one that is gone is no error."""


@dataclass(frozen=True)
class LocalStorage(Storage):
    """A folder of this machine, or of a file system that every machine of the cluster has at the same place."""

    root: str  # absolute

    @override
    def uri(self, path: str) -> str:
        return os.path.join(self.root, path) if path else self.root  # noqa: PTH118 - called for every picture

    @override
    def read(self, path: str) -> bytes:
        return Path(self.uri(path)).read_bytes()

    @override
    def read_pictures(self, paths: Sequence[str]) -> Iterator[bytes | BadImage]:
        for path in paths:
            try:
                yield image.read_file(self.uri(path))
            except BadImage as error:
                yield error

    @override
    @contextlib.contextmanager
    def writing(self, path: str) -> Iterator[IO[bytes]]:
        target = self.uri(path)
        # All in one place, so that what a killed run leaves behind is found again.
        scratch = self.uri(f"{_SCRATCH}/{uuid.uuid4().hex}")
        try:
            with _open_new(scratch) as stream:
                yield stream
            _rename(scratch, target)
        except OSError as error:
            _forget(scratch)
            raise OutputError(f"{target} cannot be written: {error.strerror or error}") from error
        except BaseException:
            _forget(scratch)
            raise

    @override
    def write_all(self, files: Iterable[tuple[str, bytes]]) -> None:
        for path, data in files:
            with self.writing(path) as stream:
                stream.write(data)

    @override
    def names(self, folder: str) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return sorted(os.listdir(self.uri(folder)))  # noqa: PTH208
        return []

    @override
    def remove(self, paths: Iterable[str]) -> None:
        for path in paths:
            Path(self.uri(path)).unlink(missing_ok=True)


@contextlib.contextmanager
def claimed(storage: Storage) -> Iterator[None]:
    """Keep other runs out of a results folder while this one writes there, and clear away what a killed one left.

    A bucket has no locks: there it does nothing.

    Raises:
        OutputError: another run is writing there, or the folder cannot be written.
    """
    if not isinstance(storage, LocalStorage):
        yield
        return
    lock = Path(storage.uri(f"{BOOKS}/lock"))
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise OutputError(f"predict.output_dir={storage.root} cannot be written: {error.strerror}") from error
    taken = f"predict.output_dir={storage.root}: another run is writing there; wait for it, or set another folder"
    with claim.claimed(lock, taken=taken):
        storage.remove(f"{_SCRATCH}/{name}" for name in storage.names(_SCRATCH))
        yield


def open_storage(place: str, *, key: str) -> Storage:
    """Open the storage that a user names.

    Args:
        place: a local path, `file://...`, or a URL that pyarrow or fsspec knows: `s3://`, `gs://`, `hdfs://`, ...
        key: the setting that it comes from, for the message.

    Raises:
        ConfigError: the URL's scheme is not known, or its driver is not installed.
    """
    if not place.strip():
        raise ConfigError(f"{key}: empty; expected a folder or a URL such as s3://bucket/folder")
    found = open_place(place, key=key)
    return found if isinstance(found, Bucket) else LocalStorage(str(found.expanduser().absolute()))


def _open_new(path: str) -> IO[bytes]:
    try:
        return open(path, "xb")
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        return open(path, "xb")


def _rename(scratch: str, target: str) -> None:
    try:
        os.replace(scratch, target)  # noqa: PTH105 - called for every picture
    except FileNotFoundError:
        os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120
        os.replace(scratch, target)  # noqa: PTH105


def _forget(scratch: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(scratch)  # noqa: PTH108
