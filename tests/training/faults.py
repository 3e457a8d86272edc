"""Training runs that something happens to: processes are found, killed and looked for again."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
_WAIT_S = 240.0


@dataclass
class Run:
    """A `python -m training.run` under way, and what it has printed so far."""

    process: "subprocess.Popen[str]"
    folder: Path  # where it was typed
    lines: list[str] = field(default_factory=list)
    _more: threading.Condition = field(default_factory=threading.Condition)

    @property
    def output(self) -> str:
        """Everything that was printed."""
        return "".join(self.lines)

    @property
    def model(self) -> Path:
        """The model folder that a line names."""
        found = re.findall(r"(?:resume=|saved in the )(models/\S+)", self.output)
        assert found, self.output
        return self.folder / found[-1]

    def follow(self) -> None:
        """Read what is printed, until the end; runs in a thread."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._more:
                self.lines.append(line)
                self._more.notify_all()
        with self._more:
            self._more.notify_all()

    def wait_for(self, pattern: str, *, within_s: float = _WAIT_S) -> str:
        """The first line that a pattern is found in."""
        deadline = time.monotonic() + within_s
        with self._more:
            while True:
                for line in self.lines:
                    if re.search(pattern, line):
                        return line
                left = deadline - time.monotonic()
                if left <= 0 or self.process.poll() is not None:
                    raise AssertionError(f"{pattern!r} was not printed:\n{self.output}")
                self._more.wait(min(1.0, left))

    def end(self, *, within_s: float = _WAIT_S) -> int:
        """Wait for the end; returns the exit code."""
        try:
            code = self.process.wait(timeout=within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"hung: no end within {within_s:.0f} s:\n{self.output}") from None
        deadline = time.monotonic() + 5
        while self.process.stdout is not None and not self.process.stdout.closed and time.monotonic() < deadline:
            with self._more:
                if any("directory\n" in line or "Failed" in line or "Error" in line for line in self.lines[-3:]):
                    break
                self._more.wait(0.2)
        return code


@contextlib.contextmanager
def training(
    folder: Path,
    *arguments: str,
    address: str | None = None,
    environment: dict[str, str] | None = None,
    prefix: tuple[str, ...] = (),
) -> Iterator[Run]:
    """`python -m training.run ARGUMENTS`, typed in a folder; killed at the end if it is still there.

    Args:
        folder: where it is typed.
        arguments: the settings.
        address: RAY_ADDRESS; None lets the command start a Ray of its own.
        environment: what else is set.
        prefix: what stands before `python`.
    """
    own = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    own |= {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | (environment or {})
    if address:
        own["RAY_ADDRESS"] = address
    process = subprocess.Popen(
        [*prefix, sys.executable, "-u", "-m", "training.run", *arguments],
        cwd=folder,
        env=own,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    run = Run(process, folder)
    reader = threading.Thread(target=run.follow, daemon=True)
    reader.start()
    try:
        yield run
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join(timeout=10)


def find(title: str, *, below: int | None = None, session: str | None = None) -> list[psutil.Process]:
    """Ray's processes with a title such as `ray::RayTrainWorker`.

    Args:
        title: how their command line begins.
        below: only descendants of this process: those of a Ray that it started.
        session: only those of the Ray that lives in this folder.
    """
    candidates = psutil.Process(below).children(recursive=True) if below is not None else psutil.process_iter()
    found = []
    for process in candidates:
        with contextlib.suppress(psutil.Error, OSError):
            line = " ".join(process.cmdline())
            if line.startswith(title) and (session is None or _writes_below(process, session)):
                found.append(process)
    return found


def kill(process: psutil.Process) -> None:
    """SIGKILL: nothing can be said or tidied up any more."""
    os.kill(process.pid, signal.SIGKILL)


def scratch_files(folder: Path) -> list[str]:
    """What lies in the folder for temporary files that a run was given; Ray's and Python's own are in folders there."""
    return sorted(file.name for file in folder.iterdir() if re.match("checkpoint-|classifier-|tmp", file.name))


_ASK = """
import json, sys, time
import ray
from ray._private.state import actors
from ray.util import placement_group_table
ray.init(address=sys.argv[1], logging_level="error")
of_rays_own = {"_StatsActor", "_AutoscalingCoordinatorActor", "TrainStateActor"}
def left():
    found = [actor["ActorClassName"] for actor in actors().values() if actor["State"] != "DEAD"]
    groups = [group["state"] for group in placement_group_table().values() if group["state"] != "REMOVED"]
    return [name for name in found if name not in of_rays_own] + groups
end = time.monotonic() + 20
while left() and time.monotonic() < end:
    time.sleep(0.5)
print(json.dumps(left()))
"""


def of_ours(address: str, environment: dict[str, str] | None = None) -> list[str]:
    """Actors and placement groups that finished runs have left on a cluster that goes on.

    Ray keeps three actors of its own, detached, for all runs: what a cluster has is not what a run has left.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", _ASK, address],
        env=inherited | (environment or {}),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def _writes_below(process: psutil.Process, folder: str) -> bool:
    return any(file.path.startswith(folder) for file in process.open_files())
