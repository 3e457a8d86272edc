"""The split is stratified, seeded, and never divides pictures of the same content."""

from collections import Counter

import numpy as np
import pytest

from training.split import split_pictures

SHARES = {"val": 0.15, "test": 0.15}


def _split(labels: list[str], groups: list[str], seed: int = 42) -> list[str]:
    return split_pictures(labels, groups, shares=SHARES, seed=seed)


def test_every_class_is_divided_70_15_15() -> None:
    """Class by class, not only in all."""
    labels = ["a"] * 100 + ["b"] * 20
    splits = _split(labels, [f"g{index}" for index in range(120)])

    assert Counter(zip(labels, splits, strict=True)) == {
        ("a", "train"): 70,
        ("a", "val"): 15,
        ("a", "test"): 15,
        ("b", "train"): 14,
        ("b", "val"): 3,
        ("b", "test"): 3,
    }


@pytest.mark.parametrize("count", range(3, 12))
def test_a_tiny_class_is_in_all_three_splits(count: int) -> None:
    """Three pictures are one for each; the rest goes to train first."""
    splits = Counter(_split(["a"] * count, [str(index) for index in range(count)]))

    assert min(splits["train"], splits["val"], splits["test"]) >= 1


def test_pictures_of_the_same_content_stay_together_even_across_classes() -> None:
    """A copy of a training picture in the test split would be scored as if it were new."""
    random = np.random.default_rng(0)
    groups = [f"g{number}" for number in random.integers(0, 60, 200)]
    labels = [str(label) for label in random.integers(0, 3, 200)]

    splits = _split(labels, groups)

    assert all(
        len({split for split, other in zip(splits, groups, strict=True) if other == group}) == 1 for group in groups
    )


def test_a_class_of_three_large_groups_still_reaches_all_splits() -> None:
    """However large the groups, train and val are left one each."""
    groups = ["x"] * 10 + ["y"] * 10 + ["z"] * 10

    assert set(_split(["a"] * 30, groups)) == {"train", "val", "test"}


@pytest.mark.parametrize("seed", range(6))
def test_a_class_of_two_pictures_and_many_copies_of_a_third_reaches_all_splits(seed: int) -> None:
    """The share asks for more than the small groups hold; what is left must still be one for each split."""
    groups = ["x", "y"] + ["z"] * 28

    assert set(_split(["a"] * 30, groups, seed=seed)) == {"train", "val", "test"}


def test_the_seed_decides_and_the_order_of_files_does_not() -> None:
    """The same pictures under the same seed are split the same, however they are listed."""
    groups = [f"g{index}" for index in range(50)]
    first = dict(zip(groups, _split(["a"] * 50, groups), strict=True))
    backwards = dict(zip(groups[::-1], _split(["a"] * 50, groups[::-1]), strict=True))
    other_seed = dict(zip(groups, _split(["a"] * 50, groups, seed=1), strict=True))

    assert first == backwards
    assert first != other_seed
