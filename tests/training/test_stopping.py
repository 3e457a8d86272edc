"""The rule that stops, and the rule that chooses."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from torch import nn

from classifier.errors import ConfigError
from training.epoch_report import EpochReport
from training.module import ClassifierModule
from training.settings import read_settings
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


def test_a_network_that_gives_no_numbers_any_more_is_no_improvement() -> None:
    """The first class is its answer to every picture, which may be right more often than before."""
    stopper = NoImprovementStopper(monitor="val_acc", mode="max", patience=2, min_delta=0.0)

    assert [stopper("run", {"val_acc": value, "val_loss": math.nan}) for value in (0.5, 0.6)] == [False, True]


class _Diverged(ClassifierModule):
    """A network whose weights are not numbers."""

    def take_epoch_metrics(self) -> dict[str, float]:
        return {"train_loss": math.nan, "val_loss": math.nan, "val_acc": 0.4}


def test_a_run_that_never_gave_numbers_ends_with_what_to_do(tmp_path: Path) -> None:
    """It would train on to no end, and its model would answer nothing."""
    config = read_settings(["ds=X", "model=tiny"])
    report = EpochReport(
        config.callbacks,
        report=lambda *_: None,
        tell=lambda _: None,
        keep=lambda *_, **__: None,
        scratch=tmp_path,
        history_file=tmp_path / "history.csv",
        pictures=1,
    )
    trainer: Any = SimpleNamespace(optimizers=[SimpleNamespace(param_groups=[{"lr": 5}])], is_global_zero=False)
    module = _Diverged(cast(Any, nn.Identity()), config, steps_per_epoch=1)

    with pytest.raises(ConfigError, match=r"the loss is not a number after epoch 0; lower model\.lr"):
        report.on_train_epoch_end(trainer, module)
    report.load_state_dict({"history": [_row(0, 0.5, 0.5)], "stopper": None})
    report.on_train_epoch_end(trainer, module)  # an earlier epoch is a model


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
        ([_row(0, 0.5, 0.5), _row(1, math.nan, 0.1), _row(2, 0.9, math.nan)], 0),  # never one that is not a number
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
