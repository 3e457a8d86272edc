"""The pictures of a step are the same whatever the number of workers."""

from collections import Counter

import numpy as np
import pytest
import torch

from training.batches import Batch, EvalBatches, StopRequested, TrainBatches


class _Pixels:
    """Decoded pictures in memory: picture n is filled with n; those in `broken` cannot be read."""

    def __init__(self, count: int, broken: tuple[int, ...] = ()) -> None:
        self._pixels = np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(3, 1)
        self._readable = np.array([place not in broken for place in range(count)])

    def rows(self, places: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        return torch.from_numpy(self._pixels[places]), self._readable[places]


def _epoch(workers: int, count: int = 53, epoch: int = 1, broken: tuple[int, ...] = ()) -> list[list[Batch]]:
    """Each worker's batches of an epoch."""
    labels = np.arange(count) % 5
    return [
        list(
            TrainBatches(
                _Pixels(count, broken),  # type: ignore[arg-type]
                labels,
                batch_size=8,
                rank=rank,
                world_size=workers,
                seed=7,
                epoch=lambda: epoch,
                tick=lambda *_: True,
                pin=False,
            )
        )
        for rank in range(workers)
    ]


def _pictures(parts: list[Batch]) -> dict[int, tuple[bool, float]]:
    """Picture -> how it is augmented, of one step over all its workers."""
    seen = {}
    for part in parts:
        for row, place in enumerate(part.places):
            if place >= 0:
                assert int(part.pixels[row, 0, 0, 0]) == place
                seen[int(place)] = (bool(part.flips[row]), float(part.crops[row].sum()))
    return seen


@pytest.mark.parametrize("workers", [2, 3, 4, 16])
def test_a_step_holds_the_same_pictures_changed_the_same_way(workers: int) -> None:
    """`num_workers` is a speed setting: also when a worker has no picture in a step."""
    alone, together = _epoch(1), _epoch(workers)

    assert {len(batches) for batches in together} == {len(alone[0])}
    for step, (batch,) in enumerate(zip(*alone, strict=True)):
        assert _pictures([batch]) == _pictures([batches[step] for batches in together])


@pytest.mark.parametrize("workers", [1, 2, 4, 16])
def test_an_epoch_takes_every_picture_once_and_the_mean_over_workers_is_the_steps_mean(workers: int) -> None:
    """No picture is dropped for an even division, none is counted twice."""
    batches = _epoch(workers)
    counted = Counter(int(place) for parts in batches for batch in parts for place in batch.places if place >= 0)

    assert counted == dict.fromkeys(range(53), 1)
    for parts in zip(*batches, strict=True):
        mean_over_workers = sum(float((part.weights * part.labels).sum()) / part.share for part in parts) / workers
        real = np.concatenate([part.labels[part.weights > 0] for part in parts])
        assert mean_over_workers == pytest.approx(real.mean())


def test_steps_have_nearly_equal_size_and_a_worker_never_gets_a_single_row() -> None:
    """A short last batch is noise with full weight; BatchNorm cannot normalise one value."""
    sizes = [int((batch.places >= 0).sum()) for batch in _epoch(1)[0]]

    assert max(sizes) - min(sizes) <= 1
    assert min(len(batch.labels) for parts in _epoch(16) for batch in parts) >= 2


def test_the_order_changes_with_the_epoch_and_repeats_with_the_seed() -> None:
    """The first epoch takes them as they are decoded."""
    orders = [[int(place) for batch in _epoch(1, epoch=epoch)[0] for place in batch.places] for epoch in (0, 1, 2, 1)]

    assert orders[0] == list(range(53))
    assert orders[1] != orders[2]
    assert orders[1] == orders[3]


def test_a_picture_that_cannot_be_read_any_more_weighs_nothing() -> None:
    """It was fine when the catalog was made; the run goes on without it."""
    batches = _epoch(1, broken=(5,))[0]

    weights = {
        int(place): float(weight)
        for batch in batches
        for place, weight in zip(batch.places, batch.weights, strict=True)
    }
    assert weights[5] == 0.0
    assert sum(weights.values()) == 52


@pytest.mark.parametrize(("count", "workers"), [(1, 1), (1, 4), (3, 4), (53, 1), (53, 2), (53, 4), (100, 7)])
def test_evaluation_sees_every_picture_once_in_as_many_batches_on_every_worker(count: int, workers: int) -> None:
    """DDP waits for every worker in evaluation too: one batch more on one of them would hang."""
    split = [
        list(
            EvalBatches(
                _Pixels(count),  # type: ignore[arg-type]
                np.zeros(count, np.int64),
                batch_size=16,
                rank=rank,
                world_size=workers,
                pin=False,
            )
        )
        for rank in range(workers)
    ]

    assert len({len(batches) for batches in split}) == 1
    weighed = [
        int(place)
        for batches in split
        for batch in batches
        for place, weight in zip(batch.places, batch.weights, strict=True)
        if weight > 0
    ]
    assert sorted(weighed) == list(range(count))
    assert all(
        torch.isfinite(batch.pixels.float()).all() and len(batch.labels) for batches in split for batch in batches
    )


def test_a_stop_reaches_the_one_who_iterates() -> None:
    """The prefetching thread must not swallow it."""
    batches = TrainBatches(
        _Pixels(32),  # type: ignore[arg-type]
        np.zeros(32, np.int64),
        batch_size=8,
        rank=0,
        world_size=1,
        seed=0,
        epoch=lambda: 0,
        tick=lambda epoch, step, steps: step < 2,
        pin=False,
    )
    taken = []
    with pytest.raises(StopRequested):
        for batch in batches:
            taken.append(batch)

    assert len(taken) == 2
