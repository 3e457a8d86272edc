"""A run is a Tune experiment of one trial, and the trial is a Ray Train TorchTrainer."""

from dataclasses import dataclass
from typing import Any

from classifier.errors import ClassifierError
from cluster.sizing import TRIAL_CPUS, Plan
from training.config import TrainConfig
from training.loop import Job, train_loop
from training.run_folder import RunFolder

# Failures of Ray's own controller (a placement that never comes, say); its default is to try again for ever.
_CONTROLLER_FAILURES = 3


class TrainingFailed(RuntimeError):
    """A worker raised, or died more often than `trainer.max_failures`; the message is the first cause."""


@dataclass(frozen=True)
class Experiment:
    """What the trial needs; it runs in a process of its own."""

    job: Job
    plan: Plan
    max_failures: int
    keep: int  # how many of the best checkpoints Ray keeps, beside the latest


def run_experiment(experiment: Experiment, folder: RunFolder) -> None:
    """Train, and return when the model folder is written or the user's stop is carried out.

    Raises:
        TrainingFailed: with the cause.
    """
    from ray import tune

    trial = tune.with_resources(tune.with_parameters(_run_trial, experiment=experiment), {"CPU": TRIAL_CPUS})
    tuner = tune.Tuner(
        trial,
        param_space={},
        tune_config=tune.TuneConfig(num_samples=1, max_concurrent_trials=1),
        run_config=tune.RunConfig(
            name=f"tune-{experiment.job.attempt}",
            storage_path=str(folder.ray),
            verbose=0,
        ),
    )
    (result,) = tuner.fit()
    if result.error is not None:
        raise TrainingFailed(_cause(result.error)) from result.error


def plan_experiment(job: Job, plan: Plan, config: TrainConfig) -> Experiment:
    """Put the parts of a run together."""
    return Experiment(
        job=job,
        plan=plan,
        max_failures=config.trainer.max_failures,
        keep=config.callbacks.model_checkpoint.save_top_k,
    )


def _run_trial(_: dict[str, Any], *, experiment: Experiment) -> None:
    """The body of the trial: Ray's supported way to have Tune run Train V2 is a trainer inside a function."""
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.tune.integration.ray_train import TuneReportCallback

    class Trainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            # A process that hands out dataset shards, started before the workers may begin; ours come from the Feed.
            return [each for each in super()._create_default_callbacks() if not isinstance(each, DatasetsCallback)]

    plan, job = experiment.plan, experiment.job
    # not before: until the trial's process is up, there are not enough cores for both
    job.feed.start.remote()
    resources = {"CPU": plan.cpus_per_worker} | ({"GPU": 1} if plan.use_gpu else {})
    Trainer(
        train_loop,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=plan.num_workers, use_gpu=plan.use_gpu, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=job.attempt,
            storage_path=str(RunFolder(job.folder).ray),
            failure_config=ray.train.FailureConfig(
                max_failures=experiment.max_failures, controller_failure_limit=_CONTROLLER_FAILURES
            ),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=experiment.keep, checkpoint_score_attribute="score", checkpoint_score_order="max"
            ),
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


def _cause(error: BaseException) -> str:
    """The line that a person needs: of the nested tracebacks, the innermost exception's last line."""
    if isinstance(error, ClassifierError):
        return str(error)
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith((" ", "\t", "Traceback"))]
    return lines[-1].strip() if lines else type(error).__name__
