"""Where pictures are read and results are written: a folder of this machine, or a bucket.

A path inside a storage is relative, with `/`; names that are not UTF-8 are held as Python holds them (surrogateescape).
"""

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from classifier import image
from classifier.errors import BadImage, ConfigError, NotAFile, OutputError, TooManyBytes

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

# What the job keeps beside the results: ledger, files that are being written, lock, log.
BOOKS = ".batch"
_SCRATCH = f"{BOOKS}/scratch"
# A request to a bucket takes tens of milliseconds, nearly all of it waiting.
_REQUESTS_AT_A_TIME = 16


class Storage(Protocol):
    """Reads and writes by relative path. Picklable: it travels to the workers."""

    def uri(self, path: str) -> str:
        """What a person would type: an absolute local path, or `s3://...`."""

    def read(self, path: str) -> bytes:
        """Read a file. Raises an OSError, FileNotFoundError when it is not there."""

    def read_pictures(self, paths: Sequence[str]) -> Iterator[bytes | BadImage]:
        """The bytes of each picture, or why it cannot be read, in order."""

    def writing(self, path: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """A file that is there, whole, when the block ends, and not before. Raises OutputError."""

    def write_all(self, files: Iterable[tuple[str, bytes]]) -> None:
        """Write many small files as `writing` does."""

    def existing(self, paths: Sequence[str]) -> list[bool]:
        """Whether each is a file."""

    def names(self, folder: str) -> list[str]:
        """The files directly in a folder, sorted; none when there is no such folder."""

    def remove(self, paths: Iterable[str]) -> None:
        """Remove files; one that is gone is no error."""


@dataclass(frozen=True)
class LocalStorage:
    """A folder of this machine, or of a file system that every machine of the cluster has at the same place."""

    root: str  # absolute

    def uri(self, path: str) -> str:
        return os.path.join(self.root, path) if path else self.root  # noqa: PTH118 - called for every picture

    def read(self, path: str) -> bytes:
        return Path(self.uri(path)).read_bytes()

    def read_pictures(self, paths: Sequence[str]) -> Iterator[bytes | BadImage]:
        for path in paths:
            try:
                yield image.read_file(self.uri(path))
            except BadImage as error:
                yield error

    @contextlib.contextmanager
    def writing(self, path: str) -> Iterator[IO[bytes]]:
        target = self.uri(path)
        # All in one place, so that what a killed run leaves behind is found again.
        scratch = self.uri(f"{_SCRATCH}/{uuid.uuid4().hex}")
        try:
            with _open_new(scratch) as stream:
                yield stream
            try:
                os.replace(scratch, target)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120 - called for every picture
                os.replace(scratch, target)
        except OSError as error:
            raise OutputError(f"{target} cannot be written: {error.strerror or error}") from error
        finally:
            with contextlib.suppress(OSError):
                os.unlink(scratch)  # noqa: PTH108

    def write_all(self, files: Iterable[tuple[str, bytes]]) -> None:
        for path, data in files:
            with self.writing(path) as stream:
                stream.write(data)

    def existing(self, paths: Sequence[str]) -> list[bool]:
        return [os.path.isfile(self.uri(path)) for path in paths]  # noqa: PTH113 - as in uri

    def names(self, folder: str) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return sorted(os.listdir(self.uri(folder)))  # noqa: PTH208
        return []

    def remove(self, paths: Iterable[str]) -> None:
        for path in paths:
            Path(self.uri(path)).unlink(missing_ok=True)


@dataclass(frozen=True)
class RemoteStorage:
    """A bucket, or anything else that pyarrow or fsspec reaches by a URL."""

    filesystem: "FileSystem"
    root: str  # in the filesystem's own form: bucket/prefix
    url: str  # as the user wrote it, no / at the end

    def uri(self, path: str) -> str:
        return f"{self.url}/{path}" if path else self.url

    def place(self, path: str) -> str:
        """A path in the filesystem's own form."""
        return f"{self.root}/{path}" if path else self.root

    def read(self, path: str) -> bytes:
        with self.filesystem.open_input_file(self.place(path)) as file:
            return bytes(file.read())

    def read_pictures(self, paths: Sequence[str]) -> Iterator[bytes | BadImage]:
        # A window: all pictures of a large chunk at once might not fit in memory.
        with ThreadPoolExecutor(_REQUESTS_AT_A_TIME) as pool:
            for start in range(0, len(paths), _REQUESTS_AT_A_TIME):
                yield from pool.map(self._read_picture, paths[start : start + _REQUESTS_AT_A_TIME])

    @contextlib.contextmanager
    def writing(self, path: str) -> Iterator[IO[bytes]]:
        # A bucket shows an object when its upload is complete, so nothing needs to be renamed.
        place = self.place(path)
        try:
            try:
                stream = self.filesystem.open_output_stream(place)
            except FileNotFoundError:  # a file system with real folders
                self.filesystem.create_dir(place.rpartition("/")[0], recursive=True)
                stream = self.filesystem.open_output_stream(place)
            try:
                with stream:
                    yield stream
            except BaseException:
                with contextlib.suppress(Exception):  # closing has completed the upload of what is only a part
                    self.filesystem.delete_file(place)
                raise
        except Exception as error:  # every filesystem of fsspec has errors of its own
            raise OutputError(f"{self.uri(path)} cannot be written: {_sentence(error)}") from error

    def write_all(self, files: Iterable[tuple[str, bytes]]) -> None:
        with ThreadPoolExecutor(_REQUESTS_AT_A_TIME) as pool:
            for _ in pool.map(self._write_one, files):
                pass

    def existing(self, paths: Sequence[str]) -> list[bool]:
        return [info.is_file for info in self.filesystem.get_file_info([self.place(path) for path in paths])]

    def names(self, folder: str) -> list[str]:
        from pyarrow.fs import FileSelector

        infos = self.filesystem.get_file_info(FileSelector(self.place(folder), allow_not_found=True))
        return sorted(info.base_name for info in infos if info.is_file)

    def remove(self, paths: Iterable[str]) -> None:
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.delete_file(self.place(path))

    def _read_picture(self, path: str) -> bytes | BadImage:
        try:
            with self.filesystem.open_input_file(self.place(path)) as file:
                size = file.size()
                if size > image.MAX_BYTES:
                    return TooManyBytes(f"{size:,} bytes; at most {image.MAX_BYTES:,} are read")
                return bytes(file.read())
        except IsADirectoryError:
            return NotAFile("a folder, not a file")
        except Exception as error:  # as in writing
            return BadImage(f"cannot be read: {_sentence(error)}")

    def _write_one(self, file: tuple[str, bytes]) -> None:
        path, data = file
        with self.writing(path) as stream:
            stream.write(data)


@contextlib.contextmanager
def claimed(storage: LocalStorage | RemoteStorage) -> Iterator[None]:
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
        file = lock.open("a")
    except OSError as error:
        raise OutputError(f"predict.output_dir={storage.root} cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it however the process ends
        except BlockingIOError as error:
            raise OutputError(
                f"predict.output_dir={storage.root}: another run is writing there; wait for it, or set another folder"
            ) from error
        storage.remove(f"{_SCRATCH}/{name}" for name in storage.names(_SCRATCH))
        yield


def open_storage(place: str, *, key: str) -> LocalStorage | RemoteStorage:
    """Open the storage that a user names.

    Args:
        place: a local path, `file://...`, or a URL that pyarrow or fsspec knows: `s3://`, `gs://`, `hdfs://`, ...
        key: the setting that it comes from, for the message.

    Raises:
        ConfigError: the URL's scheme is not known, or its driver is not installed.
    """
    if not place.strip():
        raise ConfigError(f"{key}: empty; expected a folder or a URL such as s3://bucket/folder")
    scheme, separator, rest = place.partition("://")
    if not separator or scheme == "file":
        return LocalStorage(str(Path(rest if separator else place).expanduser().absolute()))
    filesystem, root = _open_filesystem(place, scheme, key)
    return RemoteStorage(filesystem, root.rstrip("/"), place.rstrip("/"))


def _open_filesystem(place: str, scheme: str, key: str) -> tuple[Any, str]:
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    with contextlib.suppress(ArrowException, NotImplementedError, ValueError):
        filesystem, root = FileSystem.from_uri(place)
        return filesystem, root
    try:
        import fsspec  # type: ignore[import-untyped]

        driver, root = fsspec.core.url_to_fs(place)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{key}={place}: {scheme}:// cannot be opened ({_sentence(error)}); expected a folder, or a URL that pyarrow "
            "or an installed fsspec driver knows, such as s3:// or gs://"
        ) from error
    return PyFileSystem(FSSpecHandler(driver)), str(root)


def _open_new(path: str) -> IO[bytes]:
    try:
        return open(path, "xb")
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        return open(path, "xb")


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
