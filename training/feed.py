"""The one actor between the driver, Ray Data and the workers.

It decodes each split once, hands the blocks to the workers as they get ready, and carries what they must agree on: how
far each is, and at which step all of them stop when the user asks to.
"""

import asyncio
import contextlib
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from classifier.errors import DatasetError
from classifier.preprocess import PreprocessSpec
from training.root import Root
from training.unreadable import Unreadable, UnreadableBook, first_note

if TYPE_CHECKING:
    import pyarrow as pa

# A worker asks again after this long: a wait never outlives its reason unseen.
_POLL_S = 10.0
# A worker tells this often what it does.
BEAT_S = 5.0
# What a worker can be doing with a batch; one that the others wait for is in an earlier phase than they are.
PHASES = ("waiting for pictures", "computing", "adding up gradients", "saving the epoch", "writing the model")


@dataclass(frozen=True)
class FeedPlan:
    """What to decode, and how."""

    root: Root
    splits: "dict[str, pa.Array]"  # split -> paths, in the order in which they are decoded
    spec: PreprocessSpec
    mean_bytes: float  # the size of a picture's file
    decode_cpus: float  # what one decode task asks for
    decode_tasks: int  # how many of them run at a time
    shards: dict[str, Path] | None  # split -> where its blocks are written; None keeps them in the object store
    name: str
    max_bad_share: float  # of all pictures, how many may be unreadable by now


class Worker:
    """What the feed knows of a worker of the present attempt."""

    def __init__(self, where: str, handle: Any) -> None:
        self.where, self.handle = where, handle
        self.place: tuple[int, int] | None = None  # epoch, step that it asked for
        self.doing: tuple[int, int, int] | None = None  # epoch, batch, phase
        self._began_s = self._heard_s = time.monotonic()

    def heard(self, doing: tuple[int, int, int] | None, since_s: float) -> None:
        """It told what it does, and for how long already."""
        self.doing, self._heard_s = doing, time.monotonic()
        self._began_s = self._heard_s - since_s

    @property
    def stuck_s(self) -> float:
        """For how long it has been doing the same."""
        return time.monotonic() - self._began_s

    @property
    def is_silent(self) -> bool:
        """Whether not even its watch is heard any more: the process is stopped, or its machine cut off."""
        return time.monotonic() - self._heard_s > 3 * BEAT_S


async def _wait(*, for_event: asyncio.Event, at_most_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(for_event.wait(), at_most_s)


class Decoding:
    """One pass over all pictures. Another one begins when blocks of it were lost: what the older one still gives is dropped."""

    def __init__(self, plan: FeedPlan) -> None:
        self.blocks: dict[str, list[tuple[Any, int]]] = {split: [] for split in plan.splits}
        pictures = {split: len(paths) for split, paths in plan.splits.items()}
        self.unreadable = UnreadableBook(pictures, max_share=plan.max_bad_share)
        self.failure: BaseException | None = None


class Feed:
    """Runs as an async actor; every method is a question that one of the others asks."""

    def __init__(self, plan: FeedPlan) -> None:
        self._plan = plan
        self._decoding = Decoding(plan)
        self._has_begun = False
        self._changed = asyncio.Event()
        self._attempt = ""
        self._workers: dict[int, Worker] = {}
        self._steps = 0
        self._is_seen = asyncio.Event()
        self._stopping = self._has_stopped = False
        self._ceiling: tuple[int, int] | None = None
        self._events: list[dict[str, Any]] = []
        self._told = asyncio.Event()
        self._fault: dict[str, Any] | None = None
        self._failures = 0
        self._room: Any = None
        self._trial: Any = None

    async def start(self) -> None:
        """Begin to decode, unless somebody has seen to it before."""
        if not self._has_begun:
            self._has_begun = True
            self._begin()

    def _begin(self) -> None:
        arguments = (self._decoding, asyncio.get_running_loop())
        threading.Thread(target=self._decode, args=arguments, name="decode", daemon=True).start()

    async def join(self, attempt: str, rank: int, where: str, handle: Any) -> None:
        """A worker starts; the first one of a new attempt makes the feed forget how far the last attempt was.

        Args:
            attempt: the same for all workers that were started together.
            rank: which of them it is.
            where: its machine and process, for the user.
            handle: its actor.
        """
        if attempt != self._attempt:
            self._attempt, self._workers, self._ceiling = attempt, {}, None
            failure = self._decoding.failure
            if failure is not None and not isinstance(failure, DatasetError):  # what ended it may be over
                self._decoding = Decoding(self._plan)
                self._begin()
        self._workers[rank] = Worker(where, handle)

    async def blocks(self, split: str, since: int) -> list[tuple[Any, int]]:
        """The blocks of a split from number `since` on; waits for one, at most `_POLL_S`.

        Raises:
            whatever ended the decoding.
        """
        if self._decoding.failure is None and len(self._decoding.blocks[split]) <= since:
            self._changed.clear()
            await _wait(for_event=self._changed, at_most_s=_POLL_S)
        if self._decoding.failure is not None:
            raise self._decoding.failure
        return self._decoding.blocks[split][since:]

    async def tick(self, attempt: str, rank: int, epoch: int, step: int, steps: int) -> bool:
        """A worker is about to take a step. False: take no more, and every other worker is told so at this same step.

        Workers that stopped at different steps would wait for each other's gradients for ever.

        Raises:
            DatasetError: the pictures are not what they were; decoding, which is ahead of training, has found it out.
        """
        if isinstance(self._decoding.failure, DatasetError):
            raise self._decoding.failure
        if attempt != self._attempt:  # its peers are dead, and it will be ended
            return True
        if self._stopping and self._ceiling is None:
            furthest = max(self._places(), default=(epoch, step - 1))
            self._ceiling = (furthest[0], furthest[1] + 1)
        if self._ceiling is not None and (epoch, step) >= self._ceiling:
            self._has_stopped = True
            return False
        self._workers[rank].place, self._steps = (epoch, step), steps
        return True

    async def be_seen(self) -> None:
        """There is a dashboard for somebody to look at."""
        self._is_seen.set()

    async def is_seen(self) -> bool:
        """Whether there is a dashboard; waits for one, at most `_POLL_S`."""
        await _wait(for_event=self._is_seen, at_most_s=_POLL_S)
        return self._is_seen.is_set()

    async def beat(self, attempt: str, rank: int, doing: tuple[int, int, int] | None, since_s: float) -> None:
        """A worker is alive: what it does (epoch, batch, phase; see `watch`), and for how many seconds already.

        None: it does nothing that another one waits for any more.
        """
        if attempt == self._attempt:
            self._workers[rank].heard(doing, since_s)

    async def blame(self, fault: dict[str, Any]) -> None:
        """A worker's code raised; what the first one says is what the user is shown."""
        self._fault = self._fault or fault

    async def fail(self, said: dict[int, str]) -> None:
        """Workers failed (rank -> what happened, as a predicate), or with no rank, -1, what runs them."""
        self._failures, self._fault = self._failures + 1, None
        text = ". ".join(f"{self._name_of(rank)} {what}" for rank, what in sorted(said.items()))
        await self.post({"kind": "failure", "text": text, "number": self._failures})

    async def lose(self, attempt: str, error: BaseException) -> None:
        """A block is gone, and Ray could not make it again: the next attempt gets them all anew."""
        if attempt == self._attempt:
            self._decoding.failure = error

    async def tell_unreadable(self, split: str, machine: str, found: dict[str, str]) -> None:
        """A decode task could not read these pictures: path -> why. Too many of them end the run."""
        book = self._decoding.unreadable
        is_first = not book.rows
        book.add(split, machine, found)
        if is_first:
            await self.post({"kind": "note", "text": first_note(book.rows[0])})
        said = book.too_many()
        if said is not None and self._decoding.failure is None:
            self._decoding.failure = DatasetError(said)
            self._changed.set()

    async def unreadable(self) -> list[Unreadable]:
        """The pictures that could not be read."""
        return self._decoding.unreadable.rows

    async def workers(self) -> dict[int, Any]:
        """The actors of the present attempt, by rank."""
        return {rank: worker.handle for rank, worker in self._workers.items()}

    async def verdict(self) -> tuple[dict[str, Any] | None, int]:
        """The fault of the code, if there was one, and how many failures of the cluster there were."""
        return self._fault, self._failures

    async def take_trial(self, trial: Any) -> None:
        """The actor of the Tune trial, which has started."""
        self._trial = trial

    async def take_room(self, room: Any) -> None:
        """The placement group that the workers run in."""
        self._room = room

    async def give_room_back(self) -> None:
        """The controller is gone: without its workers' room there may be none for the next one's."""
        from ray.util import remove_placement_group

        if self._room is not None:
            remove_placement_group(self._room)
            self._room = None

    async def stop(self) -> None:
        """The user asks to stop."""
        self._stopping = True

    async def was_stopped(self) -> bool:
        """Whether workers were told to stop; a request that came after their last step was not carried out."""
        return self._has_stopped

    async def end(self) -> None:
        """Kill the trial and its workers: the user does not wait for them any longer. Nothing follows them."""
        import ray

        self._fault = {"line": "the run was ended", "traceback": "", "users": True}
        # the trial first: it would start the workers anew
        for actor in (self._trial, *(worker.handle for worker in self._workers.values())):
            if actor is not None:
                ray.kill(actor)
        await self.give_room_back()

    async def post(self, event: dict[str, Any]) -> None:
        """A worker tells the user something; see `progress.EpochProgress`."""
        self._events.append(event)
        self._told.set()

    async def wake(self) -> None:
        """Whoever waits for an event is to wait no longer."""
        self._told.set()

    async def status(self, since: int, *, wait_s: float = 0.0) -> dict[str, Any]:
        """How far training is, and the events from number `since` on; waits for one, at most `wait_s`."""
        if wait_s and len(self._events) <= since:
            await _wait(for_event=self._told, at_most_s=wait_s)
            self._told.clear()  # not before: it may be set already, for whoever asks next
        return {
            "place": max(self._places(), default=None),
            "steps": self._steps,
            "workers": len(self._workers),
            "events": self._events[since:],
            "slowest": self._slowest(),
        }

    def _places(self) -> list[tuple[int, int]]:
        return [worker.place for worker in self._workers.values() if worker.place is not None]

    def _name_of(self, rank: int) -> str:
        if rank < 0:
            return "The run's controller"
        worker = self._workers.get(rank)
        return f"Worker {rank}{f' ({worker.where})' if worker else ''}"

    def _slowest(self) -> tuple[str, str, float] | None:
        """The worker that the others wait for: its name, what it does, for how many seconds already."""
        heard = {rank: worker for rank, worker in self._workers.items() if worker.doing is not None}
        if not heard:
            return None
        silent = {rank: worker for rank, worker in heard.items() if worker.is_silent}
        rank, worker = min((silent or heard).items(), key=lambda pair: (pair[1].doing, -pair[1].stuck_s))
        assert worker.doing is not None
        return self._name_of(rank), "not answering" if silent else PHASES[worker.doing[2]], worker.stuck_s

    def _decode(self, decoding: Decoding, loop: asyncio.AbstractEventLoop) -> None:
        import ray

        from training.stream import stream_blocks

        plan, me = self._plan, ray.get_runtime_context().current_actor
        try:
            for split, paths in plan.splits.items():
                stream = stream_blocks(
                    paths,
                    root=plan.root,
                    spec=plan.spec,
                    mean_bytes=plan.mean_bytes,
                    task_cpus=plan.decode_cpus,
                    tasks=plan.decode_tasks,
                    name=f"{plan.name}-{split}",
                    shards=plan.shards[split] if plan.shards else None,
                    book=(me, split),
                )
                for block in stream:
                    if decoding is not self._decoding:  # a later one has taken its place
                        return
                    decoding.blocks[split].append(block)
                    loop.call_soon_threadsafe(self._changed.set)
        except BaseException as error:
            decoding.failure = error
            loop.call_soon_threadsafe(self._changed.set)
