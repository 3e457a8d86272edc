"""How many actors predict a folder, and what each gets: a pure function of what there is and what was asked for."""

from dataclasses import dataclass
from typing import Literal

from classifier.errors import ClusterError
from cluster.sizing import Capacity, Device

# Small enough to find a place on a machine that is full of workers, above zero so that Ray counts them.
LIST_CPUS = WRITE_CPUS = 0.04
_SPARE_CPUS = 0.5
# Where workers leave no whole CPU free: a tenth of every CPU stays free on every machine, so that nothing waits for ever.
_LARGEST_SHARE_CPUS = 0.9
_SMALLEST_SHARE_CPUS = 0.05


@dataclass(frozen=True)
class Plan:
    """What a folder job asks Ray for."""

    workers: int
    use_gpu: bool
    worker_cpus: float
    decode_cpus: float  # what a decode task asks for; on CPUs it runs inside the workers
    threads: int  # of PyTorch, in each worker


def admission_cpus(cores: int, num_workers: int | Literal["auto"]) -> int:
    """The CPU count that a Ray started here announces: a token for every worker, and one for what runs beside them."""
    return max(cores, 1 if num_workers == "auto" else num_workers) + 1


def plan_folder(capacity: Capacity, *, num_workers: int | Literal["auto"], device: Device) -> Plan:
    """Size a folder job.

    Args:
        capacity: what the cluster has.
        num_workers: actors that hold the model; `auto` is one for each GPU, or one for each core.
        device: `auto` takes GPUs when there are any.

    Raises:
        ClusterError: it can never fit; says what was asked for and what there is.
    """
    use_gpu = device == "gpu" or (device == "auto" and capacity.gpus >= 1)
    if use_gpu and capacity.gpus < 1:
        raise ClusterError(f"device=gpu, but the cluster has {capacity.gpus:g} GPUs; set device=cpu or device=auto")
    wanted = num_workers if num_workers != "auto" else max(1, int(capacity.gpus if use_gpu else capacity.cores))
    if use_gpu and wanted > capacity.gpus:
        raise ClusterError(
            f"num_workers={wanted} needs {wanted} GPUs, the cluster has {capacity.gpus:g}; set "
            f"num_workers={int(capacity.gpus)} or device=cpu"
        )
    if use_gpu:
        free = capacity.cpus - _SPARE_CPUS
        # The actor mostly waits for its GPU; the cores decode.
        return Plan(wanted, use_gpu, worker_cpus=0.1, decode_cpus=min(1.0, max(0.1, free / 2)), threads=1)
    share = min(_LARGEST_SHARE_CPUS, int((capacity.cpus - _SPARE_CPUS) / wanted * 100) / 100)
    if wanted <= capacity.cpus - 1:
        share = 1.0
    if share < _SMALLEST_SHARE_CPUS:
        most = int((capacity.cpus - _SPARE_CPUS) / _SMALLEST_SHARE_CPUS)
        raise ClusterError(
            f"num_workers={wanted} does not fit: the cluster has {capacity.cpus:g} CPUs; set num_workers to at most {most}"
        )
    threads = max(1, int(capacity.cores / wanted))
    return Plan(wanted, use_gpu, worker_cpus=share, decode_cpus=share, threads=threads)
