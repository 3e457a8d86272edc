"""A cluster of two nodes on this machine, started with the very commands of docker-compose.yml, its token on."""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.cluster.deployment import COMPOSE, ROOT, load_compose

_START_WITHIN_S = 90


@dataclass
class TwoNodes:
    """Two running `ray start --block`."""

    folder: Path
    address: str
    dashboard: str
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def token_file(self) -> Path:
        """What all nodes were started with."""
        return self.folder / "ray_token"

    def leftovers(self) -> list[str]:
        """Command lines of processes that belong to this cluster."""
        return processes_of(self.folder)


def processes_of(folder: Path) -> list[str]:
    """Command lines of the processes of a Ray that lives in a folder.

    Its servers name the folder in their command line; workers change theirs to `ray::NAME`, but write their logs there.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            line = shlex.join(process.cmdline())
            files = [] if str(folder) in line else [file.path for file in process.open_files()]
            if process.pid != os.getpid() and any(str(folder) in text for text in (line, *files)):
                found.append(line)
    return found


@contextlib.contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    """Start a head and a worker as the compose file does, on free ports; stop them as `docker compose down` does."""
    services = load_compose(COMPOSE)["services"]
    # Ray's sockets lie in it, and a socket's path has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-") as name:
        port, dashboard, metrics, agent, client, worker_agent, worker_metrics = _free_ports(7)
        nodes = TwoNodes(Path(name), f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}")
        environment = dict(services["head"]["environment"]) | {
            "RAY_AUTH_TOKEN_PATH": str(nodes.token_file),
            "RAY_SERVE_DEFAULT_HTTP_HOST": "127.0.0.1",
            "SERVE_API_KEY": None,
            # as in the image: a job's `python` is the one that Ray runs on
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        prepare = services["prepare"]["command"]
        _run_prepare([*prepare[1:3], str(nodes.token_file), str(nodes.folder)])
        shared = ["--node-ip-address=127.0.0.1", "--num-cpus=1", "--min-worker-port=0", "--max-worker-port=0"]
        head = _with(
            services["head"]["command"],
            {"port": port, "dashboard-host": "127.0.0.1", "dashboard-port": dashboard, "metrics-export-port": metrics},
            [
                *shared,
                f"--temp-dir={name}",
                f"--dashboard-agent-listen-port={agent}",
                f"--ray-client-server-port={client}",
            ],
        )
        worker = _with(
            services["worker"]["command"],
            {"address": nodes.address, "metrics-export-port": worker_metrics},
            [*shared, f"--dashboard-agent-listen-port={worker_agent}"],
        )
        try:
            _start(nodes, "head", head, environment)
            _wait_until_healthy(_health(services["head"], dashboard), nodes)
            del environment["RAY_ADDRESS"], environment["RAY_SERVE_DEFAULT_HTTP_HOST"], environment["SERVE_API_KEY"]
            _start(nodes, "worker", worker, environment)
            _wait_until_healthy(_health(services["worker"], worker_agent), nodes)
            yield nodes
        finally:
            _stop(nodes)


def _run_prepare(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], cwd=ROOT, timeout=60, check=True, stdout=subprocess.DEVNULL)


def _with(command: list[str], replaced: dict[str, object], added: list[str]) -> list[str]:
    """A compose command with other ports: each replaced option must be in it."""
    options = [option for option in command if option.removeprefix("--").partition("=")[0] not in replaced]
    assert len(options) == len(command) - len(replaced), (command, replaced)
    ray = str(Path(sys.executable).with_name("ray"))
    return [ray, *options[1:], *(f"--{key}={value}" for key, value in replaced.items()), *added]


def _start(nodes: TwoNodes, name: str, command: list[str], environment: dict[str, str | None]) -> None:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    own = {key: value for key, value in environment.items() if value is not None}
    with (nodes.folder / f"{name}.log").open("wb") as log:
        nodes.processes[name] = subprocess.Popen(
            command, cwd=ROOT, env=inherited | own, stdout=log, stderr=log, start_new_session=True
        )


def _health(service: dict[str, dict[str, list[str]]], port: int) -> str:
    """The health check's own address, at another port."""
    url = service["healthcheck"]["test"][-1]
    return f"http://127.0.0.1:{port}/{url.partition('://')[2].partition('/')[2]}"


def _wait_until_healthy(url: str, nodes: TwoNodes) -> None:
    deadline = time.monotonic() + _START_WITHIN_S
    while time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=3) as answer:
            if answer.status == 200:
                return
        assert all(process.poll() is None for process in nodes.processes.values()), _logs(nodes)
        time.sleep(0.2)
    raise TimeoutError(f"{url}: not healthy within {_START_WITHIN_S} s\n{_logs(nodes)}")


def _stop(nodes: TwoNodes) -> None:
    """SIGTERM, as Docker sends it; after that, only what this test started itself is killed."""
    for process in reversed(nodes.processes.values()):
        process.send_signal(signal.SIGTERM)
    for process in nodes.processes.values():
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _logs(nodes: TwoNodes) -> str:
    return "\n".join(f"{log.name}:\n{log.read_text()[-2000:]}" for log in sorted(nodes.folder.glob("*.log")))


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [taken.getsockname()[1] for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports
