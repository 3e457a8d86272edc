"""Which pictures a worker sees in which step.

The pictures of a step are a function of (seed, epoch, step) alone; the workers divide them. So the number of workers
changes the speed and not the result: no picture is dropped, none counts twice, and an epoch has the same steps.

Axis letters: B pictures of one worker, H and W pixels.
"""

import bisect
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.stream import read_block

_PREFETCHED = 2
# BatchNorm cannot normalise a single value, which a worker may be left with at the end of an epoch.
_FEWEST_ROWS = 2
_FEWEST_EVAL_ROWS = 16


class StopRequested(Exception):
    """The user asked to stop; every worker gets this at the same step."""


class Batch(NamedTuple):
    """One worker's part of a step."""

    pixels: Tensor  # uint8 [B,3,H,W]
    labels: Tensor  # int64 [B]
    weights: Tensor  # float32 [B]: 1, or 0 for padding and for a picture that could not be read any more
    share: float  # what a sum over this part must be divided by, so that the mean over workers is the step's mean
    flips: Tensor  # bool [B]
    crops: Tensor  # float32 [B,3]: area 0..1, horizontal and vertical place 0..1
    places: np.ndarray  # int64 [B]: which pictures of the split these are; -1 for padding


class Pixels:
    """A split's decoded pictures, as they arrive."""

    def __init__(self, feed: Any, split: str, *, pin: bool = False) -> None:
        self._feed, self._split, self._pin = feed, split, pin
        self._blocks: list[tuple[np.ndarray, np.ndarray]] = []
        self._ends: list[int] = []

    def rows(self, places: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Copy pictures out of their blocks; waits for those that are not decoded yet.

        Args:
            places: int [B], places in the split.

        Returns:
            uint8 [B,3,H,W], in pinned memory where that was asked for: the only copy on the way to a GPU; and bool [B]:
            whether the picture could be read.
        """
        self._fetch(int(places.max()))
        block_of = [bisect.bisect_right(self._ends, int(place)) for place in places]
        first = self._blocks[0][0]
        pixels = torch.empty((len(places), *first.shape[1:]), dtype=torch.uint8, pin_memory=self._pin)
        filled, readable = pixels.numpy(), np.empty(len(places), dtype=bool)
        for row, (place, number) in enumerate(zip(places, block_of, strict=True)):
            block_pixels, block_readable = self._blocks[number]
            offset = int(place) - (self._ends[number] - len(block_readable))
            filled[row], readable[row] = block_pixels[offset], block_readable[offset]
        return pixels, readable

    def _fetch(self, furthest: int) -> None:
        import ray

        while not self._ends or self._ends[-1] <= furthest:
            for block, rows in ray.get(self._feed.blocks.remote(self._split, len(self._blocks))):
                self._blocks.append(read_block(block if isinstance(block, str) else ray.get(block)))
                self._ends.append((self._ends[-1] if self._ends else 0) + rows)


class TrainBatches:
    """An epoch of training steps; iterating again gives the epoch that `epoch` then names."""

    def __init__(
        self,
        pixels: Pixels,
        labels: np.ndarray,  # int64 [N]
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        epoch: Callable[[], int],
        tick: Callable[[int, int, int], bool],
        pin: bool,
    ) -> None:
        self._pixels, self._labels, self._pin = pixels, labels, pin
        self._rank, self._world_size, self._seed = rank, world_size, seed
        self._epoch, self._tick = epoch, tick
        self._steps = math.ceil(len(labels) / batch_size)

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        epoch = self._epoch()
        parts = steps_of_epoch(len(self._labels), steps=self._steps, seed=self._seed, epoch=epoch)
        return _prefetched(lambda step: self._batch(epoch, step, parts[step]), self._steps)

    def _batch(self, epoch: int, step: int, places: np.ndarray) -> Batch:
        if not self._tick(epoch, step, self._steps):
            raise StopRequested
        # drawn for the whole step, whoever computes which part of it
        random = np.random.default_rng([self._seed, epoch, step])
        flips, crops = random.random(len(places)) < 0.5, random.random((len(places), 3), dtype=np.float32)
        mine = np.array_split(np.arange(len(places)), self._world_size)[self._rank]
        padding = max(0, _FEWEST_ROWS - len(mine))
        rows = np.concatenate([mine, np.zeros(padding, dtype=mine.dtype)])
        weights = np.concatenate([np.ones(len(mine), np.float32), np.zeros(padding, np.float32)])
        share = len(places) / self._world_size
        batch = _batch(self._pixels, self._labels, places[rows], weights, share, flips[rows], crops[rows])
        return _pinned(batch) if self._pin else batch


class EvalBatches:
    """Every picture of a split once; each worker has as many batches as the others."""

    def __init__(
        self, pixels: Pixels, labels: np.ndarray, *, batch_size: int, rank: int, world_size: int, pin: bool
    ) -> None:
        self._pixels, self._labels, self._pin = pixels, labels, pin
        mine = np.array_split(np.arange(len(labels)), world_size)[rank]
        rows = max(_FEWEST_EVAL_ROWS, math.ceil(batch_size / world_size))
        most = math.ceil(len(labels) / world_size)
        # every rank must see as many batches: DDP waits for all of them in evaluation too
        steps = math.ceil(most / rows)
        self._parts = np.array_split(mine, steps)

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Batch]:
        return _prefetched(self._batch, len(self._parts))

    def _batch(self, step: int) -> Batch:
        places = self._parts[step]
        weights = np.ones(len(places), np.float32)
        if len(places) == 0:
            places, weights = np.zeros(1, np.int64), np.zeros(1, np.float32)
        nothing = np.zeros(len(places), bool), np.zeros((len(places), 3), np.float32)
        batch = _batch(self._pixels, self._labels, places, weights, float(len(places)), *nothing)
        return _pinned(batch) if self._pin else batch


def until_stopped(batches: EvalBatches, go_on: Callable[[int, int], bool]) -> Iterator[Batch]:
    """The batches, for as long as `go_on(batch, batches)` says so. Every worker has as many, so all stop at the same one.

    Raises:
        StopRequested: it said no.
    """
    for step, batch in enumerate(batches):
        if not go_on(step, len(batches)):
            raise StopRequested
        yield batch


def steps_of_epoch(pictures: int, *, steps: int, seed: int, epoch: int) -> Sequence[np.ndarray]:
    """The pictures of each step: a new order every epoch, in steps of nearly equal size.

    The first epoch takes them in the order of the split, shuffled already: it need not wait for the last block.
    Steps of equal size, because a short last one would be noise with full weight (BatchNorm suffers most).
    """
    order = np.arange(pictures) if epoch == 0 else np.random.default_rng([seed, epoch]).permutation(pictures)
    return np.array_split(order, steps)


def _batch(
    pixels: Pixels,
    labels: np.ndarray,
    places: np.ndarray,
    weights: np.ndarray,
    share: float,
    flips: np.ndarray,
    crops: np.ndarray,
) -> Batch:
    rows, readable = pixels.rows(places)
    return Batch(
        pixels=rows,
        labels=torch.from_numpy(labels[places]),
        weights=torch.from_numpy(weights * readable),
        share=share,
        flips=torch.from_numpy(flips),
        crops=torch.from_numpy(crops),
        places=np.where(weights > 0, places, -1),
    )


def _pinned(batch: Batch) -> Batch:
    pixels, labels, weights, share, flips, crops, places = batch
    pinned = (part.pin_memory() for part in (pixels, labels, weights, flips, crops))
    pixels, labels, weights, flips, crops = pinned
    return Batch(pixels, labels, weights, share, flips, crops, places)


def _prefetched(make: Callable[[int], Batch], steps: int) -> Iterator[Batch]:
    """Make batches in a thread, a few ahead of the one in use."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:
        pending = deque(pool.submit(make, step) for step in range(min(_PREFETCHED, steps)))
        for step in range(steps):
            batch = pending.popleft().result()
            if step + _PREFETCHED < steps:
                pending.append(pool.submit(make, step + _PREFETCHED))
            yield batch
