"""Decoded pixels: in memory or on disk the same, and decoded once."""

from pathlib import Path

import numpy as np
import pytest

from classifier import image
from classifier.preprocess import load_pixels
from classifier.processor import load_preprocess
from tests.conftest import TINY_CONFIG
from tests.training.digits import write_picture
from training.stream import decode_tasks, read_block, rows_in_block, stream_blocks


def _blocks(root: Path, paths: list[str], shards: Path | None) -> tuple[np.ndarray, np.ndarray]:
    import ray

    spec = load_preprocess("tiny", size_px=32, max_pixels=image.MAX_PIXELS, config=TINY_CONFIG)
    streamed = stream_blocks(
        paths, root=root, spec=spec, mean_bytes=1e3, task_cpus=1, tasks=1, name="digits", shards=shards
    )
    opened = []
    for block, rows in streamed:
        pixels, readable = read_block(block if isinstance(block, str) else ray.get(block))
        assert len(pixels) == len(readable) == rows
        opened.append((pixels, readable))
    pixels, readable = zip(*opened, strict=True)
    return np.concatenate(pixels), np.concatenate(readable)


@pytest.mark.parametrize(
    ("pictures", "size_bytes", "tasks"),
    [(3, 10**3, 1), (600, 20 * 2**20, 2), (20_000, 10**7, 4), (20, 10**9, 4), (10**6, 10**12, 4)],
)
def test_small_datasets_start_few_processes_and_large_ones_keep_the_cores_busy(
    pictures: int, size_bytes: int, tasks: int
) -> None:
    """Many tiny files are work as well as few large ones."""
    assert decode_tasks(cores=2, pictures=pictures, size_bytes=size_bytes) == tasks


@pytest.mark.parametrize(
    ("pictures", "tasks", "mean_bytes", "rows"),
    [
        (100_000, 4, 4e4, 445),  # 64 MB of pixels
        (100_000, 4, 4e6, 16),  # 64 MB of photos
        (600, 2, 4e4, 150),  # each task has another one to follow it
        (10, 4, 4e4, 16),
    ],
)
def test_a_task_is_neither_lost_in_overhead_nor_endless(
    pictures: int, tasks: int, mean_bytes: float, rows: int
) -> None:
    """Pixels of 224 x 224."""
    spec = load_preprocess("tiny", size_px=224, max_pixels=image.MAX_PIXELS, config=TINY_CONFIG)

    assert rows_in_block(spec, pictures=pictures, tasks=tasks, mean_bytes=mean_bytes) == rows


@pytest.fixture
def pictures(tmp_path: Path, ray_once: None) -> tuple[Path, list[str]]:
    """Forty pictures, the fourth of which is broken."""
    root = tmp_path / "pictures"
    paths = [f"{number}.png" for number in range(40)]
    for number, path in enumerate(paths):
        write_picture(root / path, colour=(number, 255 - number, 7))
    (root / "3.png").write_bytes(b"broken since the catalog was made")
    return root, paths


def test_blocks_hold_every_picture_in_order_and_say_which_could_not_be_read(pictures: tuple[Path, list[str]]) -> None:
    """More blocks than one, and each row is what `load_pixels` gives."""
    root, paths = pictures
    spec = load_preprocess("tiny", size_px=32, max_pixels=image.MAX_PIXELS, config=TINY_CONFIG)

    pixels, readable = _blocks(root, paths, None)

    assert np.flatnonzero(~readable).tolist() == [3]
    for row, path in enumerate(paths):
        if row != 3:
            assert np.array_equal(pixels[row], load_pixels((root / path).read_bytes(), spec))


def test_a_block_in_the_object_store_is_opened_where_it_lies(pictures: tuple[Path, list[str]]) -> None:
    """Every worker of a machine reads the same memory: a copy each would be all pixels once more for each of them."""
    import ray

    root, paths = pictures
    spec = load_preprocess("tiny", size_px=32, max_pixels=image.MAX_PIXELS, config=TINY_CONFIG)
    streamed = stream_blocks(
        paths, root=root, spec=spec, mean_bytes=1e3, task_cpus=1, tasks=1, name="digits", shards=None
    )
    block, _ = next(iter(streamed))

    (first, _), (second, _) = read_block(ray.get(block)), read_block(ray.get(block))

    assert np.shares_memory(first, second)
    assert not first.flags.writeable


def test_blocks_on_disk_are_the_same_and_a_second_run_decodes_nothing(
    pictures: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """The pictures are gone by then: what comes back can only come from the cache."""
    root, paths = pictures
    write_picture(root / "3.png")
    shards = tmp_path / "cache"
    shards.mkdir()

    in_memory = _blocks(root, paths, None)
    first = _blocks(root, paths, shards)
    for path in paths:
        (root / path).unlink()
    second = _blocks(root, paths, shards)

    for pixels, readable in (first, second):
        assert np.array_equal(pixels, in_memory[0])
        assert np.array_equal(readable, in_memory[1])
    assert not list(shards.glob(".*"))


def test_a_block_with_a_picture_that_could_not_be_read_is_not_kept(
    pictures: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """Once the machine has its folder again, a later run must not train on what this one saw: nothing."""
    root, paths = pictures
    shards = tmp_path / "cache"
    shards.mkdir()

    _, first = _blocks(root, paths, shards)
    write_picture(root / "3.png")
    _, second = _blocks(root, paths, shards)

    assert np.flatnonzero(~first).tolist() == [3]
    assert second.all()
