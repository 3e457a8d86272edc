"""When to stop, and which epoch was best: two pure rules."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ray import tune

Metrics = Mapping[str, Any]


class NoImprovementStopper(tune.Stopper):
    """Stop a trial when a metric has not improved for `patience` results.

    Tune's own TrialPlateauStopper asks for a low standard deviation instead: it stops a run that improves slowly, and
    never one that is noisy.
    """

    def __init__(self, *, monitor: str, mode: str, patience: int, min_delta: float) -> None:
        self._monitor, self._sign = monitor, 1 if mode == "max" else -1
        self._patience, self._min_delta = patience, min_delta
        self._best: dict[str, float] = {}
        self._without: dict[str, int] = {}

    def __call__(self, trial_id: str, result: Metrics) -> bool:
        """Whether to stop after this result. A result that is missing or has diverged is no improvement."""
        value = self._sign * float(result.get(self._monitor, math.nan))
        if (
            math.isfinite(value)
            and not has_diverged(result)
            and value > self._best.get(trial_id, -math.inf) + self._min_delta
        ):
            self._best[trial_id], self._without[trial_id] = value, 0
        else:
            self._without[trial_id] = self._without.get(trial_id, 0) + 1
        return self._without[trial_id] >= self._patience

    def stop_all(self) -> bool:
        """One trial's end is never the others'."""
        return False

    def state(self) -> dict[str, dict[str, Any]]:
        """What a resumed run must know."""
        return {"best": dict(self._best), "without": dict(self._without)}

    def load_state(self, state: Mapping[str, dict[str, Any]]) -> None:
        """Go on from `state()`."""
        self._best, self._without = dict(state["best"]), dict(state["without"])


def has_diverged(metrics: Metrics) -> bool:
    """Whether the network gives no numbers any more. Its `val_acc` is a number all the same: that of the first class."""
    return not math.isfinite(float(metrics.get("val_loss", 0.0)))


def rank_key(metrics: Metrics, *, monitor: str, mode: str) -> tuple[float, float, int]:
    """Larger is better: the monitored metric, then the lower `val_loss`, then the earlier epoch. What has diverged is last."""
    value = float(metrics[monitor]) * (1 if mode == "max" else -1)
    if has_diverged(metrics) or not math.isfinite(value):
        return (-math.inf, -math.inf, -int(metrics["epoch"]))
    return (value, -float(metrics["val_loss"]), -int(metrics["epoch"]))


def best_of(history: Iterable[Metrics], *, monitor: str, mode: str) -> Metrics:
    """The best epoch of a run."""
    return max(history, key=lambda metrics: rank_key(metrics, monitor=monitor, mode=mode))


def score(metrics: Metrics, *, monitor: str, mode: str) -> float:
    """`rank_key` as one number, for Ray's checkpoint manager, which orders by a single metric.

    The loss moves it by less than one picture in ten million does.
    """
    value, loss, _ = rank_key(metrics, monitor=monitor, mode=mode)
    return value + 1e-8 / (1 - loss) if math.isfinite(loss) else value
