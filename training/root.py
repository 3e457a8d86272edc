"""A dataset's folder, on a disk or in a bucket: what folders are in it, and the bytes of its pictures."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from classifier import image
from classifier.errors import BadImage, OutOfReach
from cluster.bucket import Bucket

Root = Path | Bucket

_OUT_OF_REACH = re.compile(rf"^{OutOfReach.__module__}\.{OutOfReach.__name__}: (.+)$", re.MULTILINE)


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
        OutOfReach: a bucket does not answer, which says nothing of the picture.
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
        except BadImage as error:
            yield error


def what_was_out_of_reach(error: BaseException) -> str | None:
    """What `OutOfReach` said in a task; None when that is not what ended it.

    Ray Data passes on an error of its own with the text of the task's traceback, and not the error itself.
    """
    found = _OUT_OF_REACH.search(str(error))
    return found[1] if found else None
