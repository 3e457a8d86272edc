"""The rule that stops, and the rule that chooses."""

import math

import pytest

from training.stopping import NoImprovementStopper, best_of, score


def _stopped_after(values: list[float], **changes: object) -> int | None:
    options = {"monitor": "val_acc", "mode": "max", "patience": 3, "min_delta": 0.0} | changes
    stopper = NoImprovementStopper(**options)  # type: ignore[arg-type]
    for count, value in enumerate(values, start=1):
        if stopper("run", {options["monitor"]: value}):
            return count
    return None


def test_a_run_that_improves_slowly_goes_on() -> None:
    """Tune's own plateau rule would stop it: its values hardly vary."""
    assert _stopped_after([0.900 + 0.001 * epoch for epoch in range(20)]) is None


def test_three_results_without_improvement_stop_a_run() -> None:
    """An equal value is no improvement, and neither is NaN."""
    assert _stopped_after([0.5, 0.6, 0.6, math.nan, 0.59, 0.7]) == 5


def test_an_improvement_starts_the_count_anew() -> None:
    """Patience is for results in a row."""
    assert _stopped_after([0.5, 0.4, 0.4, 0.51, 0.5, 0.5, 0.5]) == 7


def test_a_metric_that_should_fall_is_followed_downwards_and_min_delta_counts() -> None:
    """`mode=min`, and a change smaller than `min_delta` is noise."""
    assert _stopped_after([1.0, 0.5, 0.49, 0.48, 0.47], monitor="val_loss", mode="min", min_delta=0.1) == 5


def test_a_resumed_run_keeps_its_patience() -> None:
    """State travels in the checkpoint."""
    options = {"monitor": "val_acc", "mode": "max", "patience": 3, "min_delta": 0.0}
    before = NoImprovementStopper(**options)  # type: ignore[arg-type]
    for value in (0.9, 0.8, 0.8):
        assert not before("run", {"val_acc": value})
    after = NoImprovementStopper(**options)  # type: ignore[arg-type]
    after.load_state(before.state())

    assert after("run", {"val_acc": 0.85})


def _row(epoch: int, val_acc: float, val_loss: float) -> dict[str, float]:
    return {"epoch": epoch, "val_acc": val_acc, "val_loss": val_loss}


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([_row(0, 0.8, 0.1), _row(1, 0.9, 0.9)], 1),  # accuracy first
        ([_row(0, 0.9, 0.5), _row(1, 0.9, 0.4), _row(2, 0.9, 0.6)], 1),  # then the lower loss
        ([_row(0, 0.9, 0.5), _row(1, 0.9, 0.5)], 0),  # then the earlier epoch
        ([_row(0, 0.5, 0.5), _row(1, math.nan, 0.1), _row(2, 0.4, math.nan)], 0),  # never one that is not a number
    ],
)
def test_the_best_epoch_is_the_most_accurate_then_the_surest_then_the_first(
    rows: list[dict[str, float]], best: int
) -> None:
    """Ray's own rule takes the later of two equals, and treats NaN in two ways."""
    chosen = best_of(rows, monitor="val_acc", mode="max")

    assert chosen["epoch"] == best
    finite = [row for row in rows if math.isfinite(row["val_acc"]) and math.isfinite(row["val_loss"])]
    assert score(chosen, monitor="val_acc", mode="max") == max(
        score(row, monitor="val_acc", mode="max") for row in finite
    )
