"""Open every new picture once, on Ray Data: is it whole, how large, what content."""

import hashlib
import math
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from classifier import image
from classifier.errors import BadImage, DatasetError
from training.listing import LISTING
from training.root import Root, read_pictures, what_ended_task

# A reduced decode reads every byte of the file, so it finds whatever is broken, at a fraction of the time.
_DRAFT_PX = 64
_FEWEST_IN_TASK, _MOST_IN_TASK = 16, 512
# What is known of a file once it has been opened; the catalog adds what follows from all of them.
_FILE = LISTING.remove(LISTING.get_field_index("aside"))
ROW = pa.schema(
    [
        *_FILE,
        pa.field("reason", pa.string()),
        pa.field("group", pa.string()),
        pa.field("sha256", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("mode", pa.string()),
    ]
)


def inspect(
    listing: pa.Table,
    root: Root,
    *,
    max_pixels: int,
    task_cpus: float,
    tasks: int,
    on_progress: Callable[[int, int], None],
) -> pa.Table:
    """Open pictures on all of Ray's cores.

    Args:
        listing: what to open, in the form of `listing.LISTING`.
        root: the dataset's folder.
        max_pixels: the largest picture that is decoded.
        task_cpus: what one task asks for.
        tasks: how many run at a time.
        on_progress: told (pictures opened, pictures in all).

    Returns:
        A row for each: `reason` is null when it can be used; `sha256` is null when not a byte of it could be read.

    Raises:
        DatasetError: the bucket or file system that they lie in does not answer, or is not there on a machine.
    """
    from ray.exceptions import RayError

    from training.stream import dataset_of

    pictures = listing.select(_FILE.names)
    in_task = min(_MOST_IN_TASK, max(_FEWEST_IN_TASK, math.ceil(len(pictures) / (4 * tasks))))
    dataset = dataset_of(pictures, rows_in_task=in_task, name="inspect").map_batches(
        _inspect_batch,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=task_cpus,
        fn_kwargs={"root": root, "max_pixels": max_pixels},
    )
    done: list[pa.Table] = []
    opened = 0
    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            done.append(batch.cast(ROW))
            opened += batch.num_rows
            on_progress(opened, len(pictures))
    except RayError as error:
        said = what_ended_task(error)
        if said is None:
            raise
        raise DatasetError(str(said)) from error
    return pa.concat_tables(done)


def _inspect_batch(batch: pa.Table, *, root: Root, max_pixels: int) -> pa.Table:
    pictures = read_pictures(root, batch["path"].to_pylist())
    rows = [row | _inspect_picture(data, max_pixels) for row, data in zip(batch.to_pylist(), pictures, strict=True)]
    return pa.Table.from_pylist(rows, schema=ROW)


def _inspect_picture(data: bytes | BadImage, max_pixels: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        if isinstance(data, BadImage):
            raise data
        found["sha256"] = found["group"] = hashlib.sha256(data).hexdigest()
        header = image.read_header(data, max_pixels=max_pixels)
        found |= {"width": header.width_px, "height": header.height_px, "mode": header.mode}
        image.decode(data, draft_px=_DRAFT_PX, max_pixels=max_pixels)
    except BadImage as error:
        return found | {"reason": error.reason}
    return found | {"reason": None}
