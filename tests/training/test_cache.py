"""Decoded pixels on disk: kept while somebody reads them, removed when nobody does, and never a traceback."""

import fcntl
import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from classifier import image
from classifier.errors import OutputError
from classifier.processor import load_preprocess
from tests.conftest import TINY_CONFIG
from training import cache
from training.cache import pixel_cache
from training.catalog import _SCHEMA, Catalog
from training.settings import read_settings
from training.stream import PARTIAL

SPEC = load_preprocess("tiny", size_px=32, max_pixels=image.MAX_PIXELS, config=TINY_CONFIG)
PICTURE_GIB = 3 * 32 * 32 / 1024**3


def _opened(
    folder: Path, *, fingerprint: str = "a", limit_gb: float = 1.0, store_bytes: float = 0.0, kind: str = "disk"
) -> AbstractContextManager[dict[str, Path] | None]:
    """The place for three pictures of a dataset."""
    rows = [{"path": f"cat/{split}", "label": "cat", "split": split} for split in ("train", "val", "test")]
    catalog = Catalog(
        name="PETS",
        root=folder,
        table=pa.Table.from_pylist(rows, schema=_SCHEMA),
        labels=("cat", "dog"),
        fingerprint=fingerprint,
        seed=1,
        folder=folder,
        reused=False,
    )
    config: Any = read_settings(
        ["ds=PETS", f"paths.cache={folder / 'cache'}", f"data.disk_limit_gb={limit_gb}", f"data.cache={kind}"]
    )
    return pixel_cache(config, catalog, SPEC, object_store_bytes=store_bytes)


def _shards(folder: Path, fingerprint: str, **options: Any) -> dict[str, Path]:
    """What a run that is over has left: one file of three pictures."""
    with _opened(folder, fingerprint=fingerprint, **options) as shards:
        assert shards is not None
        (shards["train"] / "0.npy").write_bytes(bytes(int(3 * PICTURE_GIB * 1024**3)))
    return shards


def test_pixels_go_to_disk_when_the_share_of_the_store_is_too_small(tmp_path: Path) -> None:
    """data.memory_share=0.3 of what a machine's store holds."""
    needed_bytes = 3 * PICTURE_GIB * 1024**3
    with _opened(tmp_path, kind="auto", store_bytes=needed_bytes / 0.29) as shards:
        assert shards is None
    with _opened(tmp_path, kind="auto", store_bytes=needed_bytes / 0.31) as shards:
        assert shards is not None and all(folder.is_dir() for folder in shards.values())


def test_the_oldest_go_but_not_one_that_a_run_reads(tmp_path: Path) -> None:
    """However long that run lasts: its test split is opened after hours."""
    old, older = _shards(tmp_path, "old"), _shards(tmp_path, "older")
    long_ago = 1.0
    os.utime(older["train"].parent, (long_ago, long_ago))
    os.utime(old["train"].parent, (2 * long_ago, 2 * long_ago))

    with _opened(tmp_path, fingerprint="older"):
        os.utime(older["train"].parent, (long_ago, long_ago))
        _shards(tmp_path, "new", limit_gb=4 * PICTURE_GIB)
        assert (older["train"] / "0.npy").is_file()
        assert not old["train"].exists()

    _shards(tmp_path, "newest", limit_gb=4 * PICTURE_GIB)
    assert not older["train"].exists()


_HOLDS = """
import fcntl, sys, time
lock = open(sys.argv[1], "ab")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_a_run_that_comes_while_its_pixels_are_removed_waits_and_then_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for ever; and a killed run holds nothing."""
    entry = _shards(tmp_path, "a")["train"].parent
    monkeypatch.setattr(cache, "_WAIT_S", 0.2)
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDS, entry.with_name(f".{entry.name}.lock")], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(OutputError, match="another run is removing what it holds"), _opened(tmp_path):
            pass
        other.kill()

    with _opened(tmp_path) as shards:
        assert shards is not None


def test_a_file_system_without_locks_keeps_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who cannot tell whether somebody reads must not remove."""
    kept = _shards(tmp_path, "kept")

    def unsupported(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)

    _shards(tmp_path, "new", limit_gb=4 * PICTURE_GIB)

    assert (kept["train"] / "0.npy").is_file()


def test_files_that_vanish_while_they_are_counted_are_no_fault_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs make room at the same time."""
    _shards(tmp_path, "a")
    walk = os.walk

    def vanishing(entry: Path) -> Any:
        for folder, folders, names in walk(entry):
            yield folder, folders, [*names, "gone.npy"]

    monkeypatch.setattr(os, "walk", vanishing)

    _shards(tmp_path, "b", limit_gb=4 * PICTURE_GIB)


def test_a_run_removes_gaps_that_earlier_runs_left_unless_one_of_them_still_reads_them(tmp_path: Path) -> None:
    """Blocks with pictures that could not be read are for the run that made them alone."""
    gap = _shards(tmp_path, "a")["test"] / f"000000000-00016.1234{PARTIAL}"
    gap.touch()

    with _opened(tmp_path):
        gap.touch()
        with _opened(tmp_path):
            assert gap.is_file()
    with _opened(tmp_path):
        assert not gap.exists()


@pytest.mark.parametrize(
    ("limit_gb", "in_the_way", "said"),
    [
        (PICTURE_GIB, False, r"decoded pixels need .* GiB: more than .*data\.memory_share"),
        (1.0, True, r"cannot be written: .*; set paths\.cache to a folder that can"),
    ],
)
def test_pixels_that_fit_nowhere_are_one_line(tmp_path: Path, limit_gb: float, in_the_way: bool, said: str) -> None:
    """With the numbers, or the setting."""
    if in_the_way:
        (tmp_path / "cache").write_text("a file")

    with pytest.raises(OutputError, match=said), _opened(tmp_path, limit_gb=limit_gb):
        pass
