"""Hosts of their own on this machine: namespaces with their own addresses and processes, joined by a switch."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.cluster.deployment import ROOT

_NETWORK = "10.199.7"
_START_WITHIN_S = 90


def why_not() -> str | None:
    """Why there can be no namespaces here, or None."""
    if shutil.which("ip") is None or shutil.which("nsenter") is None:
        return "needs ip and nsenter (packages iproute2 and util-linux)"
    try:
        with _switch("cf-try"):
            return None
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not allowed here: {error.stderr.strip()}"


@dataclass
class Hosts:
    """`ray start` on each of several hosts; the first is the head, and what the user types is typed there."""

    names: list[str]
    folder: Path
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def address(self) -> str:
        """What RAY_ADDRESS is on the head."""
        return f"{_NETWORK}.1:6379"

    def address_of(self, host: int) -> str:
        """A host's own address."""
        return f"{_NETWORK}.{host + 1}"

    def on(self, host: int, folder: Path) -> tuple[str, ...]:
        """What a command begins with to run on a host, in a folder."""
        (first,) = psutil.Process(self.processes[host].pid).children()
        return ("nsenter", f"--target={first.pid}", "--net", "--pid", "--mount", "--", "env", f"--chdir={folder}")

    def processes_on(self, host: int) -> set[int]:
        """The ids of a host's processes."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.names[host]], check=True, capture_output=True, text=True, timeout=20
        )
        return {int(process) for process in listed.stdout.split()}

    def cut_off(self, host: int) -> None:
        """Pull a host's cable: nothing is closed, nothing is said."""
        _ip("-n", self.names[host], "link", "set", "eth0", "down")


@contextlib.contextmanager
def hosts(count: int, *, cpus: int, environment: dict[str, str]) -> Iterator[Hosts]:
    """Start a Ray of several hosts; everything ends with it, whatever is cut off by then."""
    prefix = f"cf{os.getpid()}"
    with contextlib.ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
        stack.enter_context(_switch(f"{prefix}-sw"))
        names = []
        for host in range(count):
            stack.enter_context(_host(f"{prefix}-{host}", f"{prefix}-sw", host))
            names.append(f"{prefix}-{host}")
        made = Hosts(names, Path(name))
        stack.callback(_stop, made)
        for host in range(count):
            made.processes.append(_start(made, host, cpus, environment))
            _wait(made, host, environment)
        yield made


@contextlib.contextmanager
def _switch(name: str) -> Iterator[None]:
    _ip("netns", "add", name)
    try:
        _ip("-n", name, "link", "add", "switch", "type", "bridge")
        _ip("-n", name, "link", "set", "switch", "up")
        yield
    finally:
        _ip("netns", "del", name)


@contextlib.contextmanager
def _host(name: str, switch: str, number: int) -> Iterator[None]:
    _ip("netns", "add", name)
    try:
        _ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{number}", "netns", switch)
        _ip("-n", switch, "link", "set", f"port{number}", "master", "switch", "up")
        _ip("-n", name, "addr", "add", f"{_NETWORK}.{number + 1}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        _ip("netns", "del", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20)


def _start(made: Hosts, host: int, cpus: int, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    ray = str(Path(sys.executable).with_name("ray"))
    joined = ["--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={made.folder}"]
    role = joined if host == 0 else [f"--address={made.address}"]
    with (made.folder / f"host{host}.log").open("wb") as log:
        return subprocess.Popen(
            [
                *("ip", "netns", "exec", made.names[host]),
                *("unshare", "--pid", "--fork", "--mount-proc", "--kill-child"),
                ray,
                "start",
                "--block",
                *role,
                f"--num-cpus={cpus}",
                f"--node-ip-address={made.address_of(host)}",
                "--object-store-memory=200000000",
            ],
            cwd=ROOT,
            env=_environment(environment),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _wait(made: Hosts, host: int, environment: dict[str, str]) -> None:
    """Until the host says so; after the last one, until the head's own list has them all."""
    count = (
        "import ray, sys; ray.init(address=sys.argv[1], logging_level='error'); "
        "print(sum(node['Alive'] for node in ray.nodes()))"
    )
    deadline = time.monotonic() + _START_WITHIN_S
    log = made.folder / f"host{host}.log"
    while time.monotonic() < deadline:
        if "Ray runtime started" in log.read_text():
            if host + 1 < len(made.names):
                return
            seen = subprocess.run(
                [*made.on(0, ROOT), sys.executable, "-c", count, made.address],
                env=_environment(environment),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            if seen.stdout.strip() == str(len(made.names)):
                return
        assert made.processes[host].poll() is None, log.read_text()
        time.sleep(0.3)
    raise TimeoutError(f"host {host} did not start within {_START_WITHIN_S} s:\n{log.read_text()}")


def _environment(own: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | own


def _stop(made: Hosts) -> None:
    """Switch the hosts off: with the first process of a host all of its processes end."""
    for process in made.processes:
        process.kill()
        process.wait()
