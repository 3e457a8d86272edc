"""What surrounds the training loop in each worker: its network, its place in the feed's book, and its last words."""

import fcntl
import os
import socket
import struct
import traceback
import uuid
from typing import Any

import ray
from ray import train
from ray.exceptions import ObjectLostError
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2._internal.execution.callback import WorkerCallback

from classifier.errors import ClassifierError, OutputError
from training.checkpoint import find_candidates
from training.failures import CodeFailed, SystemFailed, in_one_line, is_systems, root
from training.loop import Job, train_loop
from training.run_folder import RunFolder

_ANSWER_WITHIN_S = 30.0
_SIOCGIFADDR = 0x8915  # Linux: the address of an interface


class OwnInterface(WorkerCallback):
    """Lets the workers of several machines find each other.

    Gloo takes the interface that the machine's own name resolves to. Where that is 127.0.1.1, as Debian and Ubuntu write
    it into /etc/hosts, each machine waits for the others at itself.
    """

    def after_init_train_context(self) -> None:
        """Runs in each worker, before the process group is made."""
        context = train.get_context()
        if context.get_local_world_size() < context.get_world_size():
            name = interface_of(ray.util.get_node_ip_address())
            if name is not None:
                os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """The name of the interface that has an IPv4 address; None where that cannot be told."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(asked, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def run_worker(_: dict[str, Any], *, job: Job) -> None:
    """What Ray runs in each worker.

    Its first argument is what Ray's dashboard shows of the run; the job would be there with every picture's path.

    Raises:
        CodeFailed, SystemFailed: instead of whatever was raised, which may not survive pickling.
    """
    attempt = ""
    try:
        attempt, start = _agree(job)
        _join(job, attempt)
        train_loop(job, attempt=attempt, start=start)
    except SystemFailed:
        raise
    except Exception as error:
        if is_systems(error):
            if isinstance(root(error), ObjectLostError):
                ray.get(job.feed.lose.remote(attempt, root(error)), timeout=_ANSWER_WITHIN_S)
            raise SystemFailed(in_one_line(error)) from error
        fault = {
            "line": in_one_line(error),
            "traceback": "".join(traceback.format_exception(error)),
            "users": isinstance(root(error), ClassifierError),
        }
        ray.get(job.feed.blame.remote(fault), timeout=_ANSWER_WITHIN_S)
        raise CodeFailed(fault["line"]) from error


def _agree(job: Job) -> tuple[str, str | None]:
    """What all workers that are started together are called, and the checkpoint file that they go on from.

    The first worker looks for it, because not every machine sees a new file at once. It looks at the storage: Ray Train
    does not know yet of a checkpoint whose report was on its way when a worker died.
    """
    candidates = find_candidates(RunFolder(job.folder))
    last = str(candidates[-1].file) if candidates else None
    agreed: tuple[str, str | None] = broadcast_from_rank_zero((uuid.uuid4().hex, last))
    return agreed


def _join(job: Job, attempt: str) -> None:
    """Tell the feed who is here.

    Raises:
        OutputError: the model folder cannot be seen from this machine.
    """
    job.feed.start.remote()  # not before on few cores, see `experiment`
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
