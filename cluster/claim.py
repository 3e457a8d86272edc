"""One command at a time in a folder."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from classifier.errors import OutputError


@contextlib.contextmanager
def claimed(lock: Path, *, taken: str) -> Iterator[None]:
    """Keep other commands out for as long as the block lasts.

    Args:
        lock: a file, made if need be; what is in it stays.
        taken: what to say when another command is there.

    Raises:
        OutputError: another command is there.
        OSError: the file cannot be opened for writing.
    """
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it however the process ends
        except BlockingIOError as error:
            raise OutputError(taken) from error
        except OSError:  # a file system without locks
            pass
        yield
