"""Class folders -> Ray Data -> blocks of decoded pixels.

Few, large tasks: a task of Ray costs milliseconds, a picture less than two. A block is what one task decodes; it stays
in the object store, or goes to a file when all of them would not fit there.
"""

import errno
import math
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from classifier import image
from classifier.errors import BadImage, DatasetError
from classifier.preprocess import PreprocessSpec, to_pixels
from training.root import Root, read_pictures, this_machine, what_ended_task

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.data import Dataset

# A task costs Ray's processes as much as fifty small pictures cost to decode: more of them in one, and it is lost among them.
_BLOCK_BYTES = 64 * 1024 * 1024
_FEWEST_IN_BLOCK, _MOST_IN_BLOCK = 16, 1024
# What a task reads of files at most: of large photos, pixels alone would make it tens of seconds long.
_BLOCK_FILE_BYTES = 64 * 1024 * 1024
# Ray Data looks ten times a second for tasks that have ended: with more of them than cores, a core has another one then.
TASKS_A_CORE = 2
_ANSWER_WITHIN_S = 60.0
# Decoding takes the cores that are left: while a worker starts, or a step is computed, somebody waits for that.
_NICENESS = 5
PARTIAL = ".partial.npy"  # how the name of a shard ends that holds pictures that could not be read
# What it is worth starting another decoding process for: about a second of work, as its imports are.
_TASK_FILE_BYTES, _TASK_PICTURES = 16 * 1024 * 1024, 2_000
_PICTURES = pa.schema({"path": pa.string(), "row": pa.int64()})


def dataset_of(table: pa.Table, *, rows_in_task: int, name: str) -> "Dataset":
    """A Ray Dataset of a table's rows, in order, in blocks of `rows_in_task`."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    chunks = [table.slice(start, rows_in_task).combine_chunks() for start in range(0, table.num_rows, rows_in_task)]
    # from_arrow would run a task for each chunk to find out its size
    dataset: Dataset = ray.data.from_blocks(chunks)
    dataset.set_name(name)
    return dataset


def decode_tasks(*, cores: int, pictures: int, size_bytes: int) -> int:
    """How many decode tasks run at a time.

    Args:
        cores: those that may decode.
        pictures: how many there are in all.
        size_bytes: what their files take.
    """
    worth = max(size_bytes / _TASK_FILE_BYTES, pictures / _TASK_PICTURES)
    return max(1, min(TASKS_A_CORE * cores, math.ceil(worth)))


def rows_in_block(spec: PreprocessSpec, *, pictures: int, tasks: int, mean_bytes: float) -> int:
    """How many pictures one task decodes: about 64 MB of pixels or of files, but at least two tasks for each that can run."""
    fits = _BLOCK_BYTES // (3 * spec.height_px * spec.width_px)
    readable = int(_BLOCK_FILE_BYTES / max(1.0, mean_bytes))
    shared = math.ceil(pictures / (2 * tasks))
    return max(_FEWEST_IN_BLOCK, min(_MOST_IN_BLOCK, fits, readable, shared))


def stream_blocks(
    paths: Sequence[str] | pa.Array,
    *,
    root: Root,
    spec: PreprocessSpec,
    mean_bytes: float,
    task_cpus: float,
    tasks: int,
    name: str,
    shards: Path | None,
    book: tuple[Any, str] | None = None,
) -> Iterator[tuple["ObjectRef[Any] | str", int]]:
    """Decode pictures on all of Ray's cores, and hand out each block as it is ready, in order.

    Args:
        paths: relative to `root`.
        root: the dataset's folder.
        spec: the model's preprocessing.
        mean_bytes: the size of a picture's file.
        task_cpus: what one decode task asks for.
        tasks: how many run at a time.
        name: what the dashboard calls it.
        shards: where blocks are written; None keeps them in the object store.
        book: the feed, and the split that these pictures are; it is told of those that cannot be read.

    Yields:
        (block, pictures in it): a reference to a table, or the path of a file. `read_block` opens either.

    Raises:
        OSError: EIO, the bucket or file system that they lie in does not answer; it may do so later.
        DatasetError: the dataset is not there on one of the machines.
    """
    from ray.data import TaskPoolStrategy
    from ray.exceptions import RayError

    in_block = rows_in_block(spec, pictures=len(paths), tasks=tasks, mean_bytes=mean_bytes)
    table = pa.table({"path": paths, "row": np.arange(len(paths))}, schema=_PICTURES)
    dataset = dataset_of(table, rows_in_task=in_block, name=name).map_batches(
        _decode_batch,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=task_cpus,
        compute=TaskPoolStrategy(size=tasks),
        fn_kwargs={"root": root, "spec": spec.model_dump(), "shards": str(shards) if shards else None, "book": book},
    )
    try:
        if shards is not None:
            for row in dataset.iter_rows():
                yield row["file"], row["rows"]
            return
        for bundle in dataset.iter_internal_ref_bundles():
            for entry in bundle.blocks:
                yield entry.ref, entry.metadata.num_rows
    except RayError as error:
        said = what_ended_task(error)
        if said is None:
            raise
        raise (said if isinstance(said, DatasetError) else OSError(errno.EIO, str(said))) from error


def read_block(block: Any) -> tuple[np.ndarray, np.ndarray]:
    """Open a block, without copying its pixels.

    Returns:
        uint8 [n, 3, H, W] and bool [n]: whether the picture could still be read.
    """
    if isinstance(block, str):
        return np.load(block, mmap_mode="r"), np.load(f"{block}.readable.npy")
    (pixels,) = block["pixels"].chunks  # combine_chunks() would copy even a single one
    return pixels.to_numpy_ndarray(), block["readable"].to_numpy()


def _decode_batch(
    batch: pa.Table, *, root: Root, spec: dict[str, Any], shards: str | None, book: tuple[Any, str] | None
) -> dict[str, Any]:
    if os.getpriority(os.PRIO_PROCESS, 0) < _NICENESS:
        os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
    preprocess = PreprocessSpec.model_validate(spec)
    paths = batch["path"].to_pylist()
    shard = Path(shards) / f"{batch['row'][0].as_py():09d}-{len(paths):05d}.npy" if shards else None
    if shard is not None and shard.is_file():  # an earlier run decoded just these
        return _shard_row(shard, len(paths))
    pixels = np.zeros((len(paths), 3, preprocess.height_px, preprocess.width_px), dtype=np.uint8)
    unreadable: dict[str, str] = {}
    readable = np.ones(len(paths), dtype=bool)
    for place, data in enumerate(read_pictures(root, paths)):
        try:
            if isinstance(data, BadImage):
                raise data
            photo = image.decode(data, draft_px=preprocess.draft_px, max_pixels=preprocess.max_pixels)
            to_pixels(photo, preprocess, out=pixels[place])
        except BadImage as error:  # it was fine when the catalog was made: it keeps its place, and weighs nothing
            readable[place], unreadable[paths[place]] = False, str(error)
    if unreadable:
        _tell(book, unreadable)
    if shard is None:
        return {"pixels": pixels, "readable": readable}
    if unreadable:  # it may be readable again the next time: no other run finds this block
        shard = shard.with_name(f"{shard.stem}.{uuid.uuid4().hex}{PARTIAL}")
    _write_shard(shard, pixels, readable)
    return _shard_row(shard, len(paths))


def _tell(book: tuple[Any, str] | None, unreadable: dict[str, str]) -> None:
    """The feed must know before anybody has the block: no score may be told without them."""
    import ray

    if book is not None:
        feed, split = book
        ray.get(feed.tell_unreadable.remote(split, this_machine(), unreadable), timeout=_ANSWER_WITHIN_S)


def _shard_row(shard: Path, rows: int) -> dict[str, Any]:
    return {"file": np.array([str(shard)]), "rows": np.array([rows])}


def _write_shard(file: Path, pixels: np.ndarray, readable: np.ndarray) -> None:
    """Two files, each whole or absent: the pixels come last, so a shard that can be seen is complete."""
    for target, array in ((Path(f"{file}.readable.npy"), readable), (file, pixels)):
        scratch = file.parent / f".{target.name}.{os.getpid()}"
        with scratch.open("wb") as stream:
            np.save(stream, array)
        scratch.replace(target)
