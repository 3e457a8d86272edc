"""Ray Train's TorchTrainer with its controller in the trial's own process: one process less to start, and to lose."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import ResourceRequestPriority
from ray.train import Result, UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2._internal import constants
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ScalingDecision,
    scaling_policy,
)
from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import (
    AUTOSCALING_REQUESTS_EXPIRE_TIME_S,
    TrainAutoscalingCoordinatorClient,
    build_train_resource_request,
)
from ray.train.v2._internal.state import state_manager
from ray.train.v2._internal.state.state_actor import get_or_create_state_actor

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
        late = LateStateActor(self._feed)
        state_manager.get_or_create_state_actor = lambda: late
        scaling_policy.TrainAutoscalingCoordinatorClient = UnwaitedCoordinatorClient
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


class LateStateActor:
    """Takes what the dashboard's Train tab is to show, and starts the actor behind it when there is a dashboard.

    The actor is a process: it would have a core for some seconds while the workers need them all.
    """

    def __init__(self, feed: Any) -> None:
        self._feed = feed
        self._lock = threading.Lock()
        self._actor: Any = None
        self._kept: dict[tuple[str, str], Any] = {}  # what it is told last, of each run and attempt
        self.create_or_update_train_run = _Method(lambda run: self._tell("create_or_update_train_run", run.id, run))
        self.create_or_update_train_run_attempt = _Method(
            lambda attempt: self._tell("create_or_update_train_run_attempt", attempt.attempt_id, attempt)
        )
        threading.Thread(target=self._open, name="state", daemon=True).start()

    def _open(self) -> None:
        try:
            while not ray.get(self._feed.is_seen.remote(), timeout=_ANSWER_WITHIN_S):
                pass
        except ray.exceptions.RayError:  # the run is over
            return
        with self._lock:
            self._actor = get_or_create_state_actor()
            for (method, _), state in self._kept.items():
                getattr(self._actor, method).remote(state)

    def _tell(self, method: str, of: str, state: Any) -> Any:
        with self._lock:
            if self._actor is not None:
                return getattr(self._actor, method).remote(state)
            self._kept[method, of] = state
            return ray.put(None)  # some of them are waited for


class UnwaitedCoordinatorClient(TrainAutoscalingCoordinatorClient):
    """Registers what the workers take with Ray's coordinator, an actor, and does not wait until it has been started."""

    def send_resource_request(self, scaling_config: Any, num_workers: int) -> None:
        """As the one that it replaces; what goes wrong is no reason to end a run there either."""
        resources, label_selectors = build_train_resource_request(scaling_config, num_workers)
        with contextlib.suppress(ray.exceptions.RayError):
            self._autoscaling_coordinator.request_resources.remote(
                requester_id=self._requester_id,
                resources=resources,
                label_selectors=label_selectors,
                expire_after_s=AUTOSCALING_REQUESTS_EXPIRE_TIME_S,
                priority=ResourceRequestPriority.HIGH,
            )
        self._latest_autoscaling_request_time = time.monotonic()


@dataclass(frozen=True)
class _Method:
    """What is called as an actor's method is."""

    remote: Callable[[Any], Any]


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
