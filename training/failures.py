"""What went wrong in a run: a fault of the code, which would come again, or of the cluster, which may not.

A fault of the code ends the run at once, with its own traceback. After a fault of the cluster the workers are started
anew from the last checkpoint, at most `trainer.max_failures` times.
"""

import errno
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import ray
from ray.train import UserCallback
from ray.train.v2._internal.execution.callback import ControllerCallback

from classifier.errors import ClassifierError

# How long the controller looks for the worker whose death made the others lose their connection.
_FIND_DEAD_WITHIN_S = 5.0
_LOOK_ROUND_S = 1.0
_LINE_CHARACTERS = 300
# What a file system or a network says when it may answer differently later.
_TRANSIENT = {
    errno.EIO,
    errno.ESTALE,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EAGAIN,
    errno.EBUSY,
    errno.EPIPE,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.ECONNABORTED,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
}
# Gloo and NCCL raise plain RuntimeErrors. "enforce fail" is how Gloo reports tensors that do not fit: that is a bug.
_CONNECTION = re.compile(
    r"gloo/transport|\[gloo\]|Gloo connect|NCCL|ProcessGroup|Connection (closed|reset|refused)|Broken pipe|"
    r"Application timeout caused pair closure|Timed out waiting \d+ ?ms",
    re.IGNORECASE,
)
OUT_OF_MEMORY = "running low on memory"  # how Ray says that it has ended processes for it
_ANSWER = TypeVar("_ANSWER")


class CodeFailed(Exception):
    """A worker's own code raised: it would raise again. The message is the first cause, in one line."""


class SystemFailed(Exception):
    """Something below a worker's code gave way. The message is a sentence for a person."""


class StorageFailed(SystemFailed):
    """A checkpoint could not be written for as long as `trainer.storage_wait_s` allows."""


class FailureReport(UserCallback):
    """Runs in Ray Train's controller: says what happened, and ends the run when the code is at fault."""

    def __init__(self, feed: Any) -> None:
        self._feed = feed
        self._told: set[str] = set()

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called whenever workers are found to have failed; a raise here is what ends a Ray Train run at once.

        Raises:
            CodeFailed: a worker's own code raised, and no worker is dead.
        """
        told = repr(sorted((rank, str(error)) for rank, error in worker_exceptions.items()))
        if told in self._told:  # a controller that waits out a preemption asks again and again
            return
        ours = CodeFailed | SystemFailed
        dead = {rank: str(error) for rank, error in worker_exceptions.items() if not isinstance(error, ours)}
        faults = [error for error in worker_exceptions.values() if isinstance(error, CodeFailed)]
        stored = any(isinstance(error, StorageFailed) for error in worker_exceptions.values())
        if not dead and not stored:
            dead = self._find_dead(_FIND_DEAD_WITHIN_S if not faults else _LOOK_ROUND_S)
        if faults and not dead:  # a peer's death can surface in ways that nobody has seen yet
            raise faults[0]
        self._told.add(told)
        said = {rank: how_it_died(text) for rank, text in dead.items()} or {
            rank: str(error) for rank, error in worker_exceptions.items()
        }
        ray.get(self._feed.fail.remote(said), timeout=30)

    def _find_dead(self, within_s: float) -> dict[int, str]:
        """Workers that lost their connection say nothing of the one that died: rank -> why, for those that did."""
        workers: Mapping[int, Any] = ray.get(self._feed.workers.remote(), timeout=30)
        deadline = time.monotonic() + within_s
        asked = {worker.__ray_ready__.remote(): rank for rank, worker in workers.items()}
        dead: dict[int, str] = {}
        while asked and not dead and time.monotonic() < deadline:
            for answer in ray.wait(list(asked), timeout=0.5)[0]:
                rank = asked.pop(answer)
                try:
                    ray.get(answer)
                    time.sleep(0.1)
                    asked[workers[rank].__ray_ready__.remote()] = rank
                except ray.exceptions.RayActorError as error:
                    dead[rank] = str(error)
        return dead


class GrowthReport(ControllerCallback):
    """Runs in Ray Train's controller: says that a run is about to take up more room, which ends the epoch under way."""

    def __init__(self, feed: Any) -> None:
        self._feed = feed
        self._workers: int | None = None

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Called before workers are started, the first time, after a failure, and when their number changes."""
        workers: int = resize_decision.num_workers
        if self._workers is not None and workers > self._workers:
            text = f"There is room for {workers} workers now; starting anew with them from the last checkpoint."
            ray.get(self._feed.post.remote({"kind": "note", "text": text}), timeout=30)
        self._workers = workers


def root(error: BaseException) -> BaseException:
    """The error inside those that Ray wraps around what a task raised."""
    while isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


def is_systems(error: BaseException) -> bool:
    """Whether something below our code gave way: Ray itself, the network between workers, a disk for a moment."""
    import torch

    error = root(error)
    if isinstance(error, ray.exceptions.RayTaskError):  # a cause that could not be unpickled
        return False
    if type(error).__module__.partition(".")[0] == "ray":
        return True
    if isinstance(error, OSError):
        return not isinstance(error, ClassifierError) and error.errno in _TRANSIENT
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and "enforce fail" not in str(error) and bool(_CONNECTION.search(str(error)))


def in_one_line(error: BaseException) -> str:
    """What was raised, for the terminal."""
    import torch

    error = root(error)
    said = " ".join(str(error).split())
    if len(said) > _LINE_CHARACTERS:
        said = f"{said[:_LINE_CHARACTERS]} ..."
    if isinstance(error, ClassifierError):
        return said
    if is_systems(error) and isinstance(error, RuntimeError):
        return "lost its connection to the other workers"
    advice = "; lower data.batch_size" if isinstance(error, MemoryError | torch.OutOfMemoryError) else ""
    return f"{type(error).__name__}: {said}{advice}" if said else f"{type(error).__name__}{advice}"


def how_it_died(text: str) -> str:
    """What Ray says of a dead worker, as a person says it."""
    low = text.lower()
    if OUT_OF_MEMORY in low or "outofmemory" in low:
        return "was ended because its machine ran out of memory; lower data.batch_size or num_workers"
    if "node has died" in low or "node was terminated" in low or "nodediederror" in low:
        return "was lost with its machine"
    if "health check has been hanging" in low:
        return "does not answer any more"
    return "was killed or crashed (no memory left on its machine does that too: then lower data.batch_size)"


def patiently(write: Callable[[], _ANSWER], *, wait_s: float, what: str, tell: Callable[[str], None]) -> _ANSWER:
    """Write to a storage that may be out of reach for a moment: try again for a limited time.

    Args:
        write: can be called again after an OSError.
        wait_s: how long after the first failure another attempt is made.
        what: what is written, for the messages: `checkpoint of epoch 3`.
        tell: is given a line for the user, once.

    Raises:
        StorageFailed: it failed all the time.
    """
    deadline: float | None = None
    pause_s = 0.2
    while True:
        try:
            return write()
        except OSError as error:
            now = time.monotonic()
            if deadline is None:
                deadline = now + wait_s
                if wait_s > 0:
                    tell(f"The {what} cannot be written ({_reason(error)}); trying again for {wait_s:.0f} s.")
            if now + pause_s > deadline:
                raise StorageFailed(f"could not write the {what} for {wait_s:.0f} s ({_reason(error)})") from error
        time.sleep(pause_s)
        pause_s = min(5.0, 2 * pause_s)


def _reason(error: OSError) -> str:
    return error.strerror or " ".join(str(error).split())[:_LINE_CHARACTERS]
