"""Files by URL: S3, Google Cloud Storage, or anything else that pyarrow or fsspec reaches."""

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from classifier import image
from classifier.errors import BadImage, ConfigError, NotAFile, OutOfReach, OutputError, TooManyBytes

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

# A request to a bucket takes tens of milliseconds, nearly all of it waiting.
_REQUESTS_AT_A_TIME = 16
# Google's driver tries a request for a quarter of an hour, Amazon's for seconds.
_RETRY_LIMIT_S = 20


@dataclass(frozen=True)
class Bucket:
    """A bucket, or a folder in it. Picklable: it travels to the workers, endpoint and region with it, no credentials."""

    filesystem: "FileSystem"
    root: str  # in the filesystem's own form: bucket/prefix
    url: str  # as the user wrote it, no / at the end

    def __str__(self) -> str:
        return self.url

    def below(self, path: str) -> "Bucket":
        """A folder in it."""
        return replace(self, root=self.place(path), url=self.uri(path))

    def uri(self, path: str) -> str:
        """What a person would type."""
        return f"{self.url}/{path}" if path else self.url

    def place(self, path: str) -> str:
        """A path in the filesystem's own form."""
        return f"{self.root}/{path}" if path else self.root

    def read(self, path: str) -> bytes:
        """Read a file. Raises an OSError, FileNotFoundError when it is not there."""
        with self.filesystem.open_input_file(self.place(path)) as file:
            return bytes(file.read())

    def read_pictures(self, paths: Sequence[str]) -> Iterator[bytes | BadImage]:
        """The bytes of each picture, or why it cannot be read, in order; some requests ahead of what is asked for."""
        ahead: deque[Future[bytes | BadImage]] = deque()
        with ThreadPoolExecutor(_REQUESTS_AT_A_TIME) as pool:
            for path in paths:
                if len(ahead) == _REQUESTS_AT_A_TIME:  # all pictures of a large chunk at once might not fit in memory
                    yield ahead.popleft().result()
                ahead.append(pool.submit(self._read_picture, path))
            while ahead:
                yield ahead.popleft().result()

    def listing(self, *, recursive: bool) -> "list[FileInfo]":
        """The files and folders in it, sorted; with `recursive` those at any depth, in as few requests.

        Raises:
            OSError: it cannot be listed. A missing folder is empty.
        """
        from pyarrow.fs import FileSelector

        try:
            # not allow_not_found: then a bucket that does not exist would be an empty one
            found = self.filesystem.get_file_info(FileSelector(self.root, recursive=recursive))
        except FileNotFoundError:
            return []
        except Exception as error:  # every filesystem of fsspec has errors of its own
            raise OSError(_unreachable(self.url, error)) from error
        return sorted(found, key=lambda info: info.path)

    def check_reachable(self, *, key: str) -> None:
        """Find out early whether it answers.

        Raises:
            ConfigError: it does not; names the setting.
        """
        try:
            self.listing(recursive=False)
        except OSError as error:
            raise ConfigError(f"{key}={error}") from error

    @contextlib.contextmanager
    def writing(self, path: str) -> Iterator[IO[bytes]]:
        """A file that is there, whole, when the block ends, and not before. Raises OutputError."""
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
        """Write many small files as `writing` does."""
        with ThreadPoolExecutor(_REQUESTS_AT_A_TIME) as pool:
            for _ in pool.map(self._write_one, files):
                pass

    def names(self, folder: str) -> list[str]:
        """The files directly in a folder, sorted; none when there is no such folder."""
        return [info.base_name for info in self.below(folder).listing(recursive=False) if info.is_file]

    def remove(self, paths: Iterable[str]) -> None:
        """Remove files; one that is gone is no error."""
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
        except FileNotFoundError:
            return BadImage("cannot be read: it is not there any more")
        except Exception as error:  # as in writing
            return OutOfReach(f"{self.uri(path)} cannot be read: {_sentence(error)}")

    def _write_one(self, file: tuple[str, bytes]) -> None:
        path, data = file
        with self.writing(path) as stream:
            stream.write(data)


def open_place(place: str | Path, *, key: str) -> Path | Bucket:
    """What a setting names: a folder of this machine, or a bucket.

    Args:
        place: a local path, `file://...`, or a URL that pyarrow or fsspec knows: `s3://`, `gs://`, `hdfs://`, ...
        key: the setting, for the message.

    Raises:
        ConfigError: the URL's scheme is not known, or its driver is not installed.
    """
    if isinstance(place, Path):
        return place
    scheme, separator, rest = place.partition("://")
    if not separator or scheme == "file":
        return Path(rest if separator else place)
    if urlsplit(place).password is not None:
        raise ConfigError(
            f"{key}: a key in a URL would be shown and kept; put it where the driver looks: for s3:// into "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials"
        )
    filesystem, root = _open_filesystem(place, key)
    # `?endpoint_override=...&scheme=http` is how pyarrow is told of a server that is not Amazon's
    return Bucket(filesystem, root.rstrip("/"), place.partition("?")[0].rstrip("/"))


def _open_filesystem(url: str, key: str) -> tuple[Any, str]:
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    try:
        filesystem, root = FileSystem.from_uri(_with_limit(url))
        return filesystem, root
    except (ArrowException, NotImplementedError, ValueError) as error:
        refusal = error
    except OSError as error:  # it asks for the region of a bucket
        raise ConfigError(_unreachable(f"{key}={url}", error)) from error
    try:
        import fsspec  # type: ignore[import-untyped]

        driver, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{key}={url} cannot be opened ({_sentence(refusal)}); expected a folder, or a URL that pyarrow "
            "or an installed fsspec driver knows, such as s3:// or gs://"
        ) from error
    return PyFileSystem(FSSpecHandler(driver)), str(root)


def _with_limit(url: str) -> str:
    if not url.startswith(("gs://", "gcs://")) or "retry_limit_seconds=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}retry_limit_seconds={_RETRY_LIMIT_S}"


def _unreachable(what: str, error: Exception) -> str:
    return f"{what} cannot be listed ({_sentence(error)}); is the name right, and are there credentials for it?"


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
