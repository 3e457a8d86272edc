"""A dataset's folder, on a disk or in a bucket: what folders are in it, and the bytes of its pictures."""

import os
import re
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from classifier import image
from classifier.errors import BadImage, DatasetError, OutOfReach
from cluster.bucket import Bucket

Root = Path | Bucket

_KINDS: dict[str, type[OutOfReach | DatasetError]] = {
    f"{kind.__module__}.{kind.__name__}": kind for kind in (OutOfReach, DatasetError)
}
_SAID = re.compile(rf"^({'|'.join(map(re.escape, _KINDS))}): (.+)$", re.MULTILINE)


def folders(root: Root) -> list[str]:
    """The names of the folders directly in it, sorted; hidden ones too.

    Raises:
        OSError: it cannot be listed.
    """
    if isinstance(root, Bucket):
        return [info.base_name for info in root.listing(recursive=False) if not info.is_file]
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir())


def read_pictures(root: Root, paths: Sequence[str]) -> Iterator[bytes | BadImage]:
    """The bytes of each picture, or why it cannot be read, in order.

    Args:
        root: the dataset's folder.
        paths: relative to it.

    Raises:
        OutOfReach: a bucket or a file system does not answer, which says nothing of the picture.
        DatasetError: the folder is not there on this machine.
    """
    if isinstance(root, Bucket):
        for found in root.read_pictures(paths):
            if isinstance(found, OutOfReach):
                raise found
            yield found
        return
    for path in paths:
        try:
            yield image.read_file(f"{root}/{path}")
        except OutOfReach:
            raise
        except BadImage as error:
            # its pictures would all be bad ones; Path.is_dir() raises where it may not look
            if not os.path.isdir(root):  # noqa: PTH112
                raise DatasetError(
                    f"{root} is not there on {this_machine()}; every machine of the cluster must have paths.raw_data at "
                    "the same place"
                ) from error
            yield error


def this_machine() -> str:
    """Its name and address, for the user."""
    from ray.util import get_node_ip_address

    return f"{socket.gethostname()} ({get_node_ip_address()})"


def what_ended_task(error: BaseException) -> OutOfReach | DatasetError | None:
    """What `read_pictures` raised in a task; None when that is not what ended it.

    Ray Data passes on an error of its own with the text of the task's traceback, and not the error itself.
    """
    found = _SAID.search(str(error))
    return _KINDS[found[1]](found[2]) if found else None
