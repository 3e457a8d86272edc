"""Joining a Ray cluster, or starting one on this machine."""

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from classifier.errors import ClusterError

if TYPE_CHECKING:
    from cluster.sizing import Capacity

# Ray reads these when a process starts; what the user has set wins.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    # The controller looks at its workers this often; at Ray's 2 s a short epoch waits for it (1.9 s an epoch here).
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    # A mis-sized run must fail, not be retried for ever.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    # The dashboard's Train tab is empty without it.
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    # Paths on the command line mean the folder where it was typed.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Our own handler stops a run cleanly: Tune's kills the training workers.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}
_CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Session:
    """A connection to Ray."""

    capacity: "Capacity"
    object_store_bytes: float
    dashboard_url: str | None
    started_here: bool


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
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import ray

    from cluster.sizing import Capacity, physical_cores

    if address is not None:
        _check_reachable(address)
    options: dict[str, Any] = {"logging_level": "warning", "log_to_driver": True}
    if address is None:
        options |= {
            "address": "local",
            "num_cpus": admission_cpus or physical_cores(),
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
        }
    else:
        # Worker processes of a cluster that runs already have its environment, not ours.
        variables = {key: os.environ[key] for key in _ENVIRONMENT}
        options |= {"address": address, "runtime_env": {"env_vars": variables}}
    try:
        context = ray.init(**options)
    except Exception as error:  # ConnectionError, ValueError, RuntimeError, AuthenticationError, ... by what is wrong
        where = f"the Ray cluster at {address} cannot be joined" if address else "Ray cannot be started on this machine"
        raise ClusterError(f"{where}: {' '.join(str(error).split())[:300]}") from error
    try:
        dashboard = context.dashboard_url
        total = ray.cluster_resources()
        cores = physical_cores() if address is None else total.get("CPU", 0.0)
        yield Session(
            capacity=Capacity(cpus=total.get("CPU", 0.0), gpus=total.get("GPU", 0.0), cores=cores),
            object_store_bytes=total.get("object_store_memory", 0.0),
            dashboard_url=f"http://{dashboard}" if dashboard else None,
            started_here=address is None,
        )
    finally:
        ray.shutdown()


def address_from_environment() -> str | None:
    """RAY_ADDRESS, unless it is empty or asks for a cluster of one's own."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


def _check_reachable(address: str) -> None:
    """Fail in seconds: Ray itself waits for minutes on an address where nothing answers."""
    if address == "auto":
        return
    if address.startswith("ray://"):
        raise ClusterError(
            f"RAY_ADDRESS={address}: the Ray client cannot run training; submit the command to the cluster instead: "
            "ray job submit --working-dir . -- python -m training.run ..."
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"RAY_ADDRESS={address}: expected host:port, for example 10.0.0.1:6379")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S):
            pass
    except OSError as error:
        raise ClusterError(
            f"RAY_ADDRESS={address}: nothing answers there ({error.strerror or error}); start the cluster, or unset "
            "RAY_ADDRESS to run on this machine"
        ) from error
