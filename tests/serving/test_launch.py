"""The commands, as a user types them: `make serve` and `serve run`."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from ray import serve

from classifier.model_folder import read_manifest
from cluster.terminal import Terminal, run_command
from serving import launch
from tests.serving.conftest import encoded, free_port, photo, write_animals

_ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def _running(command: list[str], log: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    # An own Ray, whatever else runs on this machine.
    environment = {**os.environ, "RAY_ADDRESS": "local", "PYTHONPATH": str(_ROOT), **variables}
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=_ROOT, env=environment, stdout=out, stderr=out, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_ready(url: str, process: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if requests.get(f"{url}/readyz", timeout=2).status_code == 200:
                return
        except requests.RequestException:
            pass
        time.sleep(0.2)
    raise TimeoutError(log.read_text())


def _other_address() -> str | None:
    """A second IPv4 address of this machine. Nothing is sent: connecting a datagram socket only picks a route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address = str(probe.getsockname()[0])
    return None if address.startswith("127.") else address


def _listens(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex((address, port)) == 0


def test_make_serve_answers_on_this_machine_only(animals: Path, tmp_path: Path) -> None:
    """Behind HAProxy, which Ray would bind to every interface, with its statistics and metrics pages."""
    port, statistics, metrics, log = free_port(), free_port(), free_port(), tmp_path / "log"
    command = [sys.executable, "-m", "serving.launch", f"model={animals}", f"port={port}"]
    variables = {
        "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": "30500",
    }
    url = f"http://127.0.0.1:{port}"
    with _running(command, log, **variables) as process:
        _wait_until_ready(url, process, log)
        assert requests.post(f"{url}/predict", data=encoded(photo(), "JPEG"), timeout=10).status_code == 200
        assert requests.post(f"{url}/predict", data=b"", timeout=10).status_code == 422
        assert requests.get(f"{url}/", timeout=10).headers["Content-Type"].startswith("text/html")
        assert requests.get(f"{url}/model", timeout=10).json()["backend"] == "onnx"
        ports = (port, statistics, metrics, 30500)
        assert [_listens("127.0.0.1", each) for each in ports] == [True] * 4
        other = _other_address()
        if other is not None:
            assert [_listens(other, each) for each in ports] == [False] * 4
        while "Ctrl-C stops it." not in log.read_text():  # a replica answers a moment before Serve says so
            assert process.poll() is None
            time.sleep(0.1)
        newer = write_animals(tmp_path / "newer", seed=2)
        _swap_as_it_says(log.read_text(), newer)
        assert requests.get(f"{url}/model", timeout=10).json()["digest"] == read_manifest(newer).digest
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    shown = log.read_text()
    assert f"page       {url}/" in shown
    assert "Warning" not in shown and "Traceback" not in shown
    assert re.search(r"dashboard  http://\S+ \(it asks for a token: ray get-auth-token\)", shown)


def _swap_as_it_says(shown: str, model: Path) -> None:
    """Type the command that `make serve` shows, in another terminal: it knows of no token but that in Ray's own file."""
    match = re.search(r"RAY_ADDRESS=(\S+) python (-m serving\.swap) model=NEW", shown)
    assert match
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"RAY_ADDRESS": match[1], "PYTHONPATH": str(_ROOT)}
    command = [sys.executable, *match[2].split(), f"model={model}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout


def test_serve_run_answers_and_says_how_to_be_faster(animals: Path, tmp_path: Path) -> None:
    """The command that Ray Serve's users know."""
    if _listens("127.0.0.1", 8000):
        pytest.skip("`serve run` takes port 8000, and something listens there already")
    log, url = tmp_path / "log", "http://127.0.0.1:8000"
    command = [str(Path(sys.executable).with_name("serve")), "run", "serving.app:deploy", f"model={animals}"]
    with _running(command, log, RAY_SERVE_LOG_TO_STDERR="0") as process:
        _wait_until_ready(url, process, log)
        answer = requests.post(f"{url}/predict", data=encoded(photo(), "JPEG"), timeout=10).json()
        assert len(answer["predictions"]) == 3
        other = _other_address()
        assert other is None or not _listens(other, 8000)
    assert "make serve" in log.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model=NOWHERE", f"port={free_port()}"], "neither a model folder nor a dataset"),
        (["modle=EXAMS"], "did you mean model?"),
        (["model=EXAMS", "port=none"], "port=none"),
        (["EXAMS"], "expected key=value"),
        (["model=EXAMS", "api_key_file=/nowhere/key"], "api_key_file=/nowhere/key"),
        (["model=EXAMS", "host=203.0.113.9"], "host=203.0.113.9 port=8000: cannot listen there"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], words: str) -> None:
    """What was found, what was expected, what to do."""
    command = [sys.executable, "-m", "serving.launch", *arguments]
    variables = {**os.environ, "PYTHONPATH": str(_ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    error = [line for line in done.stdout.splitlines() if line.startswith("Error: ")]
    assert len(error) == 1 and words in error[0]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("command", "keys"), [("launch", ["model", "host", "max_queue"]), ("swap", ["model", "app", "timeout_s"])]
)
def test_help_names_the_keys(command: str, keys: list[str]) -> None:
    """And needs no endpoint."""
    arguments = [sys.executable, "-m", f"serving.{command}", "--help"]
    done = subprocess.run(arguments, cwd=_ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    assert [key for key in keys if re.search(rf"^  {key} +\S+ +\S", done.stdout, re.MULTILINE)] == keys


@pytest.mark.parametrize(
    ("cores", "given", "replicas"),
    [
        (2, {}, (2, 2)),
        (8, {}, (2, 8)),
        (1, {}, (1, 1)),
        (8, {"max_replicas": "1"}, (1, 1)),
        (8, {"min_replicas": "2"}, (2, 2)),
        (8, {"device": "gpu"}, (1, 2)),
    ],
)
def test_two_replicas_are_there_from_the_start_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, cores: int, given: dict[str, str], replicas: tuple[int, int]
) -> None:
    """And one for every core under load; a GPU is filled by one."""
    monkeypatch.setattr(launch, "physical_cores", lambda: cores)
    args = launch.LaunchArgs.model_validate({"model": "EXAMS", "device": "cpu", **given})
    assert (args.min_replicas, args.max_replicas) == replicas


def test_ingresses_that_do_not_come_up_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Serve waits for them for a minute, and raises what is no error of ours."""

    def never(**_: object) -> None:
        raise TimeoutError("HTTP proxies not available after 60s.")

    monkeypatch.setattr(serve, "start", never)
    args = launch.LaunchArgs.model_validate({"model": "EXAMS", "device": "cpu"})

    def bring_up(_: list[str], terminal: Terminal) -> int:
        launch._bring_up(object(), args, terminal)
        return 0

    assert run_command(bring_up, []) == 2
    expected = "Error: the endpoint did not come up: HTTP proxies not available after 60s.\n"
    assert capfd.readouterr().out == expected
