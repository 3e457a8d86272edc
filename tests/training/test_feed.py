"""The workers agree on the step at which they stop."""

import asyncio
import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from classifier import image
from classifier.errors import DatasetError
from classifier.processor import load_preprocess
from tests.conftest import TINY_CONFIG
from training import stream
from training.feed import Feed, FeedPlan

A = "first"


async def _feed(*ranks: int) -> Feed:
    """A feed that these workers have joined; none: two of them."""
    feed = _empty()
    for rank in ranks or (0, 1):
        await feed.join(A, rank, f"here, process {rank}", None)
    return feed


def _empty() -> Feed:
    spec = load_preprocess("tiny", size_px=32, max_pixels=image.MAX_PIXELS, config=TINY_CONFIG)
    return Feed(
        FeedPlan(
            Path(),
            {"train": [], "test": list("abcdefghij")},
            spec,
            mean_bytes=1e3,
            decode_cpus=1,
            decode_tasks=1,
            shards=None,
            name="x",
            max_bad_share=0.2,
        )
    )


def test_workers_at_different_steps_stop_at_the_same_one() -> None:
    """The one that is ahead is waited for: it may be in the middle of an all-reduce with the others."""

    async def story() -> tuple[list[bool], list[bool]]:
        feed = await _feed()
        for step in range(5):
            assert await feed.tick(A, 0, 2, step, 10)
        for step in range(3):
            assert await feed.tick(A, 1, 2, step, 10)
        await feed.stop()
        behind = [await feed.tick(A, 1, 2, step, 10) for step in (3, 4, 5)]
        return behind, [await feed.tick(A, 0, 2, 5, 10)]

    behind, ahead = asyncio.run(story())

    assert behind == [True, True, False]
    assert ahead == [False]


def test_a_stop_before_the_first_step_stops_everyone_there() -> None:
    """Ctrl-C while the workers start."""

    async def story() -> list[bool]:
        feed = await _feed()
        await feed.stop()
        return [await feed.tick(A, rank, 4, 0, 10) for rank in (1, 0)]

    assert asyncio.run(story()) == [False, False]


def test_a_stop_between_epochs_stops_everyone_at_the_next() -> None:
    """A worker that asks for the next epoch while another ends the last one."""

    async def story() -> list[bool]:
        feed = await _feed()
        await feed.tick(A, 0, 0, 9, 10)
        await feed.tick(A, 1, 0, 8, 10)
        await feed.stop()
        return [await feed.tick(A, 0, 1, 0, 10), await feed.tick(A, 1, 0, 9, 10), await feed.tick(A, 1, 1, 0, 10)]

    assert asyncio.run(story()) == [False, True, False]


def test_a_new_attempt_forgets_how_far_the_old_one_was() -> None:
    """A dead worker's place must not decide where the living stop, and a late call of a dead one counts for nothing."""

    async def story() -> tuple[list[bool], tuple[int, int] | None]:
        feed = await _feed(0, 1, 2)
        for rank in range(3):
            await feed.tick(A, rank, 2, 8, 10)
        await feed.stop()
        assert not await feed.tick(A, 0, 2, 9, 10)
        for rank in range(2):  # started anew, one fewer, from the epoch's start
            await feed.join("second", rank, "there", None)
        assert await feed.tick(A, 2, 2, 9, 10)
        place = (await feed.status(0))["place"]
        return [await feed.tick("second", rank, 2, 0, 10) for rank in (1, 0)], place

    assert asyncio.run(story()) == ([False, False], None)


def test_failures_are_counted_and_named() -> None:
    """Who, where, and the how-many-eth it is; a worker's fault is that of the first one that speaks."""

    async def story() -> tuple[list[dict[str, object]], object]:
        feed = await _feed()
        await feed.blame({"line": "RuntimeError: what the death of worker 1 looked like in worker 0"})
        await feed.fail({1: "was lost with its machine"})
        await feed.fail({-1: "was killed or crashed"})
        await feed.blame({"line": "KeyError: 1"})
        await feed.blame({"line": "lost its connection"})
        return (await feed.status(0))["events"], await feed.verdict()

    events, verdict = asyncio.run(story())

    assert [(event["text"], event["number"]) for event in events] == [
        ("Worker 1 (here, process 1) was lost with its machine", 1),
        ("The run's controller was killed or crashed", 2),
    ]
    assert verdict == ({"line": "KeyError: 1"}, 2)


def test_the_one_that_the_others_wait_for_is_the_slowest() -> None:
    """It is in an earlier phase of the same batch; one that is not heard of any more comes first."""

    async def story() -> list[tuple[str, str]]:
        feed = await _feed(0, 1, 2)
        named = []
        for rank, doing in enumerate([(4, 7, 2), (4, 7, 1), (4, 7, 2)]):
            await feed.beat(A, rank, doing, 65.0)
        named.append((await feed.status(0))["slowest"])
        feed._workers[2]._heard_s -= 60
        named.append((await feed.status(0))["slowest"])
        assert all(since_s >= 65 for _, _, since_s in named)
        for rank in range(3):
            await feed.beat(A, rank, None, 0)
        assert (await feed.status(0))["slowest"] is None
        return [(name, doing) for name, doing, _ in named]

    assert asyncio.run(story()) == [
        ("Worker 1 (here, process 1)", "computing"),
        ("Worker 2 (here, process 2)", "not answering"),
    ]


def test_a_new_attempt_gets_blocks_that_were_lost_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """And only those: what the old decoding still gives would shift every later row away from its label."""
    released = threading.Event()
    over: list[str] = []
    went_on: list[str] = []

    def old() -> Iterator[tuple[str, int]]:
        yield "lost", 5
        try:
            assert released.wait(10)
            yield "late", 5
            went_on.append("old")
            raise OSError(errno.EIO, "of the old one")
        finally:
            over.append("old")

    streams = [iter([]), iter([("first", 5), ("second", 5)]), old()]
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(current_actor=None))
    monkeypatch.setattr(stream, "stream_blocks", lambda *_, **options: streams.pop())

    async def story() -> list[tuple[object, int]]:
        feed = await _feed()
        await feed.start()
        assert await feed.blocks("train", 0) == [("lost", 5)]
        await feed.lose(A, ConnectionError("lost"))
        with pytest.raises(ConnectionError):
            await feed.blocks("train", 0)
        for rank in (1, 0):
            await feed.join("second", rank, "there", None)
        await feed.blocks("train", 1)
        released.set()
        while not over:
            await asyncio.sleep(0.01)
        await feed.lose(A, ConnectionError("told late by a worker of the first attempt"))
        return await feed.blocks("train", 0)

    assert asyncio.run(story()) == [("first", 5), ("second", 5)]
    assert not went_on


def test_too_many_unreadable_pictures_end_the_run_at_the_next_step() -> None:
    """Decoding is ahead of training: those of the test split must not come to light after the last epoch."""

    async def story() -> list[dict[str, object]]:
        feed = await _feed()
        await feed.tell_unreadable("test", "node-3", {"c": "cannot be opened: gone"})
        await feed.tell_unreadable("test", "node-3", {"d": "cannot be opened: gone"})
        await feed.tell_unreadable("test", "node-4", {"d": "cannot be opened: gone"})  # that task ran twice
        assert await feed.tick(A, 0, 0, 0, 10)
        assert [row.filepath for row in await feed.unreadable()] == ["c", "d"]
        await feed.tell_unreadable("test", "node-3", {"e": "cannot be opened: gone"})
        said = r"^3 of 10 pictures cannot be read any more \(the first is c: cannot be opened: gone, on node-3\); at most 20%"
        with pytest.raises(DatasetError, match=said):
            await feed.tick(A, 0, 0, 1, 10)
        await feed.join("second", 0, "there", None)  # decoded anew, they would still be missing
        with pytest.raises(DatasetError, match=said):
            await feed.blocks("test", 0)
        return (await feed.status(0))["events"]

    assert [event["text"] for event in asyncio.run(story())] == [
        "A picture cannot be read any more: c (cannot be opened: gone, on node-3). Such pictures are left out and counted."
    ]


def test_news_comes_at_once_and_nobody_waits_at_the_end() -> None:
    """Who watches asks seldom: an epoch's line must not wait for the next question, nor the end of the run for an answer."""

    async def story() -> list[list[dict[str, Any]]]:
        feed = await _feed()
        answers = []
        for tell in (feed.post({"kind": "note"}), feed.wake()):
            waiting = asyncio.ensure_future(feed.status(len(answers), wait_s=60))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            await tell
            answers.append((await asyncio.wait_for(waiting, 5))["events"])
        await feed.wake()  # before it is asked
        answers.append((await asyncio.wait_for(feed.status(1, wait_s=60), 5))["events"])
        return answers

    assert asyncio.run(story()) == [[{"kind": "note"}], [], []]
