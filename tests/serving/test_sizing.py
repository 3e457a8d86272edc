"""How many actors a folder job gets."""

import pytest

from classifier.errors import ClusterError
from cluster.sizing import Capacity
from serving.sizing import LIST_CPUS, WRITE_CPUS, Plan, admission_cpus, plan_folder


@pytest.mark.parametrize("cores", [1, 2, 3, 8, 64, 500])
@pytest.mark.parametrize("num_workers", ["auto", 1, 2, 7])
@pytest.mark.parametrize("started_here", [True, False])
def test_what_is_asked_for_always_fits(cores: int, num_workers: int | str, *, started_here: bool) -> None:
    """Actors, listing and writing together ask for no more than there is: nothing can wait for ever."""
    cpus = admission_cpus(cores, num_workers) if started_here else cores
    plan = plan_folder(Capacity(cpus=cpus, gpus=0, cores=cores), num_workers=num_workers, device="cpu")

    assert plan.workers * plan.worker_cpus + LIST_CPUS + WRITE_CPUS <= cpus
    assert plan.workers == (cores if num_workers == "auto" else num_workers)
    assert plan.threads >= 1
    assert plan.workers * plan.threads <= max(cores, plan.workers)


@pytest.mark.parametrize("machines", [1, 2, 5, 64])
@pytest.mark.parametrize("cpus_each", [1, 2, 16])
@pytest.mark.parametrize("fewer", [0, 1])
def test_a_place_for_listing_and_writing_is_left_on_one_machine(machines: int, cpus_each: int, fewer: int) -> None:
    """What is left over all machines together is no use: a task runs on one."""
    cpus = machines * cpus_each
    workers = max(1, cpus - fewer)
    plan = plan_folder(Capacity(cpus=cpus, gpus=0, cores=cpus), num_workers=workers, device="cpu")

    full_machines, rest = divmod(workers, cpus_each)
    most_crowded = cpus_each if not rest and full_machines == machines else min(cpus_each, rest)
    assert cpus_each - most_crowded * plan.worker_cpus >= LIST_CPUS + WRITE_CPUS


def test_on_cpus_decoding_and_answering_ask_for_the_same_so_that_they_run_as_one() -> None:
    plan = plan_folder(Capacity(cpus=3, gpus=0, cores=2), num_workers="auto", device="auto")

    assert plan == Plan(workers=2, use_gpu=False, worker_cpus=1.0, decode_cpus=1.0, threads=1)


def test_gpus_get_one_worker_each_and_the_cores_decode() -> None:
    plan = plan_folder(Capacity(cpus=32, gpus=8, cores=32), num_workers="auto", device="auto")

    assert (plan.workers, plan.use_gpu, plan.decode_cpus) == (8, True, 1.0)
    assert plan.workers * plan.worker_cpus + plan.decode_cpus <= 32


@pytest.mark.parametrize(
    ("capacity", "num_workers", "device", "message"),
    [
        (Capacity(4, 0, 4), "auto", "gpu", "the cluster has 0 GPUs; set device=cpu"),
        (Capacity(4, 2, 4), 3, "gpu", "needs 3 GPUs, the cluster has 2; set num_workers=2"),
        (Capacity(2, 0, 2), 100, "cpu", "num_workers=100 does not fit: the cluster has 2 CPUs; set num_workers to at most 30"),
    ],
)  # fmt: skip
def test_what_can_never_fit_fails_with_the_numbers(
    capacity: Capacity, num_workers: int | str, device: str, message: str
) -> None:
    with pytest.raises(ClusterError, match=message):
        plan_folder(capacity, num_workers=num_workers, device=device)
