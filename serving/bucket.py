"""A bucket as a storage: S3, Google Cloud Storage, or anything else that pyarrow or fsspec reaches by a URL."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from typing_extensions import override

from classifier import image
from classifier.errors import BadImage, ConfigError, NotAFile, OutputError, TooManyBytes
from serving.storage import Storage

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

# A request to a bucket takes tens of milliseconds, nearly all of it waiting.
_REQUESTS_AT_A_TIME = 16


@dataclass(frozen=True)
class RemoteStorage(Storage):
    """A bucket, or anything else that pyarrow or fsspec reaches by a URL."""

    filesystem: "FileSystem"
    root: str  # in the filesystem's own form: bucket/prefix
    url: str  # as the user wrote it, no / at the end

    @override
    def uri(self, path: str) -> str:
        return f"{self.url}/{path}" if path else self.url

    def place(self, path: str) -> str:
        """A path in the filesystem's own form."""
        return f"{self.root}/{path}" if path else self.root

    @override
    def read(self, path: str) -> bytes:
        with self.filesystem.open_input_file(self.place(path)) as file:
            return bytes(file.read())

    @override
    def read_pictures(self, paths: Sequence[str]) -> Iterator[bytes | BadImage]:
        # A window: all pictures of a large chunk at once might not fit in memory.
        with ThreadPoolExecutor(_REQUESTS_AT_A_TIME) as pool:
            for start in range(0, len(paths), _REQUESTS_AT_A_TIME):
                yield from pool.map(self._read_picture, paths[start : start + _REQUESTS_AT_A_TIME])

    @override
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

    @override
    def write_all(self, files: Iterable[tuple[str, bytes]]) -> None:
        with ThreadPoolExecutor(_REQUESTS_AT_A_TIME) as pool:
            for _ in pool.map(self._write_one, files):
                pass

    @override
    def existing(self, paths: Sequence[str]) -> list[bool]:
        return [info.is_file for info in self.filesystem.get_file_info([self.place(path) for path in paths])]

    @override
    def names(self, folder: str) -> list[str]:
        from pyarrow.fs import FileSelector

        infos = self.filesystem.get_file_info(FileSelector(self.place(folder), allow_not_found=True))
        return sorted(info.base_name for info in infos if info.is_file)

    @override
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


def open_bucket(url: str, *, key: str) -> RemoteStorage:
    """Open what a URL names. `storage.open_storage` is how to get here.

    Raises:
        ConfigError: its scheme is not known, or its driver is not installed.
    """
    filesystem, root = _open_filesystem(url, key)
    return RemoteStorage(filesystem, root.rstrip("/"), url.rstrip("/"))


def _open_filesystem(url: str, key: str) -> tuple[Any, str]:
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    with contextlib.suppress(ArrowException, NotImplementedError, ValueError):
        filesystem, root = FileSystem.from_uri(url)
        return filesystem, root
    try:
        import fsspec  # type: ignore[import-untyped]

        driver, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{key}={url} cannot be opened ({_sentence(error)}); expected a folder, or a URL that pyarrow "
            "or an installed fsspec driver knows, such as s3:// or gs://"
        ) from error
    return PyFileSystem(FSSpecHandler(driver)), str(root)


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
