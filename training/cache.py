"""Decoded pixels on disk, for when they do not fit in memory: kept for other runs, the oldest removed first."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from classifier.errors import OutputError
from classifier.preprocess import PreprocessSpec
from training.catalog import Catalog
from training.config import TrainConfig
from training.split import SPLITS
from training.stream import PARTIAL

_GIB = 1024**3
# For how long a run waits while another one removes the very pixels that it is about to use.
_WAIT_S = 60.0


@contextlib.contextmanager
def pixel_cache(
    config: TrainConfig, catalog: Catalog, spec: PreprocessSpec, *, object_store_bytes: float
) -> Iterator[dict[str, Path] | None]:
    """Say where decoded pixels go, and hold them against being removed for as long as the block lasts.

    Args:
        config: the run's settings.
        catalog: the dataset.
        spec: the model's preprocessing.
        object_store_bytes: what the smallest machine that trains can hold: each comes to hold all pixels.

    Yields:
        split -> folder of its blocks; None is the object store, when they fit in their share of it.

    Raises:
        OutputError: they must go to disk, and it cannot be written, or they do not fit there either.
    """
    data = config.data
    pictures = sum(catalog.pictures(split).num_rows for split in SPLITS)
    needed_bytes = pictures * 3 * spec.height_px * spec.width_px
    share_bytes = object_store_bytes * data.memory_share
    if data.cache == "memory" or (data.cache == "auto" and needed_bytes <= share_bytes):
        yield None
        return
    base = config.paths.cache.absolute()
    entry = base / _key(config, catalog, spec)
    with contextlib.ExitStack() as held:
        try:
            base.mkdir(parents=True, exist_ok=True)
            held.enter_context(_in_use(entry))
            _evict(base, keep=entry, limit_bytes=data.disk_limit_gb * _GIB - needed_bytes)
            free_bytes = shutil.disk_usage(base).free
            if needed_bytes > min(free_bytes, data.disk_limit_gb * _GIB) and not entry.is_dir():
                raise OutputError(
                    f"decoded pixels need {needed_bytes / _GIB:.1f} GiB: more than the {share_bytes / _GIB:.1f} GiB of memory "
                    f"that data.memory_share allows, and than {base} has ({free_bytes / _GIB:.1f} GiB free, "
                    f"data.disk_limit_gb={data.disk_limit_gb:g}); raise one of them or set a smaller model.size_px"
                )
            shards = {split: entry / split for split in SPLITS}
            for folder in shards.values():
                folder.mkdir(parents=True, exist_ok=True)
            os.utime(entry)
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(
                f"{base} cannot be written: {error.strerror}; set paths.cache to a folder that can"
            ) from error
        yield shards


def _key(config: TrainConfig, catalog: Catalog, spec: PreprocessSpec) -> str:
    content = [catalog.fingerprint, catalog.seed, config.data.split.model_dump(), spec.model_dump()]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _in_use(entry: Path) -> Iterator[None]:
    """Nobody removes an entry meanwhile; a run that is killed lets go of it.

    Raises:
        OSError: EAGAIN, another process has been removing it for a minute.
    """
    with _lock_file(entry) as lock:
        deadline = time.monotonic() + _WAIT_S
        if _locked(lock, fcntl.LOCK_EX):  # nobody else reads what no other run is to find
            for file in entry.glob(f"*/*{PARTIAL}*"):
                file.unlink(missing_ok=True)
        while not _locked(lock, fcntl.LOCK_SH):
            if time.monotonic() > deadline:
                raise BlockingIOError(errno.EAGAIN, "another run is removing what it holds")
            time.sleep(0.1)
        yield


def _evict(base: Path, *, keep: Path, limit_bytes: float) -> None:
    """Remove the entries that were used longest ago and are not in use now, until the others fit."""
    entries = sorted((entry for entry in base.iterdir() if entry.is_dir() and entry != keep), key=_used_at)
    sizes = {entry: _size_bytes(entry) for entry in entries}
    total = sum(sizes.values())
    for entry in entries:
        if total <= limit_bytes:
            return
        # one that another user made cannot be locked, nor removed
        with contextlib.suppress(PermissionError), _lock_file(entry) as lock:
            if _locked(lock, fcntl.LOCK_EX):
                shutil.rmtree(entry, ignore_errors=True)
                total -= sizes[entry]


def _lock_file(entry: Path) -> IO[bytes]:
    # beside the entry, and never removed: another run may be about to lock it
    return entry.with_name(f".{entry.name}.lock").open("ab")


def _locked(lock: IO[bytes], how: int) -> bool:
    """Whether a lock could be had at once."""
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: nothing is removed there, so nothing need be held
        return how == fcntl.LOCK_SH
    return True


def _size_bytes(entry: Path) -> int:
    total = 0
    for folder, _, names in os.walk(entry):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # another run removes it, or has renamed what it wrote
                total += Path(folder, name).stat().st_size
    return total


def _used_at(entry: Path) -> float:
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:
        return 0.0
