"""Ray Train's TorchTrainer with its controller in the trial's own process: one process less to start, and to lose."""

import asyncio
import time
from typing import Any

import ray
from ray import tune
from ray.train import Result, UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2._internal import constants
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision, ScalingDecision

from training.failures import CodeFailed

# As long as Ray Train waits for a fixed number of workers, with all its attempts.
_ROOM_WITHIN_S = 900.0
_ANSWER_WITHIN_S = 30.0
# Two actors of Ray Train, each a process to start. One hands out dataset shards; ours come from the Feed. The other looks
# once a second, by way of the dashboard, whether the controller lives, to give its workers' room back; see RoomReport.
_DROPPED = (DatasetsCallback, PlacementGroupCleanerCallback)


class Trainer(TorchTrainer):
    """Runs inside the actor of a Tune trial."""

    def __init__(self, train_loop_per_worker: Any, *, feed: Any, **options: Any) -> None:
        super().__init__(train_loop_per_worker, **options)
        self._feed = feed

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if not isinstance(each, _DROPPED)]

    def _initialize_and_run_controller(self, **options: Any) -> Result:
        # Train would start an actor beside the trial, which then only waits for it: several seconds of imports.
        # as in `experiment._fit`: what is given again makes an environment of its own
        constants.ENV_VARS_TO_PROPAGATE.clear()
        if isinstance(options["scaling_policy"], ElasticScalingPolicy):
            options["scaling_policy"] = PatientPolicy(self.scaling_config, self._feed, room_within_s=_ROOM_WITHIN_S)
        controller = TrainController(**options)
        asyncio.run(controller.run())
        return controller.get_result()


class PatientPolicy(ElasticScalingPolicy):
    """How many workers of a range there is room for. Ray's own waits for the fewest for ever."""

    def __init__(self, scaling_config: Any, feed: Any, *, room_within_s: float) -> None:
        super().__init__(scaling_config=scaling_config)
        self._feed, self._room_within_s = feed, room_within_s
        self._waits_since_s: float | None = None

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Called again and again until there is room.

        Raises:
            CodeFailed: there was none for too long, which ends the run.
        """
        decision = super().make_decision_for_non_running_worker_group()
        if not isinstance(decision, NoopDecision):
            self._waits_since_s = None
            return decision
        now = time.monotonic()
        self._waits_since_s = self._waits_since_s or now
        if now - self._waits_since_s > self._room_within_s:
            line = (
                f"for {self._room_within_s / 60:.0f} minutes there was no room for the {self.scaling_config.min_workers} "
                "workers that num_workers asks for at least; add machines, then resume="
            )
            ray.get(self._feed.blame.remote({"line": line, "traceback": line, "users": True}), timeout=_ANSWER_WITHIN_S)
            raise CodeFailed(line)
        return decision


class ReportToTune(UserCallback):
    """What the workers report is the trial's result. Ray's own callback for it goes through another actor."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Called in the controller, once for each report of all workers."""
        del run_context, checkpoint  # it is in Train's storage already
        tune.report(metrics[0])


class RoomReport(WorkerGroupCallback):
    """Tells the feed what room the workers take: a controller that is lost cannot give it back, and Ray keeps it for the job."""

    def __init__(self, feed: Any) -> None:
        self._feed = feed

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Called whenever workers have been started."""
        room = worker_group.get_worker_group_state().placement_group_handle.placement_group
        ray.get(self._feed.take_room.remote(room), timeout=_ANSWER_WITHIN_S)
