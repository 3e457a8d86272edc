"""What surrounds the training loop in each worker: its place in the feed's book, and its last words."""

import os
import socket
import traceback
import uuid
from typing import Any

import ray
from ray import train
from ray.train.collective import broadcast_from_rank_zero

from classifier.errors import ClassifierError, OutputError
from training.failures import CodeFailed, SystemFailed, in_one_line, is_systems, root
from training.loop import Job, train_loop

_ANSWER_WITHIN_S = 30.0


def run_worker(options: dict[str, Any]) -> None:
    """What Ray runs in each worker.

    Raises:
        CodeFailed, SystemFailed: instead of whatever was raised, which may not survive pickling.
    """
    job: Job = options["job"]
    try:
        train_loop({**options, "attempt": _join(job)})
    except SystemFailed:
        raise
    except Exception as error:
        if is_systems(error):
            raise SystemFailed(in_one_line(error)) from error
        fault = {
            "line": in_one_line(error),
            "traceback": "".join(traceback.format_exception(error)),
            "users": isinstance(root(error), ClassifierError),
        }
        ray.get(job.feed.blame.remote(fault), timeout=_ANSWER_WITHIN_S)
        raise CodeFailed(fault["line"]) from error


def _join(job: Job) -> str:
    """Tell the feed who is here; returns what all workers that were started together are called.

    Raises:
        OutputError: the model folder cannot be seen from this machine.
    """
    attempt: str = broadcast_from_rank_zero(uuid.uuid4().hex)
    host, address = socket.gethostname(), ray.util.get_node_ip_address()
    runtime = ray.get_runtime_context()
    joined = job.feed.join.remote(
        attempt,
        train.get_context().get_world_rank(),
        f"{host}, {address}, process {os.getpid()}",
        runtime.current_actor,
    )
    ray.get(joined, timeout=_ANSWER_WITHIN_S)
    if not job.folder.is_dir():
        raise OutputError(
            f"{job.folder} is not there on {host} ({address}); set paths.models to a folder that every machine of the "
            "cluster has at the same place"
        )
    return attempt
