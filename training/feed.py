"""The one actor between the driver, Ray Data and the workers.

It decodes each split once, hands the blocks to the workers as they get ready, and carries what they must agree on: how
far each is, and at which step all of them stop when the user asks to.
"""

import asyncio
import contextlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classifier.preprocess import PreprocessSpec

# A worker asks again after this long: a wait never outlives its reason unseen.
_POLL_S = 10.0


@dataclass(frozen=True)
class FeedPlan:
    """What to decode, and how."""

    root: Path
    splits: dict[str, list[str]]  # split -> paths, in the order in which they are decoded
    spec: PreprocessSpec
    decode_cpus: float
    decode_tasks: int
    shards: dict[str, Path] | None  # split -> where its blocks are written; None keeps them in the object store
    name: str


class Feed:
    """Runs as an async actor; every method is a question that one of the others asks."""

    def __init__(self, plan: FeedPlan) -> None:
        self._plan = plan
        self._blocks: dict[str, list[tuple[Any, int]]] = {split: [] for split in plan.splits}
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()
        self._places: dict[int, tuple[int, int]] = {}
        self._steps = 0
        self._stopping = False
        self._ceiling: tuple[int, int] | None = None
        self._events: list[dict[str, Any]] = []

    async def start(self) -> None:
        """Begin to decode."""
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._decode, args=(loop,), name="decode", daemon=True).start()

    async def blocks(self, split: str, since: int) -> list[tuple[Any, int]]:
        """The blocks of a split from number `since` on; waits for one, at most `_POLL_S`.

        Raises:
            whatever ended the decoding.
        """
        if len(self._blocks[split]) <= since:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), _POLL_S)
        if self._failure is not None:
            raise self._failure
        return self._blocks[split][since:]

    async def tick(self, rank: int, epoch: int, step: int, steps: int) -> bool:
        """A worker is about to take a step. False: take no more, and every other worker is told so at this same step.

        Workers that stopped at different steps would wait for each other's gradients for ever.
        """
        if self._stopping and self._ceiling is None:
            furthest = max(self._places.values(), default=(epoch, step - 1))
            self._ceiling = (furthest[0], furthest[1] + 1)
        if self._ceiling is not None and (epoch, step) >= self._ceiling:
            return False
        self._places[rank], self._steps = (epoch, step), steps
        return True

    async def stop(self) -> None:
        """The user asks to stop."""
        self._stopping = True

    async def post(self, event: dict[str, Any]) -> None:
        """A worker tells the user something; see `progress.Progress`."""
        self._events.append(event)

    async def status(self, since: int) -> dict[str, Any]:
        """How far training and decoding are, and the events from number `since` on."""
        place = max(self._places.values(), default=None)
        decoded = {split: sum(rows for _, rows in blocks) for split, blocks in self._blocks.items()}
        return {"place": place, "steps": self._steps, "decoded": decoded, "events": self._events[since:]}

    def _decode(self, loop: asyncio.AbstractEventLoop) -> None:
        from training.stream import stream_blocks

        plan = self._plan
        try:
            for split, paths in plan.splits.items():
                stream = stream_blocks(
                    paths,
                    root=plan.root,
                    spec=plan.spec,
                    task_cpus=plan.decode_cpus,
                    tasks=plan.decode_tasks,
                    name=f"{plan.name}-{split}",
                    shards=plan.shards[split] if plan.shards else None,
                )
                for block in stream:
                    self._blocks[split].append(block)
                    loop.call_soon_threadsafe(self._changed.set)
        except BaseException as error:
            self._failure = error
            loop.call_soon_threadsafe(self._changed.set)
