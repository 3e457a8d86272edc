"""The workers agree on the step at which they stop."""

import asyncio
from pathlib import Path

from classifier import image
from classifier.processor import load_preprocess
from tests.conftest import TINY_CONFIG
from training.feed import Feed, FeedPlan


def _feed() -> Feed:
    spec = load_preprocess("tiny", size_px=32, max_pixels=image.MAX_PIXELS, config=TINY_CONFIG)
    return Feed(FeedPlan(Path(), {"train": []}, spec, decode_cpus=1, decode_tasks=1, shards=None, name="x"))


def test_workers_at_different_steps_stop_at_the_same_one() -> None:
    """The one that is ahead is waited for: it may be in the middle of an all-reduce with the others."""

    async def story() -> tuple[list[bool], list[bool]]:
        feed = _feed()
        for step in range(5):
            assert await feed.tick(0, 2, step, 10)
        for step in range(3):
            assert await feed.tick(1, 2, step, 10)
        await feed.stop()
        behind = [await feed.tick(1, 2, step, 10) for step in (3, 4, 5)]
        return behind, [await feed.tick(0, 2, 5, 10)]

    behind, ahead = asyncio.run(story())

    assert behind == [True, True, False]
    assert ahead == [False]


def test_a_stop_before_the_first_step_stops_everyone_there() -> None:
    """Ctrl-C while the workers start."""

    async def story() -> list[bool]:
        feed = _feed()
        await feed.stop()
        return [await feed.tick(rank, 4, 0, 10) for rank in (1, 0)]

    assert asyncio.run(story()) == [False, False]


def test_a_stop_between_epochs_stops_everyone_at_the_next() -> None:
    """A worker that asks for the next epoch while another ends the last one."""

    async def story() -> list[bool]:
        feed = _feed()
        await feed.tick(0, 0, 9, 10)
        await feed.tick(1, 0, 8, 10)
        await feed.stop()
        return [await feed.tick(0, 1, 0, 10), await feed.tick(1, 0, 9, 10), await feed.tick(1, 1, 0, 10)]

    assert asyncio.run(story()) == [False, True, False]
