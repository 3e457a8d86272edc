"""Ray Train's TorchTrainer with its controller in the trial's own process: one process less to start, and to lose."""

import asyncio
from typing import Any

from ray import tune
from ray.train import Result, UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2._internal import constants
from ray.train.v2._internal.callbacks import placement_group_callback
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.execution.controller import TrainController

from training.cleaner import OwnCleaner


class Trainer(TorchTrainer):
    """Runs inside the actor of a Tune trial."""

    def _create_default_callbacks(self) -> list[Any]:
        # A process that hands out dataset shards, started before the workers may begin; ours come from the Feed.
        return [each for each in super()._create_default_callbacks() if not isinstance(each, DatasetsCallback)]

    def _initialize_and_run_controller(self, **options: Any) -> Result:
        # Train would start an actor beside the trial, which then only waits for it: several seconds of imports.
        # as in `experiment._fit`: what is given again makes an environment of its own
        constants.ENV_VARS_TO_PROPAGATE.clear()
        placement_group_callback.PlacementGroupCleaner = OwnCleaner
        controller = TrainController(**options)
        asyncio.run(controller.run())
        return controller.get_result()


class ReportToTune(UserCallback):
    """What the workers report is the trial's result. Ray's own callback for it goes through another actor."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Called in the controller, once for each report of all workers."""
        del run_context, checkpoint  # it is in Train's storage already
        tune.report(metrics[0])
