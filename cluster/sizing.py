"""How many workers, and what each gets: pure functions of what there is and what was asked for.

Either a run fits, or it fails at once with the numbers. A run that Ray can never place would wait for ever.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from classifier.errors import ClusterError

Device = Literal["auto", "cpu", "gpu"]
Workers = int | Literal["auto"] | tuple[int, int]  # the fewest and the most

TRIAL_CPUS = 0.01  # what the Tune trial around a run asks for: Tune refuses 0
# Ray Data gives each dataset that is being read a whole number of CPUs; training and validation can both be.
_DECODE_CPUS = 2
_DECODE_SHARE = 0.25  # of a large cluster
_SMALLEST_SHARE = 0.05
# What a worker leaves of its CPUs when their number can change: Ray fills machines with as many as fit, and a decode task
# must still find a place. Sixteenths, because Ray divides without rounding: three times 0.1 does not fit into 0.3.
_SPARE = 1 / 16


@dataclass(frozen=True)
class Node:
    """What one machine of a cluster has: a worker must fit on one of them."""

    cpus: float
    gpus: float
    object_store_bytes: float = 0.0


@dataclass(frozen=True)
class Capacity:
    """What a Ray cluster has in all."""

    cpus: float  # admission tokens
    gpus: float
    cores: float  # processors that compute; fewer than `cpus` on a small machine
    nodes: tuple[Node, ...] = ()  # none given: everything is on one machine

    @property
    def machines(self) -> tuple[Node, ...]:
        """The nodes that something can run on."""
        return tuple(node for node in self.nodes if node.cpus > 0) or (Node(self.cpus, self.gpus),)

    def smallest_store_bytes(self, *, use_gpu: bool) -> float:
        """The smallest object store of the machines that a worker may run on: each of them comes to hold all pixels."""
        return min(node.object_store_bytes for node in self.machines if not use_gpu or node.gpus >= 1)


@dataclass(frozen=True)
class Plan:
    """What a training run asks for."""

    num_workers: int  # to start with
    use_gpu: bool
    cpus_per_worker: float
    threads_per_worker: int
    decode_cpus: float  # what one decode task asks for
    decode_tasks: int  # how many of them run at a time
    elastic: tuple[int, int] | None = None  # the fewest and the most workers, when their number can change


def physical_cores(cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """The processors that this process may use: a container's share, not the host's.

    Args:
        cpu_max: where Linux says how much processor time a container gets: microseconds in a period, or `max`.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    try:
        quota, period = cpu_max.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def admission_cpus(cores: int, num_workers: Workers) -> int:
    """The CPU count that a cluster started here announces: a token for every worker and some for decoding."""
    asked = 1 if num_workers == "auto" else num_workers[0] if isinstance(num_workers, tuple) else num_workers
    return max(cores, asked + _DECODE_CPUS)


def threads_here(planned: int, *, workers: int, cores: int) -> int:
    """How many threads a worker computes with: never more than its share of the machine that it came to run on.

    A cluster may announce more CPUs than its machines have cores; a thread without a core halts those that wait for it
    (a third of the rate with 4 threads on 2 cores).
    """
    return max(1, min(planned, cores // workers))


def plan_training(capacity: Capacity, *, num_workers: Workers, device: Device) -> Plan:
    """Size a training run.

    Args:
        capacity: what the cluster has.
        num_workers: how many training processes; `auto` is one for each GPU, or on CPUs one for each machine, where its
            threads use every core. A range starts with as many as there is room for, and changes with the cluster.
        device: `auto` takes GPUs when there are any.

    Returns:
        a plan whose parts fit into the cluster at the same time, with at least one decode task.

    Raises:
        ClusterError: it can never fit; says what was asked for and what there is.
    """
    gpus = sum(int(node.gpus) for node in capacity.machines)  # whole ones, where a worker also finds a CPU
    if device == "gpu" and gpus < 1:
        raise ClusterError(f"trainer=gpu, but the cluster has {gpus} GPUs; set trainer=cpu or trainer=auto")
    use_gpu = device != "cpu" and gpus >= 1
    if isinstance(num_workers, tuple):
        return _plan_elastic(capacity, num_workers, use_gpu=use_gpu)
    wanted = (gpus if use_gpu else len(capacity.machines)) if num_workers == "auto" else num_workers
    if wanted < 1:
        raise ClusterError(f"num_workers={num_workers}: expected a whole number from 1, or auto")
    if use_gpu and wanted > gpus:
        raise ClusterError(
            f"num_workers={wanted} needs {wanted} GPUs, the cluster has {gpus}; set num_workers={gpus} or trainer=cpu"
        )
    share = _worker_share(capacity, wanted, use_gpu=use_gpu)
    if share is None:
        raise ClusterError(_does_not_fit(capacity, wanted, use_gpu=use_gpu))
    left = capacity.cpus - TRIAL_CPUS - share * wanted
    # However the workers and the trial are placed, one of the machines has the mean of what is left, or more.
    decode_cpus = min(1.0, _hundredths(left / len(capacity.machines) - TRIAL_CPUS))
    decode_tasks = max(1, min(int(left / decode_cpus), int(capacity.cores)))
    if len(capacity.machines) == 1:
        decode_tasks = max(1, min(round(left), int(capacity.cores)))
        decode_cpus = min(1.0, _hundredths(left / decode_tasks))
    largest = max(node.cpus for node in capacity.machines) / capacity.cpus * capacity.cores
    return Plan(
        num_workers=wanted,
        use_gpu=use_gpu,
        cpus_per_worker=share,
        threads_per_worker=max(1, int(min(capacity.cores / wanted, largest))),
        decode_cpus=decode_cpus,
        decode_tasks=decode_tasks,
    )


def _plan_elastic(capacity: Capacity, workers: tuple[int, int], *, use_gpu: bool) -> Plan:
    """Size a run whose number of workers follows the cluster: each gets the same share from the first to the last.

    Raises:
        ClusterError: there is no room for the fewest.
    """
    fewest, most = workers
    whole = 1 if use_gpu else max(1, int(_worker_share(capacity, most, use_gpu=False) or 0))
    for share in (whole - _SPARE, whole - 2 * _SPARE, 1 / 2, 1 / 4, 1 / 8):
        places = [_places(node, share, use_gpu=use_gpu) for node in capacity.machines]
        spare = [node.cpus - count * share for node, count in zip(capacity.machines, places, strict=True)]
        if sum(places) >= fewest and min(spare) >= _SPARE:
            break
    else:
        raise ClusterError(_does_not_fit(capacity, fewest, use_gpu=use_gpu))
    start = min(most, sum(places))
    decode_cpus = min(1.0, _hundredths(max(spare) - TRIAL_CPUS))
    left = capacity.cpus - TRIAL_CPUS - share * start
    return Plan(
        num_workers=start,
        use_gpu=use_gpu,
        cpus_per_worker=share,
        threads_per_worker=max(1, int(capacity.cores / start) if len(capacity.machines) == 1 else round(share)),
        decode_cpus=decode_cpus,
        decode_tasks=max(1, min(int(left / decode_cpus), int(capacity.cores))),
        elastic=workers,
    )


def _worker_share(capacity: Capacity, workers: int, *, use_gpu: bool) -> float | None:
    """The most CPUs that each worker can have, or None when that is too little to place them all.

    Below 1 it is a token that lets a process in, above 1 whole cores for its threads. A worker on a GPU computes there:
    it gets 1 at most, and the decode tasks get the rest.
    """
    free = capacity.cpus - TRIAL_CPUS
    kept = max(min(_DECODE_CPUS, free / 2) + TRIAL_CPUS, capacity.cpus * _DECODE_SHARE)
    most = (capacity.cpus - kept) / workers
    whole = range(1 if use_gpu else int(most), 0, -1) if most >= 1 else ()
    hundredths = range(min(99, int(most * 100)), int(_SMALLEST_SHARE * 100) - 1, -1)
    for share in (*map(float, whole), *(count / 100 for count in hundredths)):
        if sum(_places(node, share, use_gpu=use_gpu) for node in capacity.machines) >= workers:
            return share
    return None


def _places(node: Node, share: float, *, use_gpu: bool) -> int:
    """How many workers fit on a machine."""
    by_cpu = int((node.cpus + 1e-9) / share)
    return min(by_cpu, int(node.gpus)) if use_gpu else by_cpu


def _does_not_fit(capacity: Capacity, workers: int, *, use_gpu: bool) -> str:
    fitting = (count for count in range(workers - 1, 0, -1) if _worker_share(capacity, count, use_gpu=use_gpu))
    most = next(fitting, None)
    machines = len(capacity.machines)
    where = "one machine" if machines == 1 else f"{machines} machines"
    there_is = f"the cluster has {capacity.cpus:g} CPUs on {where}, and decoding needs some of them"
    if most is None:
        return f"num_workers={workers} does not fit: {there_is}; add a node, or unset RAY_ADDRESS"
    return f"num_workers={workers} does not fit: {there_is}; set num_workers to at most {most}, or add nodes"


def _hundredths(cpus: float) -> float:
    """Rounded down, so that a sum of them still fits."""
    return math.floor(cpus * 100 + 1e-6) / 100
