"""Ray Train's actor that gives the workers' room back when their controller is lost, asking the right Ray."""

import os
from typing import Any

import ray
from ray.train.v2._internal.execution.controller.placement_group_cleaner import PlacementGroupCleaner


class OwnCleaner(PlacementGroupCleaner):
    """Asks the Ray that it runs in whether the controller is alive.

    Train's own asks whatever Ray it finds on the machine: it may hear from another one that there is no such controller,
    and take the workers' room away in the middle of a run.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        super().__init__(*arguments, **options)
