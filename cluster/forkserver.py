"""One process imports what Ray's workers need, and each of them is a copy of it.

Ray starts a Python for every actor and for every task that runs beside others, and each imports Ray Data or PyTorch or
Lightning anew: most of what a short run does. On a Ray of one's own the raylet starts `worker_process.py` instead, which
asks here for a copy; where none is to be had, it becomes the worker that Ray would have started.
"""

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classifier.device import has_gpu_driver
from cluster import worker_process
from cluster.worker_process import COPIED, SCRIPT, SOCKET

# What may differ from worker to worker: it is read when it is wanted, or is no worker's business.
# Anything else may have been read already, by what was imported here: a worker with another value is started anew.
_OWN_VARIABLES = frozenset(
    {"RAY_JOB_ID", "RAY_LD_PRELOAD_ON_WORKERS", "SPT_NOENV", SOCKET, SCRIPT, "COLUMNS", "LINES", "PYTHONPATH"}
    | {"_", "SHLVL", "PWD", "OLDPWD"}  # a runtime environment is entered by way of a shell
)
_RAYLET = "RAY_RAYLET_PID"
# jemalloc, which pyarrow brings, has a new one made in a copy.
_THREADS_THAT_MAY_BE = {"jemalloc_bg_thd"}
_SENT_WITHIN_S = 5.0
_WAITING = 128
_CHUNK_BYTES = 2**16

# What the raylet of this process's Ray is told of the server; there is one Ray in a process, and the last counts.
_running: list[dict[str, str]] = []


@dataclass(frozen=True)
class Raylet:
    """What starts the workers of a cluster on this machine."""

    pid: int
    environment: dict[str, str]  # what its workers inherit, with the job's own


def find_raylet(port: str | None) -> Raylet | None:
    """The raylet of this user on this machine, if there is one, and only one's environment can be meant.

    Args:
        port: of the cluster's head; None: any.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = os.fsdecode((folder / "cmdline").read_bytes()).split("\0")
            if not words[0].endswith("/raylet/raylet"):
                continue
            head = next((word for word in words if word.startswith("--gcs-address=")), "")
            if port is None or head.endswith(f":{port}"):
                variables = os.fsdecode((folder / "environ").read_bytes()).split("\0")
                environment = dict(variable.split("=", 1) for variable in variables if "=" in variable)
                environment.pop("LD_PRELOAD", None)  # the raylet's own allocator
                found.append(Raylet(int(folder.name), environment))
        except OSError:  # it has ended, or is another user's
            continue
    return found[0] if len(found) == 1 else None


@contextlib.contextmanager
def fork_server(modules: Sequence[str], *, raylet: Raylet | None = None) -> Iterator[None]:
    """While it lasts, Ray's workers on this machine are copies of a process that has imported `modules`.

    Returns at once: the imports go on beside what the caller does. Nothing happens where a copy is not safe: elsewhere than
    on Linux, and beside a GPU, whose driver a copy cannot use when one of the imports has woken it. Nor where
    CLASSIFIER_FORK_SERVER=0 is in the environment.

    Args:
        modules: by their names.
        raylet: the one that runs already. None: it will be started here, with this process's environment as it is now.
    """
    ray = importlib.util.find_spec("ray")
    if not _is_safe() or ray is None or ray.origin is None:
        yield
        return
    with socket.socket(socket.AF_UNIX) as listener:
        address = str(Path(tempfile.mkdtemp(prefix="classifier-")) / "workers")  # a folder that nobody else can open
        listener.bind(address)
        listener.listen(_WAITING)
        server = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "cluster.forkserver", str(listener.fileno()), *modules],
            env=_environment(raylet),
            stdin=subprocess.PIPE,  # its end is the end of this process, however that comes
            pass_fds=[listener.fileno()],
            start_new_session=True,  # Ctrl-C is for the command
        )
        listener.close()
        _running.append({SOCKET: address, SCRIPT: str(Path(ray.origin).parent / "_private/workers/default_worker.py")})
        try:
            yield
        finally:
            _running.pop()
            with server:
                server.kill()  # it may be in the middle of an import
            _remove(address)


@contextlib.contextmanager
def worker_script() -> Iterator[str | None]:
    """The script that a raylet which is started meanwhile must run for a worker; None: Ray's own."""
    if not _running:
        yield None
        return
    os.environ.update(_running[-1])  # in the raylet only: another command's workers are none of ours
    try:
        yield worker_process.__file__
    finally:
        for name in _running[-1]:
            del os.environ[name]


def for_joined_workers() -> tuple[dict[str, str], list[str]]:
    """What a job's workers need on a cluster that runs already: variables, and modules beside the packages."""
    if not _running:
        return {}, []
    return {SOCKET: _running[-1][SOCKET]}, [str(Path(__file__).with_name("sitecustomize.py"))]


def _environment(raylet: Raylet | None) -> dict[str, str]:
    """The workers', as far as it is known before; a worker whose raylet is gone ends itself."""
    if raylet is None:  # here it is gone when the command is
        return dict(os.environ) | {_RAYLET: str(os.getpid())}
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, raylet.environment.get("PYTHONPATH")]))
    return raylet.environment | {_RAYLET: str(raylet.pid), "PYTHONPATH": path}


def _remove(address: str) -> None:
    with contextlib.suppress(OSError):
        Path(address).unlink()
        Path(address).parent.rmdir()


def _is_safe() -> bool:
    return sys.platform == "linux" and not has_gpu_driver() and os.environ.get("CLASSIFIER_FORK_SERVER") != "0"


@dataclass(frozen=True)
class _Worker:
    """What Ray started, and what it inherited."""

    script: str
    arguments: list[str]
    prefix: str  # of its Python
    environment: dict[str, str]
    folder: str
    blocked_signals: list[int]
    niceness: int
    descriptors: tuple[int, ...]
    connection: socket.socket  # open as long as the worker is

    @classmethod
    def receive(cls, connection: socket.socket) -> "_Worker":
        """Raises OSError or ValueError when it has ended meanwhile."""
        connection.settimeout(_SENT_WITHIN_S)
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
        try:
            text = b"".join(iter(lambda: connection.recv(_CHUNK_BYTES), b""))
            return cls(**json.loads(text), descriptors=tuple(descriptors), connection=connection)
        except (OSError, ValueError):
            _close(descriptors)
            raise

    def close(self) -> None:
        """It is another process's."""
        _close(self.descriptors)
        self.connection.close()

    def run(self) -> None:
        """Be it: returns when it is over."""
        self.connection.sendall(COPIED)
        self.connection.settimeout(None)
        gc.enable()
        os.setpgid(0, 0)  # as Ray's workers are
        os.setpriority(os.PRIO_PROCESS, 0, self.niceness)
        os.environ.clear()
        os.environ.update(self.environment)
        os.chdir(self.folder)
        for number, descriptor in enumerate(self.descriptors):
            os.dup2(descriptor, number)
        _close(self.descriptors)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.blocked_signals)
        _reseed()
        sys.argv = [self.script, *self.arguments]
        path = self.environment.get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:0] = [str(Path(self.script).parent), *(entry for entry in path if entry and entry not in sys.path)]
        runpy.run_path(self.script, run_name="__main__")


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _reseed() -> None:
    """Else every copy would draw the same numbers; Python's own generator sees to that itself."""
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


def _next_worker(listener: socket.socket) -> _Worker | None:
    """Copy this process for every worker that asks: returns the worker in its copy, None in the server when it is to end."""
    before = dict(os.environ)
    _import(sys.argv[2:])
    unfit = _unfit()
    if unfit:
        print(f"Workers are started anew: {unfit}.", file=sys.stderr)  # noqa: T201
        return None
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a copy
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:  # it is closed: nothing is ever sent
            return None
        connection, _ = listener.accept()
        try:
            worker = _Worker.receive(connection)
        except (OSError, ValueError):
            connection.close()
            continue
        others = sorted(_differing(worker.environment, before))
        if worker.prefix != os.path.realpath(sys.prefix):
            others = ["Python"]
        if others:
            print(f"A worker is started anew: its {', '.join(others)} is not the command's.", file=sys.stderr)  # noqa: T201
        elif os.fork() == 0:
            listener.close()
            return worker
        worker.close()


def _differing(environment: Mapping[str, str], before: Mapping[str, str]) -> set[str]:
    """The variables with which a copy would not be what a new process is. `before`: as they were at the first import.

    What the imports have set here, they have set in the command as well.
    """
    own = _OWN_VARIABLES | ({_RAYLET} if before[_RAYLET] == str(os.getppid()) else set())
    differing = {key for key, _ in environment.items() ^ before.items()} - own
    return {key for key in differing if environment.get(key) != os.environ.get(key)}


def _import(modules: Sequence[str]) -> None:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a copy has only the thread that made it
    # Ray reads it once, when it is imported. A worker that was started for no job in particular takes any.
    os.environ["RAY_JOB_ID"] = "f" * 8
    gc.disable()  # there is no garbage in modules, and looking for it takes a fifth of the time
    with _ids_from_elsewhere():
        for module in modules:
            try:
                importlib.import_module(module)
            except Exception:
                traceback.print_exc()  # the worker that needs it says so where the user sees it
    gc.freeze()  # else the first collection in a copy would write to every page, and so make it its own


@contextlib.contextmanager
def _ids_from_elsewhere() -> Iterator[None]:
    """Every actor class gets an id when it is defined, from the generator that tasks' ids come from too.

    That one takes its seed when it is first used: in a copy, if it was not used before.
    """
    import ray.actor

    class Own:
        @staticmethod
        def from_random() -> Any:
            return real(os.urandom(real.size()))

    real = ray.actor.ActorClassID
    ray.actor.ActorClassID = Own
    try:
        yield
    finally:
        ray.actor.ActorClassID = real


def _unfit() -> str:
    """Why there must be no copies; empty where there may be."""
    threads = {
        Path(task, "comm").read_text().strip()
        for task in Path("/proc/self/task").iterdir()
        if task.name != str(os.getpid())
    }
    if threads - _THREADS_THAT_MAY_BE:
        return f"an import has started a thread ({', '.join(sorted(threads))}), which a copy would not have"
    return "an import has drawn an id, and copies would draw the same ones" if _draw_alike() else ""


def _draw_alike() -> bool:
    from ray._raylet import UniqueID

    drawn = []
    for _ in range(2):
        reader, writer = os.pipe()
        copy = os.fork()
        if copy == 0:
            os.write(writer, UniqueID.from_random().binary())
            os._exit(0)
        os.waitpid(copy, 0)
        drawn.append(os.read(reader, _CHUNK_BYTES))
        _close([reader, writer])
    return drawn[0] == drawn[1]


def _main() -> None:
    listener = socket.socket(fileno=int(sys.argv[1]))
    address = listener.getsockname()
    worker = _next_worker(listener)
    if worker is not None:
        worker.run()
    else:  # the command may have been killed
        _remove(address)


if __name__ == "__main__":
    _main()
