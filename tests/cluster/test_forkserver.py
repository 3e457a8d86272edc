"""Workers as copies of one process: with a real Ray, in a process of its own."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from cluster import forkserver, worker_process
from cluster.forkserver import fork_server, worker_script
from tests.cluster.deployment import ROOT

_LOOK = """
import json, os, signal, sys, time
import psutil
from cluster import worker_process
from cluster.session import ray_session, started_ahead

def main():
    with started_ahead(sys.argv[1:], address=None), ray_session(address=None, admission_cpus=3) as session:
        import ray

        @ray.remote(num_cpus=0.1)
        class Worker:
            def look(self):
                import numpy
                parent = psutil.Process().parent()
                return {
                    "pid": os.getpid(),
                    "parent": parent.pid,
                    "line": parent.cmdline(),
                    "group": os.getpgid(0),
                    "job": ray.get_runtime_context().get_job_id(),
                    "variable": os.environ.get("OF_ITS_OWN"),
                    "modules": [name for name in ("lightning", "colorsys") if name in sys.modules],
                    "numbers": numpy.random.randint(2**31, size=4).tolist(),
                    "object": ray.put(1).hex(),
                }

        def look(count, **options):
            workers = [Worker.options(**options).remote() for _ in range(count)]
            return workers, ray.get([worker.look.remote() for worker in workers], timeout=50)

        workers, copies = look(3)
        job = ray.get_runtime_context().get_job_id()
        if "cluster.forkserver" not in copies[2]["line"]:
            print(json.dumps({"copies": copies}))
            return
        _, own = look(1, runtime_env={"env_vars": {"OF_ITS_OWN": "1"}})
        ray.kill(workers[0])
        os.kill(copies[1]["pid"], signal.SIGKILL)
        server, killed = copies[2]["parent"], {copies[0]["pid"], copies[1]["pid"]}
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            alive = {p.pid for p in psutil.Process(server).children()}
            waiting = sum(line_of(p)[1:2] == [worker_process.__file__] for p in below())
            if not killed & alive and waiting == len(alive):
                break
            time.sleep(0.1)
        else:
            raise AssertionError(f"{waiting} wait for {alive}; killed: {killed}")
        os.kill(server, signal.SIGKILL)
        _, without = look(1)
    print(json.dumps({"job": job, "copies": copies, "own": own, "without": without}))

def line_of(process):
    try:
        return process.cmdline()
    except psutil.Error:  # it has ended meanwhile
        return []

def below():
    return [p for p in psutil.Process().children(recursive=True) if p.is_running() and p.status() != "zombie"]

main()
"""


def _look(*modules: str, path: Path | None = None) -> dict[str, list[dict[str, object]]]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "CLASSIFIER_"))}
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as name:
        environment |= {"RAY_TMPDIR": name, "TMPDIR": name, "PYTHONPATH": str(path or "")}
        done = subprocess.run(
            [sys.executable, "-c", _LOOK, *modules],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert not list(Path(name).glob("classifier-*"))
    return json.loads(done.stdout.splitlines()[-1])


def test_workers_are_copies_and_still_themselves() -> None:
    """What is imported is there, and everything that must be a worker's own is: ids, random numbers, job, group, end."""
    seen = _look("colorsys", "ray.data")
    copies = seen["copies"]
    for copy in copies:
        assert "cluster.forkserver" in copy["line"]
        assert copy["modules"] == ["colorsys"]
        assert copy["group"] == copy["pid"]
        assert copy["job"] == seen["job"]
    assert len({copy["parent"] for copy in copies}) == 1
    assert len({copy["object"] for copy in copies}) == 3
    assert len({tuple(copy["numbers"]) for copy in copies}) == 3
    # another environment, or no server any more: as Ray starts its workers
    (own,), (without,) = seen["own"], seen["without"]
    assert own["variable"] == "1"
    assert "cluster.forkserver" not in own["line"] and own["modules"] == []
    assert "cluster.forkserver" not in without["line"]
    assert not psutil.pid_exists(int(str(copies[0]["parent"])))


@pytest.mark.parametrize(
    "module",
    [
        "from ray._raylet import UniqueID\nUniqueID.from_random()\n",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n",
    ],
)
def test_no_copies_where_they_would_not_be_whole(tmp_path: Path, module: str) -> None:
    """After an id was drawn every copy would draw the same ones, and tasks would be taken for each other; threads stay behind."""
    (tmp_path / "unfit.py").write_text(module)
    seen = _look("unfit", path=tmp_path)
    assert not any("cluster.forkserver" in copy["line"] for copy in seen["copies"])
    assert len({copy["object"] for copy in seen["copies"]}) == 3


_JOIN = """
import json, os, sys
import psutil
from cluster.session import ray_session, started_ahead

def main():
    with started_ahead(["colorsys", "ray.data"], address=sys.argv[1]), ray_session(address=sys.argv[1], admission_cpus=None):
        import ray

        @ray.remote(num_cpus=0.1)
        class Worker:
            def look(self):
                import classifier
                return {
                    "pid": os.getpid(),
                    "line": psutil.Process().parent().cmdline(),
                    "raylet": os.environ["RAY_RAYLET_PID"],
                    "variable": os.environ.get("OF_ITS_OWN"),
                    "packages": classifier.__file__,
                    "modules": [name for name in ("colorsys",) if name in sys.modules],
                }

        shared = Worker.options(name="shared", namespace="n", lifetime="detached", get_if_exists=True).remote()
        own = Worker.options(runtime_env={"env_vars": {"OF_ITS_OWN": "1"}}).remote()
        workers = [shared, Worker.remote(), own]
        print(json.dumps(ray.get([worker.look.remote() for worker in workers], timeout=50)))

main()
"""


def test_workers_of_a_cluster_that_runs_already_are_copies_too() -> None:
    """On the command's machine. What outlives the job is not lost with the process that it is a copy of."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "CLASSIFIER_"))}
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as name, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        free.close()
        ray = str(Path(sys.executable).with_name("ray"))
        start = ["start", "--head", f"--port={address.partition(':')[2]}", f"--temp-dir={name}", "--num-cpus=2"]
        subprocess.run(
            [ray, *start, "--include-dashboard=false", "--disable-usage-stats"],
            env=clean, cwd=name, check=True, timeout=60, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            jobs = []
            for _ in range(2):
                done = subprocess.run(
                    [sys.executable, "-c", _JOIN, address],
                    env=clean | {"OF_THE_COMMAND": "1"},  # it is not the raylet's, and no worker has it
                    cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
                )  # fmt: skip
                assert done.returncode == 0, done.stderr[-3000:]
                jobs.append(json.loads(done.stdout.splitlines()[-1]))
        finally:
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    if name in " ".join(process.cmdline()):
                        process.kill()
    (shared, plain, own), (again, _, _) = jobs
    for copy in (shared, plain):
        assert "cluster.forkserver" in copy["line"], copy
        assert copy["modules"] == ["colorsys"]
        assert copy["raylet"] != str(os.getpid()) and copy["raylet"] == own["raylet"]
    assert "cluster.forkserver" not in own["line"] and own["variable"] == "1"
    assert again["pid"] == shared["pid"]


def test_a_machine_keeps_what_its_own_sitecustomize_does(tmp_path: Path) -> None:
    """The one that travels with a job hides it, and must not take its place."""
    (tmp_path / "sent").mkdir()
    (tmp_path / "machine").mkdir()
    shutil.copy(ROOT / "cluster/sitecustomize.py", tmp_path / "sent")
    (tmp_path / "machine/sitecustomize.py").write_text("OF_THE_MACHINE = True\n")
    path = f"{tmp_path}/sent:{tmp_path}/machine"
    for nowhere in ("", str(tmp_path / "gone")):
        done = subprocess.run(
            [sys.executable, "-c", "import sitecustomize; assert sitecustomize.OF_THE_MACHINE", "default_worker.py"],
            env=os.environ | {"PYTHONPATH": path, worker_process.SOCKET: nowhere},
            timeout=30,
            check=False,
        )
        assert done.returncode == 0


def test_a_raylet_may_have_any_bytes_in_its_environment() -> None:
    """A name in another encoding than the command's is no reason to end with a traceback."""
    line = ["/opt/raylet/raylet", "-c", "import time; time.sleep(60)", "--gcs-address=127.0.0.1:1"]
    with subprocess.Popen(line, executable=sys.executable, env={b"ODD": b"\xff=1"}) as process:
        try:
            deadline = time.monotonic() + 10
            while (found := forkserver.find_raylet("1")) is None and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            process.kill()
    assert found is not None and found.pid == process.pid
    assert os.fsencode(found.environment["ODD"]) == b"\xff=1"


def test_a_command_does_not_wait_for_what_it_does_not_need() -> None:
    """A setting that is wrong is said at once, though the imports take seconds."""
    with fork_server(["training.ahead"]):
        began = time.monotonic()
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("reason", ["a GPU, whose driver is of no use to a copy once it is awake", "the user"])
def test_none_where_there_may_be_none(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    """Then Ray starts its workers itself."""
    if reason == "the user":
        monkeypatch.setenv("CLASSIFIER_FORK_SERVER", "0")
    else:
        monkeypatch.setattr(forkserver, "has_gpu_driver", lambda: True)
    monkeypatch.setattr(forkserver, "_running", [])
    with fork_server(["colorsys"]), worker_script() as script:
        assert script is None


def test_what_training_imports_can_be_copied(ray_once: None) -> None:
    """The modules of a run, in the versions that are installed."""
    import ray

    def look() -> tuple[list[str], bool]:
        parent = psutil.Process().parent()
        return parent.cmdline() if parent else [], "lightning.pytorch" in sys.modules

    line, is_imported = ray.get(ray.remote(num_cpus=0.01)(look).remote(), timeout=60)
    assert "cluster.forkserver" in line and is_imported


def test_what_serving_imports_can_be_copied() -> None:
    """The modules of the endpoint, with PyTorch, and of the folder job."""
    from serving.ahead import ENDPOINT, FOLDER_JOB, PYTORCH

    seen = _look(*PYTORCH, *ENDPOINT, *FOLDER_JOB)
    assert all("cluster.forkserver" in copy["line"] for copy in seen["copies"])
