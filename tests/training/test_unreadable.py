"""Pictures that go missing while a run lasts are counted and named, and nothing is scored that nobody saw."""

import csv
import errno
import os
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import ray
import torch

from classifier import image
from classifier.errors import BadImage, DatasetError, OutOfReach
from classifier.network import load_network
from classifier.processor import load_preprocess
from tests.conftest import TINY_CONFIG
from tests.training.digits import write_picture
from training.batches import EvalBatches, Pixels
from training.feed import Feed, FeedPlan
from training.finish import _score
from training.root import read_pictures
from training.unreadable import UNREADABLE, Unreadable, UnreadableBook, last_note, write_unreadable

SPEC = load_preprocess("tiny", size_px=32, max_pixels=image.MAX_PIXELS, config=TINY_CONFIG)
GONE = "cannot be opened: No such file or directory"


def _book() -> UnreadableBook:
    return UnreadableBook({"train": 90, "test": 10}, max_share=0.2)


def test_the_share_is_of_all_pictures_and_a_picture_counts_once() -> None:
    """At the share the run goes on, above it it does not."""
    book = _book()
    for machine in ("a", "b"):
        book.add("train", machine, {str(number): GONE for number in range(20)})
    assert len(book.rows) == 20
    assert book.too_many() is None

    book.add("test", "b", {"x": GONE})

    assert str(book.too_many()).startswith(
        "21 of 100 pictures cannot be read any more (the first is 0: cannot be opened"
    )


def test_a_split_of_which_nothing_is_left_ends_the_run() -> None:
    """Ten of a hundred are few, but there would be nothing to score."""
    book = _book()
    book.add("train", "node-3", {"x": GONE})
    book.add("test", "node-3", {str(number): GONE for number in range(10)})

    assert str(book.too_many()).startswith("no picture of the test split can be read any more (the first is 0: ")


def test_the_list_names_each_and_a_resumed_run_without_any_has_none(tmp_path: Path) -> None:
    """It is that of the pictures that this run saw."""
    file = tmp_path / UNREADABLE
    rows = [Unreadable("cat/1, 2.png", "train", "a (10.0.0.1)", GONE), Unreadable("dog/1.png", "test", "b", "x")]

    write_unreadable(file, rows)

    assert last_note(rows, file) == (
        f"2 pictures could not be read any more and left out (1 of train, 1 of test): {file} names each."
    )
    with file.open(newline="") as stream:
        assert [Unreadable(**row) for row in csv.DictReader(stream)] == rows
    write_unreadable(file, [])
    assert not file.exists()


def test_a_machine_without_the_dataset_is_named_and_its_pictures_are_not_called_bad(tmp_path: Path) -> None:
    """A node that joins without the mount; where only the file is gone, it is the picture."""
    write_picture(tmp_path / "PETS/a.png")

    found = list(read_pictures(tmp_path / "PETS", ["a.png", "b.png"]))

    assert isinstance(found[0], bytes) and type(found[1]) is BadImage
    with pytest.raises(
        DatasetError, match=rf"^{tmp_path}/nowhere is not there on .* \(.*\); every machine of the cluster"
    ):
        list(read_pictures(tmp_path / "nowhere", ["a.png"]))


def test_a_file_server_that_restarts_makes_no_bad_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a bucket that does not answer."""

    def fails(*_: object) -> NoReturn:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "open", fails)

    with pytest.raises(OutOfReach, match=r"a\.png cannot be opened: Stale file handle"):
        list(read_pictures(tmp_path, ["a.png"]))


def _feed(root: Path, paths: list[str]) -> ray.actor.ActorHandle:
    plan = FeedPlan(
        root=root,
        splits={"test": paths},
        spec=SPEC,
        mean_bytes=1e3,
        decode_cpus=1,
        decode_tasks=1,
        shards=None,
        name="unreadable",
        max_bad_share=0.5,
    )
    feed = ray.remote(num_cpus=0)(Feed).remote(plan)
    feed.start.remote()
    return feed


def test_a_picture_that_cannot_be_read_is_told_of_and_not_scored(tmp_path: Path, ray_once: None) -> None:
    """As a black picture it would have an answer, right or wrong."""
    paths = [f"{number}.png" for number in range(5)]
    for number in (0, 1, 2, 4):
        write_picture(tmp_path / paths[number], colour=(50 * number, 0, 0))
    network = load_network("tiny", labels=("a", "b"), spec=SPEC, config=TINY_CONFIG)
    feed = _feed(tmp_path, paths)
    test = EvalBatches(Pixels(feed, "test"), np.zeros(5, np.int64), batch_size=4, rank=0, world_size=1, pin=False)

    probabilities, scored = _score(network, test, pictures=5, world_size=1)

    assert scored.tolist() == [0, 1, 2, 4]
    assert probabilities.sum(1) == pytest.approx(np.ones(4))
    (row,) = ray.get(feed.unreadable.remote())
    assert (row.filepath, row.split, row.reason) == ("3.png", "test", GONE)
    ray.kill(feed)


def test_a_network_that_answers_nan_has_answered(tmp_path: Path) -> None:
    """A diverged run must not look like pictures that are gone."""

    class _Diverged(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.full((1,), torch.nan))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.weight.expand(len(pixels), 2)

    class _Black:
        def rows(self, places: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
            return torch.zeros((len(places), 3, 4, 4), dtype=torch.uint8), places != 1

    test = EvalBatches(_Black(), np.zeros(3, np.int64), batch_size=4, rank=0, world_size=1, pin=False)  # type: ignore[arg-type]

    _, scored = _score(_Diverged(), test, pictures=3, world_size=1)  # type: ignore[arg-type]

    assert scored.tolist() == [0, 2]


def test_decoding_where_the_dataset_is_not_mounted_ends_with_the_machines_name(tmp_path: Path, ray_once: None) -> None:
    """Every picture there would be a bad one, and their blocks would be kept."""
    feed = _feed(tmp_path / "nowhere", ["0.png"])

    with pytest.raises(DatasetError, match=r"nowhere is not there on .* \(\d+\."):
        ray.get(feed.blocks.remote("test", 0), timeout=60)
    ray.kill(feed)
