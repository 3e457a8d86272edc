"""Joining a Ray cluster, or starting one on this machine."""

import contextlib
import json
import os
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from classifier.errors import ClusterError, OutputError
from cluster.address import find_cluster, use_token
from cluster.forkserver import find_raylet, for_joined_workers, fork_server, worker_script

if TYPE_CHECKING:
    from cluster.sizing import Capacity

# Ray reads these when a process starts; what the user has set wins.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    # The controller looks at its workers this often; at Ray's 2 s a short epoch waits for it (1.9 s an epoch here), and each
    # look takes 2 ms of a core.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    # A mis-sized run must fail, not be retried for ever.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    # Before workers are started anew, those that are left are asked to say goodbye to each other. One that hangs does not
    # answer, and is killed in any case: Ray would wait for it for 30 s.
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
    # The dashboard's Train tab is empty without it.
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    # Paths on the command line mean the folder where it was typed.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Our own handler stops a run cleanly: Tune's kills the training workers.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TOKENIZERS_PARALLELISM": "false",
    # PyTorch's threads spin while they wait for each other, 300,000 rounds by default. Beside decode tasks or another
    # program that takes the cores from those who would end the wait: two jobs on two cores got half the rate of one. With
    # 10,000 rounds two get four fifths of it, and one alone loses nothing to speak of; with 3,000 it loses a tenth.
    "GOMP_SPINCOUNT": "10000",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}

# On one machine that we started there is no one to take a node away, so nothing need watch for it.
_LOCAL_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Ray's workers give way to every other process (15), Ray's own dozen first of all: each time one of them looks round,
    # a network's threads wait for the one whose core it took.
    "RAY_worker_niceness": "0",
}
_ARENAS = "MALLOC_ARENA_MAX"
# The dashboard is ten processes, which are never waited for.
_DASHBOARD_NICENESS = 10
# Work that is over before has no use for a dashboard, whose start takes a core for some seconds.
DASHBOARD_AFTER_S = 20.0


class Session:
    """A connection to Ray."""

    def __init__(self, capacity: "Capacity", *, dashboard_url: str | None, started_here: bool) -> None:
        self.capacity, self.started_here = capacity, started_here
        self._dashboard_url = dashboard_url
        self._over = threading.Event()

    def show_dashboard(self, tell: Callable[[str], None], *, after_s: float = 0.0) -> None:
        """Say where Ray's dashboard is; of a Ray that was started here it is brought up first, beside what goes on.

        Call it once, when what the user waits for is under way. Returns at once.

        Args:
            tell: is given a URL; not called when there is no dashboard.
            after_s: how much later one is brought up.
        """
        if self.started_here:
            start = threading.Thread(target=self._start_dashboard, args=(tell, after_s), name="dashboard", daemon=True)
            start.start()
        elif self._dashboard_url is not None:
            tell(self._dashboard_url)

    def close(self) -> None:
        """Ray has been left."""
        self._over.set()

    def _start_dashboard(self, tell: Callable[[str], None], after_s: float) -> None:
        from ray._private import worker

        if self._over.wait(after_s):
            return
        try:
            with contextlib.suppress(OSError):  # of a thread, whose processes inherit it: only Linux knows that
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _DASHBOARD_NICENESS)
            node = worker._global_node
            node.start_monitor()
            node.start_api_server(include_dashboard=True, raise_on_failure=True)
            tell(f"http://{node.webui_url}")
        except Exception:
            traceback.print_exc()  # to the log: the work goes on without it, or is over
        self._over.wait()  # Ray has Linux end the dashboard with the thread that started it


def use_one_arena() -> None:
    """Have the processes of a later `started_ahead` and `ray_session` take the memory of all their threads from one place.

    Training runs in a thread of its worker, and glibc gives the memory of other threads than the first back at once (see
    `classifier/memory.py`): a sixth of a training step of MobileNet V2 went into pages that were cleared again. Not for an
    endpoint, whose threads ask for memory all at a time.
    """
    os.environ.setdefault(_ARENAS, "1")


@contextlib.contextmanager
def started_ahead(modules: Sequence[str], *, address: str | None) -> Iterator[None]:
    """Have the workers that a later `ray_session` gets on this machine import `modules` only once, beside what comes before.

    Args:
        modules: by their names; what importing them does must be of use in every worker.
        address: the same as `ray_session` gets.
    """
    _set_environment(address)
    raylet = None
    if address is not None:
        port = address.rpartition(":")[2]
        raylet = find_raylet(port if port.isdigit() else None)
        if raylet is None:
            yield
            return
        raylet = replace(raylet, environment=raylet.environment | _job_variables() | _own_variables())
    with fork_server(modules, raylet=raylet):
        yield


def _set_environment(address: str | None) -> None:
    for key, value in (_ENVIRONMENT if address else _ENVIRONMENT | _LOCAL_ENVIRONMENT).items():
        os.environ.setdefault(key, value)
    use_token()


@contextlib.contextmanager
def ray_session(*, address: str | None, admission_cpus: int | None) -> Iterator[Session]:
    """Join the cluster at `address`, or start one on this machine and stop it at the end.

    Args:
        address: `host:port` or `auto`, as RAY_ADDRESS holds it; None starts a cluster here.
        admission_cpus: how many CPUs a cluster started here says it has. They are tokens that let processes in, not
            cores: two cores run four workers, each with half a core's threads. None: as many as there are cores.

    Raises:
        ClusterError: the cluster cannot be reached, or Ray cannot be started.
    """
    _set_environment(address)
    import ray

    from cluster.sizing import physical_cores

    options: dict[str, Any] = {"logging_level": "warning", "log_to_driver": True}
    if address is None:
        options |= {
            "address": "local",
            "num_cpus": admission_cpus or physical_cores(),
            "dashboard_host": "127.0.0.1",
        }
    else:
        copied, modules = for_joined_workers()
        # So that our code is on every machine, in the version that was started here.
        sent = {"env_vars": _own_variables() | copied, "py_modules": [*_packages(), *modules]}
        options |= {"address": find_cluster(address), "runtime_env": sent}
    try:
        with _quick_start():
            context = ray.init(**options)
    except Exception as error:  # ConnectionError, ValueError, RuntimeError, AuthenticationError, ... by what is wrong
        where = f"the Ray cluster at {address} cannot be joined" if address else "Ray cannot be started on this machine"
        raise ClusterError(f"{where}: {' '.join(str(error).split())[:300]}") from error
    dashboard, session = context.dashboard_url, None
    try:
        session = Session(
            _capacity(ray.nodes(), cores=physical_cores() if address is None else None),
            dashboard_url=f"http://{dashboard}" if dashboard else None,
            started_here=address is None,
        )
        yield session
    finally:
        ray.shutdown()
        if session is not None:
            session.close()


@contextlib.contextmanager
def _quick_start() -> Iterator[None]:
    """Have `ray.init` start workers as copies where there is a fork server, and neither the dashboard, which it would wait
    for, nor the autoscaler that tells it of demand.

    `include_dashboard=False` would start a part of it, and keep the rest from ever being started.
    """
    from ray._private.node import Node

    own = {name: getattr(Node, name) for name in ("start_api_server", "start_monitor", "start_raylet")}

    def start_raylet(node: Any, *arguments: Any, **options: Any) -> None:
        with worker_script() as script:
            node._ray_params.worker_path = script or node._ray_params.worker_path
            own["start_raylet"](node, *arguments, **options)

    Node.start_api_server = Node.start_monitor = lambda *_, **__: None
    Node.start_raylet = start_raylet
    try:
        yield
    finally:
        for name, method in own.items():
            setattr(Node, name, method)


def dashboard_line(url: str) -> str:
    """What the user is told of the dashboard."""
    return f"Ray dashboard: {url} (it asks for a token: ray get-auth-token)"


def address_from_environment() -> str | None:
    """RAY_ADDRESS, unless it is empty or asks for a cluster of one's own."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


def _packages() -> list[str]:
    root = Path(__file__).resolve().parent.parent
    return [str(root / name) for name in ("classifier", "cluster", "training", "serving")]


def check_kept(folder: Path, *, key: str) -> None:
    """Refuse a folder of what `ray job submit --working-dir` sent along: Ray removes it after the job.

    Raises:
        OutputError: names the setting.
    """
    if _job_environment().get("working_dir") and folder.absolute().is_relative_to(Path.cwd()):
        raise OutputError(
            f"{key}={folder} is in the copy of the working directory that Ray makes for a job, and removes; set {key} to "
            "the whole path of a folder that the cluster keeps"
        )


def _job_environment() -> dict[str, Any]:
    """What `ray job submit` gave this process; empty where it did not start it."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    environment: dict[str, Any] = job.get("runtime_env") or {}
    return environment


def _own_variables() -> dict[str, str]:
    """What worker processes of a cluster that runs already are told: they have its environment, not ours."""
    told = [key for key in (*_ENVIRONMENT, _ARENAS) if key in os.environ]
    return {key: os.environ[key] for key in told if key not in _job_variables()}


def _job_variables() -> dict[str, str]:
    """What `ray job submit --runtime-env` sets already: Ray refuses to be told twice, even the same value."""
    variables: dict[str, str] = _job_environment().get("env_vars") or {}
    return variables


def _capacity(nodes: list[dict[str, Any]], *, cores: int | None) -> "Capacity":
    """What `ray.nodes()` adds up to; a cluster that runs already announces its cores as CPUs."""
    from cluster.sizing import Capacity, Node

    alive = [node["Resources"] for node in nodes if node["Alive"]]
    machines = tuple(
        Node(found.get("CPU", 0.0), found.get("GPU", 0.0), found.get("object_store_memory", 0.0)) for found in alive
    )
    cpus = sum(machine.cpus for machine in machines)
    gpus = sum(machine.gpus for machine in machines)
    return Capacity(cpus=cpus, gpus=gpus, cores=cpus if cores is None else cores, nodes=machines)
