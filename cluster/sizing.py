"""How many workers, and what each gets: pure functions of what there is and what was asked for.

Either a run fits, or it fails at once with the numbers. A run that Ray can never place would wait for ever.
"""

import os
from dataclasses import dataclass
from typing import Literal

from classifier.errors import ClusterError

Device = Literal["auto", "cpu", "gpu"]

# Beside the training workers: decode tasks and the trial must always find a place.
_SPARE_CPUS = 2
_TRIAL_CPUS = 0.01
_SMALLEST_SHARE_CPUS = 0.05


@dataclass(frozen=True)
class Capacity:
    """What a Ray cluster has in all."""

    cpus: float  # admission tokens
    gpus: float
    cores: float  # processors that compute; fewer than `cpus` on a small machine


@dataclass(frozen=True)
class Plan:
    """What a training run asks for."""

    num_workers: int
    use_gpu: bool
    cpus_per_worker: float
    threads_per_worker: int
    decode_cpus: float  # what one decode task asks for
    decode_tasks: int  # how many of them run at a time


def physical_cores() -> int:
    """The processors that this process may use: a container's share, not the host's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def admission_cpus(cores: int, num_workers: int | Literal["auto"]) -> int:
    """The CPU count that a cluster started here announces: a token for every worker and some for decoding."""
    asked = 1 if num_workers == "auto" else num_workers
    return max(cores, asked + _SPARE_CPUS)


def plan_training(capacity: Capacity, *, num_workers: int | Literal["auto"], device: Device) -> Plan:
    """Size a training run.

    Args:
        capacity: what the cluster has.
        num_workers: how many training processes; `auto` is one for each GPU, or one on CPUs, where its threads use
            every core.
        device: `auto` takes GPUs when there are any.

    Raises:
        ClusterError: it can never fit; says what was asked for and what there is.
    """
    use_gpu = device == "gpu" or (device == "auto" and capacity.gpus >= 1)
    if use_gpu and capacity.gpus < 1:
        raise ClusterError(f"trainer=gpu, but the cluster has {capacity.gpus:g} GPUs; set trainer=cpu or trainer=auto")
    wanted = num_workers if num_workers != "auto" else int(capacity.gpus) if use_gpu else 1
    if use_gpu and wanted > capacity.gpus:
        raise ClusterError(
            f"num_workers={wanted} needs {wanted} GPUs, the cluster has {capacity.gpus:g}; "
            f"set num_workers={int(capacity.gpus)} or trainer=cpu"
        )
    free = capacity.cpus - _TRIAL_CPUS
    spare = min(1.0, free / 2)  # one CPU for decode tasks, on a tiny cluster half of what there is
    share = min(1.0, int((free - spare) / wanted * 100) / 100)
    if share < _SMALLEST_SHARE_CPUS:
        most = int((free - spare) / _SMALLEST_SHARE_CPUS)
        raise ClusterError(
            f"num_workers={wanted} does not fit: the cluster has {capacity.cpus:g} CPUs; "
            f"set num_workers to at most {most}"
        )
    # A share below 1 is an admission token; a bigger share means whole cores for its threads.
    cores_each = capacity.cores / wanted
    if not use_gpu and share == 1.0 and capacity.cpus >= capacity.cores:
        share = max(1.0, float(int((free - spare) / wanted))) if capacity.cpus == capacity.cores else 1.0
    left = capacity.cpus - _TRIAL_CPUS - share * wanted
    decode_tasks = max(1, int(min(left, capacity.cores) if left >= 1 else 1))
    return Plan(
        num_workers=wanted,
        use_gpu=use_gpu,
        cpus_per_worker=share,
        threads_per_worker=max(1, int(cores_each)),
        decode_cpus=min(1.0, int(left / decode_tasks * 100) / 100),
        decode_tasks=decode_tasks,
    )
