"""A run is a Tune experiment of one trial, and the trial is a Ray Train TorchTrainer."""

import contextlib
import functools
import os
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

from classifier.errors import ClassifierError
from cluster.sizing import TRIAL_CPUS, Plan, physical_cores
from training.config import TrainConfig
from training.loop import Job
from training.run_folder import RunFolder

_ANSWER_WITHIN_S = 60.0
_END_WITHIN_S = 10.0
# Before an attempt follows one that Ray gave up: what the old one reserved is given back meanwhile.
_PAUSE_S = 2.0
_LINE_CHARACTERS = 300
# Failures of Ray's own controller (a placement that never comes, say); its default is to try again for ever.
_CONTROLLER_FAILURES = 3
# A start takes as many processes: a worker, the one that places it, Ray's own, and two that decode.
_FEW_CORES = 4
# With a range of workers, Ray counts the places in a book that it brings up to date every 20 s. Just after a machine is
# lost it still counts that one's, waits for them, and gives up: it is made to do so soon, and then counts anew.
_RANGE_PLACED_WITHIN_S = 25
_RANGE_FAILURES = 20


class TrainingFailed(RuntimeError):
    """A worker's code raised, or more was lost than `trainer.max_failures` allows; the message is the first cause."""


@dataclass(frozen=True)
class Experiment:
    """What the trial needs; it runs in a process of its own."""

    job: Job
    plan: Plan
    max_failures: int
    hang_after_s: float
    resize_every_s: float
    keep: int  # how many of the best checkpoints Ray keeps, beside the latest


def run_experiment(experiment: Experiment, folder: RunFolder) -> None:
    """Train, and return when the model folder is written or the user's stop is carried out.

    Ray Train starts lost workers anew. When its own controller is lost, the run goes on as `resume=` would.

    Raises:
        TrainingFailed: with the cause.
        ClassifierError: a worker found something that is the user's to mend.
    """
    feed, most, failures = experiment.job.feed, experiment.max_failures, 0
    while True:
        error = _fit(replace(experiment, max_failures=most - failures), folder)
        if error is None:
            return
        print(error, file=sys.stderr)  # noqa: T201  descriptor 2 is the log
        fault, failures = _answer(feed.verdict.remote())
        if fault is not None:
            print(fault["traceback"], file=sys.stderr)  # noqa: T201
            raise ClassifierError(fault["line"]) if fault["users"] else TrainingFailed(fault["line"])
        if failures <= most:  # the workers were not at fault, or Ray would have started them anew
            _answer(feed.fail.remote({-1: _cause(error)}))
            failures += 1
        if failures > most:
            raise TrainingFailed(f"more was lost than trainer.max_failures={most} allows; see above") from error
        _answer(feed.give_room_back.remote())
        time.sleep(_PAUSE_S)
        experiment = replace(experiment, job=_next_job(experiment.job, folder))


def end_experiment(experiment: Experiment) -> None:
    """Kill what runs: `run_experiment` raises soon after, wherever it is."""
    import ray

    with contextlib.suppress(ray.exceptions.RayError):  # the feed is lost: the end of the connection ends the rest
        ray.get(experiment.job.feed.end.remote(), timeout=_END_WITHIN_S)


def was_stopped(experiment: Experiment) -> bool:
    """Whether a run that is over was ended by the user."""
    stopped: bool = _answer(experiment.job.feed.was_stopped.remote())
    return stopped


def plan_experiment(job: Job, plan: Plan, config: TrainConfig) -> Experiment:
    """Put the parts of a run together."""
    return Experiment(
        job=job,
        plan=plan,
        max_failures=config.trainer.max_failures,
        hang_after_s=config.trainer.hang_after_s,
        resize_every_s=config.trainer.resize_every_s,
        keep=config.callbacks.model_checkpoint.save_top_k,
    )


def _answer(asked: Any) -> Any:
    """What the feed says.

    Raises:
        TrainingFailed: it is lost. It runs beside this process, so that no other machine's end is its end.
    """
    import ray

    try:
        return ray.get(asked, timeout=_ANSWER_WITHIN_S)
    except ray.exceptions.RayError as error:
        raise TrainingFailed("the actor that hands out the pictures was lost") from error


def _next_job(job: Job, folder: RunFolder) -> Job:
    """The same job under a name of its own: the old one's state may be torn. Its workers find the last checkpoint."""
    from training.job import attempt_name

    return replace(job, attempt=attempt_name(folder, job.run))


def _fit(experiment: Experiment, folder: RunFolder) -> BaseException | None:
    """One Tune experiment of one trial; returns what ended it early."""
    from ray import exceptions, tune
    from ray.tune.execution import class_cache

    # Every process has the variables of `cluster/session.py` already. Given again, as Tune does, they make an environment
    # of their own, and no process that Ray has started ahead fits into it.
    class_cache.DEFAULT_ENV_VARS.clear()
    class_cache.ENV_VARS_TO_PROPAGATE.clear()
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
    try:
        (result,) = tuner.fit()
    except (OSError, exceptions.RayError) as error:
        return error
    except RuntimeError as error:  # what Tune makes of an end of the trial that it has no name for: memory, say
        if isinstance(error.__cause__, exceptions.RayError):
            return error
        raise
    ended_by: BaseException | None = result.error
    return ended_by


def _run_trial(_: dict[str, Any], *, experiment: Experiment) -> None:
    """The body of the trial: Ray's supported way to have Tune run Train V2 is a trainer inside a function."""
    import ray
    import ray.train
    from ray.train.torch import TorchConfig

    from training.failures import FailureReport, GrowthReport
    from training.trainer import ReportToTune, RoomReport, Trainer
    from training.worker import OwnInterface, run_worker

    plan, job, limit_s = experiment.plan, experiment.job, experiment.hang_after_s
    # a worker that is stopped or cut off ends neither itself nor the others' waiting for it
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(limit_s)
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = str(limit_s)
    if plan.elastic:
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(_RANGE_PLACED_WITHIN_S)
    if physical_cores() > _FEW_CORES:  # else the first worker does, whose start it would hold up
        job.feed.start.remote()
    job.feed.take_trial.remote(ray.get_runtime_context().current_actor)
    resources = {"CPU": plan.cpus_per_worker} | ({"GPU": 1} if plan.use_gpu else {})
    Trainer(
        functools.partial(run_worker, job=job),
        feed=job.feed,
        train_loop_config=job.config,
        torch_config=TorchConfig(timeout_s=max(1, round(limit_s))),
        scaling_config=ray.train.ScalingConfig(
            num_workers=plan.elastic or plan.num_workers,
            use_gpu=plan.use_gpu,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=experiment.resize_every_s,
        ),
        run_config=ray.train.RunConfig(
            name=job.attempt,
            storage_path=str(RunFolder(job.folder).ray),
            failure_config=ray.train.FailureConfig(
                max_failures=experiment.max_failures,
                controller_failure_limit=_RANGE_FAILURES if plan.elastic else _CONTROLLER_FAILURES,
            ),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=experiment.keep, checkpoint_score_attribute="score", checkpoint_score_order="max"
            ),
            callbacks=[
                FailureReport(job.feed),
                GrowthReport(job.feed),
                RoomReport(job.feed),
                ReportToTune(),
                OwnInterface(),
            ],
        ),
    ).fit()


def _cause(error: BaseException) -> str:
    """What happened to the controller: of the nested tracebacks, the innermost exception's last line."""
    from training.failures import OUT_OF_MEMORY, how_it_died

    if OUT_OF_MEMORY in str(error).lower():
        return how_it_died(str(error))
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith((" ", "\t", "Traceback"))]
    last = lines[-1].strip() if lines else type(error).__name__
    # Ray's guesses at why a process ended are sentences long
    return "was killed or crashed" if "has died" in last else f"failed: {last[:_LINE_CHARACTERS]}"
