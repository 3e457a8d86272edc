"""Joining a cluster, or starting one: what is wrong is said in one line, within seconds, and nothing stays behind."""

import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from classifier.errors import ClusterError
from cluster import address as address_module
from cluster.address import find_cluster, use_token
from cluster.session import _capacity, address_from_environment
from cluster.sizing import Node
from tests.cluster.deployment import ROOT
from tests.cluster.two_nodes import TwoNodes, processes_of, two_nodes
from tests.training.digits import write_few_digits
from tests.training.faults import of_ours

_JOIN = """
import json, os
from classifier.errors import ClusterError
from cluster.session import address_from_environment, ray_session
try:
    with ray_session(address=address_from_environment(), admission_cpus=3) as session:
        import ray
        variable = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
        seen = ray.get(ray.remote(num_cpus=0.1)(lambda: os.environ.get(variable)).remote())
        nodes = [node.cpus for node in session.capacity.nodes]
        told = []
        session.show_dashboard(told.append)
        print(json.dumps({"cpus": session.capacity.cpus, "nodes": nodes, "seen": seen, "here": session.started_here,
                          "dashboard": told[0]}))
except ClusterError as error:
    print(json.dumps({"error": str(error)}))
"""


def test_what_the_machines_hold_is_what_ray_says() -> None:
    """A machine that is gone holds nothing."""
    resources = {"CPU": 8.0, "object_store_memory": 2e9, "memory": 1e10}
    gone = {"Alive": False, "Resources": {"CPU": 4.0, "object_store_memory": 1e9}}

    capacity = _capacity([{"Alive": True, "Resources": resources}, gone], cores=None)

    assert capacity.nodes == (Node(8, 0, 2e9),)


def _session(environment: Mapping[str, str | Path], *arguments: str, prefix: tuple[str, ...] = ()) -> dict[str, object]:
    """Open a session in a process of its own, with nothing of Ray's in its environment but what is given."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [*prefix, sys.executable, "-c", _JOIN],
        env={**inherited, **{key: str(value) for key, value in environment.items()}},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=180,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stdout + done.stderr
    answer = json.loads(lines[-1])
    assert isinstance(answer, dict)
    return answer


@pytest.fixture(scope="module")
def cluster() -> Iterator[TwoNodes]:
    """A head and a worker with a token, started once for this file."""
    with two_nodes() as nodes:
        yield nodes
    assert nodes.leftovers() == [], "docker compose down would leave these behind"


def test_with_the_token_it_joins_and_sees_both_nodes(cluster: TwoNodes) -> None:
    """The file is enough: Ray's RAY_AUTH_MODE=token is set where it is missing. Workers get our settings."""
    joined = _session({"RAY_ADDRESS": cluster.address, "RAY_AUTH_TOKEN_PATH": cluster.token_file})
    assert joined == {
        "cpus": 2.0,
        "nodes": [1.0, 1.0],
        "seen": "0.25",
        "here": False,
        "dashboard": cluster.dashboard,
    }


def test_a_jobs_own_environment_wins(cluster: TwoNodes) -> None:
    """Ray refuses a variable that both the job and the session set; the job's stays."""
    job = {"runtime_env": {"env_vars": {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "7"}}}
    joined = _session(
        {
            "RAY_ADDRESS": cluster.address,
            "RAY_AUTH_TOKEN_PATH": cluster.token_file,
            "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job),
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "7",
        }
    )
    assert joined["seen"] == "7"


def test_a_submitted_job_trains_on_both_nodes(cluster: TwoNodes, tmp_path: Path) -> None:
    """`ray job submit` with the token, to a dashboard at a port of its own: the command's own lines come back."""
    write_few_digits(tmp_path / "data/raw_data/DIGITS", classes=2, each=30)
    folders = [f"paths.{key}={tmp_path / 'data' / key}" for key in ("raw_data", "metadata", "cache")]
    settings = ["num_workers=2", "model=tiny", "augment=none", "trainer.max_epochs=1", "trainer.precision=32"]
    command = ["python", "-m", "training.run", "ds=DIGITS", *settings, *folders, f"paths.models={tmp_path / 'models'}"]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}

    done = subprocess.run(
        [str(Path(sys.executable).with_name("ray")), "job", "submit", f"--address={cluster.dashboard}", "--", *command],
        env={**inherited, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(cluster.token_file)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Training on 2 workers." in done.stdout
    (made,) = (tmp_path / "models/DIGITS/default").glob("*/*")
    assert f"Your model has been saved in the {made} directory" in done.stdout
    assert (made / "classifier.json").is_file()
    assert of_ours(cluster.address, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(cluster.token_file)}) == []


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "the cluster wants a token; set RAY_AUTH_TOKEN_PATH"),
        ({"RAY_AUTH_TOKEN": "f" * 64}, "the cluster does not take the token in RAY_AUTH_TOKEN;"),
        ({"RAY_AUTH_MODE": "disabled"}, "the cluster wants a token; set RAY_AUTH_TOKEN_PATH"),
    ],
    ids=["none", "wrong", "turned off"],
)
def test_without_the_right_token_it_says_so_at_once(
    cluster: TwoNodes, environment: dict[str, str], said: str, tmp_path: Path
) -> None:
    """Ray alone retries for 20 s, and then says only that it could not connect."""
    answer = _session({"RAY_ADDRESS": cluster.address, "HOME": str(tmp_path), **environment})
    assert str(answer["error"]).startswith(f"RAY_ADDRESS={cluster.address}: {said}")
    assert "\n" not in str(answer["error"])


def test_the_dashboards_port_is_not_the_clusters(cluster: TwoNodes) -> None:
    """The address that a person has at hand is the dashboard's."""
    with pytest.raises(ClusterError, match=r"what answers there is not a Ray head; its port is 6379"):
        find_cluster(cluster.dashboard.removeprefix("http://"))


@pytest.mark.parametrize("content", [None, "", " \n"], ids=["absent", "empty", "blank"])
def test_a_token_file_without_a_token_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    """Before Ray is asked for anything."""
    file = tmp_path / "ray_token"
    if content is not None:
        file.write_text(content)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    with pytest.raises(ClusterError, match=rf"RAY_AUTH_TOKEN_PATH={file}: .*(cannot be read|is empty)"):
        use_token()


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "10.0.0.1:", ":6379", "10.0.0.1:six", "http://10.0.0.1:8265", "10.0.0.1:70000", "[]:1"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    """With the form that is expected."""
    with pytest.raises(ClusterError, match=r"expected host:port, for example 10\.0\.0\.1:6379"):
        find_cluster(address)


def test_the_ray_client_is_refused_with_the_command_to_use_instead() -> None:
    """Training pins its controller to the driver's node: through the client there is none."""
    with pytest.raises(ClusterError, match=r"ray job submit --working-dir \. -- python -m training\.run"):
        find_cluster("ray://10.0.0.1:10001")


def test_an_address_where_nothing_listens_fails_at_once() -> None:
    """Refused connections and unknown names both."""
    for address in (f"127.0.0.1:{_unused_port()}", "no-such-host.invalid:6379"):
        with pytest.raises(ClusterError, match=rf"RAY_ADDRESS={address}: nothing answers there \(.+\); start the cl"):
            find_cluster(address)


def test_an_address_that_never_answers_fails_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that says nothing, as behind a firewall that drops."""
    monkeypatch.setattr(address_module, "_ANSWER_WITHIN_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ClusterError, match=r"nothing answers within 0\.5 s; is it up, and does a firewall"):
            find_cluster(address)


def test_another_server_is_not_taken_for_a_cluster() -> None:
    """A web server answers, but not as Ray does."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ClusterError, match="not a Ray head"):
            find_cluster(f"127.0.0.1:{server.server_port}")
        server.shutdown()


def test_auto_without_a_cluster_says_that_there_is_none(tmp_path: Path) -> None:
    """Seen from a process that sees no other: this machine may run Rays that are not ours."""
    alone = _alone()
    answer = _session({"RAY_ADDRESS": "auto", "RAY_TMPDIR": tmp_path}, prefix=alone)
    assert str(answer["error"]).startswith("RAY_ADDRESS=auto: no Ray runs on this machine; start one")


def test_auto_after_a_crash_does_not_wait_for_the_dead(tmp_path: Path) -> None:
    """Ray leaves its last address in a file; what is behind it may be gone."""
    alone = _alone()
    (tmp_path / "ray").mkdir()
    address = f"127.0.0.1:{_unused_port()}"
    for folder in (tmp_path, tmp_path / "ray"):
        (folder / "ray_current_cluster").write_text(address)
    answer = _session({"RAY_ADDRESS": "auto", "RAY_TMPDIR": tmp_path}, prefix=alone)
    assert "nothing answers there" in str(answer["error"])


_STAY = """
import psutil, sys
from cluster.session import ray_session
with ray_session(address=None, admission_cpus=3) as session:
    import ray
    ray.get(ray.remote(num_cpus=0.1)(lambda: None).remote())
    for process in psutil.Process().children(recursive=True):
        assert "dashboard.py" not in " ".join(process.cmdline()), "the work would wait for it"
    session.show_dashboard(lambda url: print(session.started_here, session.capacity.cpus, url, flush=True))
    sys.stdin.read()
    raise RuntimeError("something else went wrong")
"""


@pytest.mark.parametrize("end", ["error", "kill"])
def test_what_is_started_here_is_gone_afterwards(end: str) -> None:
    """With as many CPUs as asked for, the dashboard on 127.0.0.1 only, and no process left when it ends.

    A driver that is killed leaves Ray's two agents for a minute: they report to the head that is gone before they end.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        driver = subprocess.Popen(
            [sys.executable, "-c", _STAY],
            env={**environment, "RAY_TMPDIR": name},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        with driver:
            assert driver.stdout
            here, cpus, dashboard = driver.stdout.readline().split()
            assert (here, cpus) == ("True", "3.0")
            assert dashboard.startswith("http://127.0.0.1:")
            running = processes_of(folder)
            assert any("raylet" in line for line in running)
            assert any(line.startswith(("ray::", "'ray::")) for line in running), running
            if end == "kill":
                driver.kill()
        deadline = time.monotonic() + 60
        while (left := _working(processes_of(folder), end)) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert left == []


@pytest.mark.parametrize(
    ("value", "address"), [(None, None), ("", None), ("local", None), (" 10.0.0.1:6379 ", "10.0.0.1:6379")]
)
def test_ray_address_says_where_to_run(monkeypatch: pytest.MonkeyPatch, value: str | None, address: str | None) -> None:
    """Unset, empty and `local` mean: here."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if value is not None:
        monkeypatch.setenv("RAY_ADDRESS", value)
    assert address_from_environment() == address


def _working(lines: list[str], end: str) -> list[str]:
    agents = ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "'ray::DashboardAgent", "'ray::RuntimeEnvAgent")
    return [line for line in lines if end != "kill" or not line.startswith(agents)]


def _alone() -> tuple[str, ...]:
    """How to start a process that sees no other process; skips where that is not allowed."""
    program = shutil.which("unshare")
    command = (program or "", "--pid", "--fork", "--mount-proc")
    if program is None or subprocess.run([*command, "true"], capture_output=True, timeout=20, check=False).returncode:
        pytest.skip("needs unshare and the right to use it: other Rays may run on this machine")
    return command


def _unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert isinstance(port, int)
    return port
