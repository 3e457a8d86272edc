"""A worker's own watch: says what the worker does, and ends it when it does nothing for too long."""

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self, TypeVar

import lightning.pytorch as lightning

from training.feed import BEAT_S, PHASES

Doing = tuple[int, int, int]  # epoch, batch (validation batches come after those of training), phase
_WAITING, _COMPUTING, _ADDING, _SAVING, _WRITING = range(len(PHASES))
_BATCH = TypeVar("_BATCH")


class Watch(lightning.Callback):
    """Follows a worker from batch to batch, and tells from a thread of its own.

    Use as a context manager around everything that the worker does.

    A worker that waits for another is in a later phase of the same batch: that is how the slow one is told from those
    that it holds up.
    """

    def __init__(
        self,
        *,
        epoch: Callable[[], int],
        tell: Callable[[Doing | None, float], Any],
        hang_after_s: float,
        end: Callable[[], Any] = lambda: os._exit(1),
        beat_s: float = BEAT_S,
    ) -> None:
        """Make the watch.

        Args:
            epoch: the epoch under way.
            tell: is given what the worker does, and for how many seconds already; None at the end.
            hang_after_s: a worker that does the same for longer is ended; the others would wait for it for ever.
            end: how.
            beat_s: how often it tells.
        """
        self._epoch, self._tell, self._end = epoch, tell, end
        self._hang_after_s, self._beat_s = hang_after_s, beat_s
        self._doing: Doing = (0, 0, _WAITING)
        self._since_s = time.monotonic()
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self._set(0, _WAITING)
        threading.Thread(target=self._run, name="watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def follow(self, batches: Iterable[_BATCH]) -> Iterator[_BATCH]:
        """Batches that are scored outside of a fit."""
        self._set(0, _WAITING)
        for batch in batches:
            self._set(self._doing[1], _COMPUTING)
            yield batch
            self._set(self._doing[1] + 1, _WAITING)

    def writes(self) -> None:
        """From here on the worker writes the model."""
        self._set(self._doing[1] + 1, _WRITING)

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """The pictures are there."""
        self._set(self._doing[1], _COMPUTING)

    def on_before_backward(self, *_: Any) -> None:
        """From here on a worker waits for the others."""
        self._set(self._doing[1], _ADDING)

    def on_train_batch_end(self, *_: Any) -> None:
        """The step is over."""
        self._set(self._doing[1] + 1, _WAITING)

    def on_validation_batch_start(self, *_: Any) -> None:
        """As in training."""
        self._set(self._doing[1], _COMPUTING)

    def on_validation_batch_end(self, *_: Any) -> None:
        """As in training."""
        self._set(self._doing[1] + 1, _WAITING)

    def on_validation_end(self, *_: Any) -> None:
        """What is left of the epoch is the checkpoint."""
        self._set(self._doing[1] + 1, _SAVING)

    def on_train_epoch_start(self, *_: Any) -> None:
        """A new epoch."""
        self._set(0, _WAITING)

    def _set(self, batch: int, phase: int) -> None:
        self._doing, self._since_s = (self._epoch(), batch, phase), time.monotonic()

    def _run(self) -> None:
        while not self._over.wait(self._beat_s):
            doing, since_s = self._doing, time.monotonic() - self._since_s
            self._tell(doing, since_s)
            if since_s > self._hang_after_s:
                print(f"No progress for {since_s:.0f} s while {PHASES[doing[2]]}; the stacks of all threads:")  # noqa: T201
                faulthandler.dump_traceback(all_threads=True)
                self._end()
                return
        self._tell(None, 0.0)
