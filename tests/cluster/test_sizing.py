"""Sizing: whatever the cluster and the wish, the run fits with decode tasks left over, or fails with the numbers."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifier.errors import ClusterError
from cluster.sizing import (
    TRIAL_CPUS,
    Capacity,
    Node,
    Plan,
    Workers,
    admission_cpus,
    physical_cores,
    plan_training,
    threads_here,
)
from tests.cluster.sizing_table import PAGE, page

CORES = (*range(1, 17), 24, 32, 48, 64)
WORKERS: tuple[Workers, ...] = ("auto", *range(1, 17))


def _place(capacity: Capacity, plan: Plan, order: list[Node]) -> list[float]:
    """The CPUs left on each machine when the workers are packed in this order; fails when one finds no place."""
    left, waiting = [], plan.num_workers
    for node in order:
        cpus, gpus = node.cpus, node.gpus
        while waiting and cpus + 1e-9 >= plan.cpus_per_worker and (gpus >= 1 or not plan.use_gpu):
            cpus, gpus, waiting = cpus - plan.cpus_per_worker, gpus - plan.use_gpu, waiting - 1
        left.append(cpus)
    assert waiting == 0, (capacity, plan)
    return left


def _check(capacity: Capacity, plan: Plan) -> None:
    """Everything that a plan promises."""
    assert plan.num_workers >= 1
    assert plan.cpus_per_worker > 0
    assert plan.threads_per_worker >= 1
    assert plan.threads_per_worker * plan.num_workers <= max(capacity.cores, plan.num_workers)
    assert plan.decode_tasks >= 1
    assert 0 < plan.decode_cpus <= 1
    asked = plan.num_workers * plan.cpus_per_worker + plan.decode_tasks * plan.decode_cpus + TRIAL_CPUS
    assert asked <= capacity.cpus + 1e-6
    nodes = sorted(capacity.machines, key=lambda node: node.cpus)
    for order in (nodes, nodes[::-1]):
        left = _place(capacity, plan, order)
        left[left.index(max(left))] -= TRIAL_CPUS
        assert max(left) + 1e-6 >= plan.decode_cpus, "no machine has room for a decode task"


@pytest.mark.parametrize("gpus", range(9))
@pytest.mark.parametrize("started_here", [True, False])
def test_on_one_machine_a_run_fits_or_says_why_not(gpus: int, started_here: bool) -> None:
    """1 to 64 cores, 0 to 8 GPUs, 1 to 16 workers, with the tokens of a cluster of our own and with cores only."""
    for cores, workers, device in itertools.product(CORES, WORKERS, ("auto", "cpu", "gpu")):
        cpus = admission_cpus(cores, workers) if started_here else cores
        capacity = Capacity(cpus=cpus, gpus=gpus, cores=cores)
        try:
            plan = plan_training(capacity, num_workers=workers, device=device)  # type: ignore[arg-type]
        except ClusterError as error:
            # Only GPUs can be short here: 16 workers fit on the smallest of these machines, but one.
            assert "GPU" in str(error) or cores == 1, (capacity, workers, device, error)
            assert any(character.isdigit() for character in str(error))
        else:
            _check(capacity, plan)
            assert workers in ("auto", plan.num_workers)
            assert plan.use_gpu == (device != "cpu" and gpus > 0)


@given(
    st.lists(st.tuples(st.sampled_from([0, 0.5, 1, 2, 3, 4, 8, 64]), st.integers(0, 8)), min_size=1, max_size=6),
    st.one_of(st.just("auto"), st.integers(1, 64)),
    st.sampled_from(["auto", "cpu", "gpu"]),
)
def test_on_several_machines_every_worker_fits_on_one(
    machines: list[tuple[float, int]], workers: Workers, device: str
) -> None:
    """Unequal machines, some without CPUs, some with GPUs: packed from either end, all workers and a decode fit."""
    nodes = tuple(Node(cpus=cpus, gpus=gpus) for cpus, gpus in machines)
    cpus = float(sum(node.cpus for node in nodes))
    capacity = Capacity(cpus=cpus, gpus=sum(node.gpus for node in nodes), cores=cpus, nodes=nodes)
    try:
        plan = plan_training(capacity, num_workers=workers, device=device)  # type: ignore[arg-type]
    except ClusterError as error:
        assert any(character.isdigit() for character in str(error))
    else:
        _check(capacity, plan)


def test_four_workers_run_on_two_cores() -> None:
    """The command of the first page works on a laptop: four processes, a thread each, two decode tasks beside them."""
    plan = plan_training(Capacity(cpus=admission_cpus(2, 4), gpus=0, cores=2), num_workers=4, device="auto")
    assert (plan.num_workers, plan.threads_per_worker, plan.decode_tasks) == (4, 1, 2)


def test_pixels_must_fit_on_the_smallest_machine_that_trains() -> None:
    """Each comes to hold all of them; a head without CPUs, or a machine without a GPU beside some, trains nothing."""
    head, small, large, with_gpu = Node(0, 0, 10), Node(8, 0, 20), Node(8, 0, 50), Node(8, 1, 40)
    capacity = Capacity(cpus=24, gpus=1, cores=24, nodes=(head, small, large, with_gpu))

    assert capacity.smallest_store_bytes(use_gpu=False) == 20
    assert capacity.smallest_store_bytes(use_gpu=True) == 40


def test_auto_is_one_worker_for_each_gpu_or_for_each_machine() -> None:
    """With GPUs they are what is counted; without, a machine's cores belong to one worker."""
    head, gpu, cpu = Node(0, 0), Node(32, 4), Node(8, 0)
    with_gpus = Capacity(cpus=64, gpus=8, cores=64, nodes=(head, gpu, gpu))
    without = Capacity(cpus=24, gpus=0, cores=24, nodes=(head, cpu, cpu, cpu))
    assert plan_training(with_gpus, num_workers="auto", device="auto").num_workers == 8
    plan = plan_training(without, num_workers="auto", device="auto")
    assert (plan.num_workers, plan.threads_per_worker) == (3, 8)


def test_threads_are_those_of_one_machine_not_of_the_cluster() -> None:
    """One worker on four machines with eight cores each can use eight."""
    capacity = Capacity(cpus=32, gpus=0, cores=32, nodes=(Node(8, 0),) * 4)
    assert plan_training(capacity, num_workers=1, device="cpu").threads_per_worker == 8


def test_a_worker_is_not_spread_over_two_machines() -> None:
    """Four machines with 2 CPUs have 6 to give to a single worker, but none of them has more than 2."""
    capacity = Capacity(cpus=8, gpus=0, cores=8, nodes=(Node(2, 0),) * 4)
    plan = plan_training(capacity, num_workers=1, device="cpu")
    assert plan.cpus_per_worker == 2
    assert plan_training(Capacity(cpus=8, gpus=0, cores=8), num_workers=1, device="cpu").cpus_per_worker == 5


def test_gpus_that_are_not_there_are_named() -> None:
    """Both messages say what was asked for, what there is, and which setting to change."""
    with pytest.raises(ClusterError, match=r"trainer=gpu.*0 GPUs.*trainer=cpu"):
        plan_training(Capacity(cpus=4, gpus=0, cores=4), num_workers=1, device="gpu")
    with pytest.raises(ClusterError, match=r"num_workers=4 needs 4 GPUs, the cluster has 2; set num_workers=2"):
        plan_training(Capacity(cpus=4, gpus=2, cores=4), num_workers=4, device="auto")


def test_a_gpu_on_a_machine_without_cpus_is_none() -> None:
    """A worker needs both on one machine; half a GPU is none either."""
    apart = Capacity(cpus=4, gpus=2.5, cores=4, nodes=(Node(4, 0.5), Node(0, 2)))
    assert plan_training(apart, num_workers="auto", device="auto").use_gpu is False
    with pytest.raises(ClusterError, match="the cluster has 0 GPUs"):
        plan_training(apart, num_workers="auto", device="gpu")


def test_the_number_in_does_not_fit_is_one_that_fits() -> None:
    """What the message proposes works, and one more does not."""
    capacity = Capacity(cpus=2, gpus=0, cores=2)
    with pytest.raises(ClusterError, match=r"the cluster has 2 CPUs on one machine.* at most 19\b"):
        plan_training(capacity, num_workers=64, device="cpu")
    assert plan_training(capacity, num_workers=19, device="cpu").num_workers == 19
    with pytest.raises(ClusterError):
        plan_training(capacity, num_workers=20, device="cpu")


def test_a_cluster_without_cpus_and_a_run_without_workers_are_refused() -> None:
    """Neither may become a division by zero, or a run that waits."""
    with pytest.raises(ClusterError, match=r"the cluster has 0 CPUs.*add a node"):
        plan_training(Capacity(cpus=0, gpus=0, cores=0, nodes=(Node(0, 0),)), num_workers="auto", device="auto")
    with pytest.raises(ClusterError, match="num_workers=0: expected a whole number from 1"):
        plan_training(Capacity(cpus=2, gpus=0, cores=2), num_workers=0, device="auto")


@pytest.mark.parametrize(
    ("cpu_max", "cores"), [("max 100000", None), ("100000 100000", 1), ("50000 100000", 1), ("", None)]
)
def test_a_containers_share_counts_not_the_hosts_cores(tmp_path: Path, cpu_max: str, cores: int | None) -> None:
    """`docker run --cpus=1` on a machine with many cores is one core."""
    file = tmp_path / "cpu.max"
    file.write_text(cpu_max)
    assert physical_cores(file) == (cores or physical_cores(tmp_path / "absent"))


def test_the_page_shows_what_the_function_does() -> None:
    """docs/sizing.md is made by `python -m tests.cluster.sizing_table`; it may not fall behind."""
    assert PAGE.read_text() == page(PAGE.read_text())


def test_a_range_of_workers_starts_with_what_is_there_and_leaves_room_to_decode() -> None:
    """However many machines come and go: Ray fills each with as many workers as fit."""
    for node, count in ((Node(1, 0), 3), (Node(2, 0), 2), (Node(4, 0), 1), (Node(16, 0), 2), (Node(15, 0), 1)):
        capacity = Capacity(cpus=node.cpus * count, gpus=0, cores=node.cpus * count, nodes=(node,) * count)
        plan = plan_training(capacity, num_workers=(1, 64), device="auto")
        on_one = int(node.cpus // plan.cpus_per_worker)
        assert plan.elastic == (1, 64)
        assert plan.num_workers == min(64, on_one * count)
        assert node.cpus - on_one * plan.cpus_per_worker >= plan.decode_cpus + TRIAL_CPUS
        assert plan.decode_tasks >= 1

    few = plan_training(Capacity(cpus=64, gpus=0, cores=64), num_workers=(2, 4), device="auto")
    assert (few.num_workers, few.cpus_per_worker) == (4, 12 - 1 / 16)


def test_a_range_of_workers_on_gpus_starts_with_those_that_are_there() -> None:
    """A GPU each; it fails only where there is no room for the fewest."""
    capacity = Capacity(cpus=32, gpus=4, cores=32)

    assert plan_training(capacity, num_workers=(2, 8), device="auto").num_workers == 4
    with pytest.raises(ClusterError, match="num_workers=6 does not fit"):
        plan_training(capacity, num_workers=(6, 8), device="gpu")


@pytest.mark.parametrize(
    ("planned", "workers", "cores", "threads"),
    [(4, 1, 2, 2), (2, 1, 8, 2), (1, 4, 2, 1), (8, 2, 8, 4)],
    ids=["more CPUs announced than there are", "as planned", "more workers than cores", "two came to one machine"],
)
def test_a_worker_never_computes_with_more_threads_than_its_share_of_the_cores(
    planned: int, workers: int, cores: int, threads: int
) -> None:
    assert threads_here(planned, workers=workers, cores=cores) == threads
