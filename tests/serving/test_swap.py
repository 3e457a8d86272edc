"""A new model takes over without a gap; one that fails leaves the old one serving."""

import contextlib
import re
import threading
import time
from pathlib import Path
from typing import Self

import pytest
import requests

from classifier.errors import BadModelFolder, ClusterError
from classifier.model_folder import read_manifest
from serving import app, rollout
from serving.options import DeployArgs
from serving.swap import swap
from tests.serving.conftest import Deploy, encoded, photo, write_animals


class Meanwhile:
    """Something that goes on beside a test."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


class Visitor(Meanwhile):
    """Asks without a pause, and notes which model answered."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.models: list[str] = []
        self.failures: list[str] = []
        self._url = url

    def _work(self) -> None:
        picture = encoded(photo(), "JPEG")
        headers = {"X-API-Key": "open sesame"}
        while not self._stop.is_set():
            response = requests.post(f"{self._url}/predict", data=picture, headers=headers, timeout=20)
            if response.status_code == 200:
                self.models.append(response.json()["model"]["digest"])
            else:
                self.failures.append(f"{response.status_code} {response.text[:200]}")

    def wait_for(self, digest: str) -> None:
        """Until that model has answered."""
        deadline = time.monotonic() + 10
        while digest not in self.models and time.monotonic() < deadline:
            time.sleep(0.05)


class Killer(Meanwhile):
    """Kills every replica that was not there before, as soon as there is one."""

    def __init__(self, app_name: str) -> None:
        super().__init__()
        self.killed = 0
        self._app_name = app_name
        self._known = set(_replicas(app_name))

    def _work(self) -> None:
        while not self._stop.wait(0.1):
            for name in set(_replicas(self._app_name)) - self._known:
                with contextlib.suppress(ValueError):  # it has no process yet
                    _kill(name)
                    self._known.add(name)
                    self.killed += 1


def test_a_model_that_finds_no_room_is_not_waited_for_for_ever(
    serve_url: str, animals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serve itself would wait without a word."""
    from ray import serve

    monkeypatch.setattr(rollout, "_SAY_EVERY_S", 0.2)
    said: list[str] = []
    large = DeployArgs(model=str(animals), device="cpu", cpus_per_replica=1000)
    rollout.deploy(app.build(large, key_digest=None), name="large", route_prefix="/large")
    with pytest.raises(ClusterError, match=r"not after 1 s .*; is there room for it\?"):
        rollout.wait_until(lambda: rollout.is_up("large"), name="large", timeout_s=1, say=said.append)
    assert re.match(r"Waiting for [01] s: ", said[0])
    serve.delete("large", _blocking=False)  # takes 20 s, beside the tests that follow


def test_a_new_model_takes_over_without_a_gap_and_a_bad_one_does_not(
    deploy: Deploy, animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request fails, every answer names its model, the key and the settings stay, and the change happens once."""
    monkeypatch.setenv("SERVE_API_KEY", "open sesame")
    url = deploy("/swapped", model=str(animals), max_upload_mb=1)
    monkeypatch.delenv("SERVE_API_KEY")
    newer = write_animals(tmp_path / "ANIMALS" / "default" / "2026-11-23" / "09-00-00", seed=2)
    torn = write_animals(tmp_path / "ANIMALS" / "torn" / "2026-11-24" / "09-00-00", seed=3)
    (torn / "model.onnx").write_bytes(b"torn")
    old_digest, new_digest = read_manifest(animals).digest, read_manifest(newer).digest

    with Visitor(url) as visitor:
        with pytest.raises(BadModelFolder, match="not the file that was written"):
            swap(str(torn), models_dir=tmp_path, app_name="swapped", timeout_s=60)
        old, new = swap("ANIMALS/default", models_dir=tmp_path, app_name="swapped", timeout_s=60)
        visitor.wait_for(new.digest)  # a request that was on its way may still be the old one's

    assert (old.digest, new.digest) == (old_digest, new_digest)
    assert visitor.failures == []
    assert visitor.models == sorted(visitor.models, key=[old_digest, new_digest].index), "the old one came back"
    assert {visitor.models[0], visitor.models[-1]} == {old_digest, new_digest}
    assert requests.get(f"{url}/model", timeout=10).status_code == 401
    card = requests.get(f"{url}/model", headers={"X-API-Key": "open sesame"}, timeout=10).json()
    assert card["digest"] == new_digest
    assert card["limits"]["upload_bytes"] == 1024 * 1024


def _replicas(app_name: str, *, state: str | None = None) -> list[str]:
    from ray.serve.context import _get_global_client

    deployments = _get_global_client().get_serve_details()["applications"][app_name]["deployments"].values()
    replicas = [replica for deployment in deployments for replica in deployment["replicas"]]
    return [replica["actor_name"] for replica in replicas if state in (None, replica["state"])]


def _kill(replica: str) -> None:
    import ray

    ray.kill(ray.get_actor(replica, namespace="serve"))


def _digest_after_a_crash(url: str, app_name: str) -> str:
    """Kill what serves, and see what comes back."""
    (replica,) = _replicas(app_name, state="RUNNING")
    _kill(replica)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(requests.RequestException):
            response = requests.get(f"{url}/model", timeout=10)
            if response.status_code == 200 and replica not in _replicas(app_name):
                return str(response.json()["digest"])
        time.sleep(0.2)
    raise TimeoutError(str(_replicas(app_name)))


def test_a_model_whose_replicas_fail_leaves_the_old_one_serving_for_good(
    deploy: Deploy, animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is another by the time it is loaded, one whose processes die; a crash later brings the old one back."""
    url = deploy("/kept", model=str(animals))
    newer = write_animals(tmp_path / "newer", seed=4)
    old_digest, new_digest = read_manifest(animals).digest, read_manifest(newer).digest

    with Visitor(url) as visitor:
        with monkeypatch.context() as patched:
            patched.setattr(app, "_checked_digest", lambda folder, args: "sha256:of what lay there a moment ago")
            with pytest.raises(ClusterError, match=r"goes on serving: .*has changed since it was deployed"):
                swap(str(newer), models_dir=tmp_path, app_name="kept", timeout_s=60)
        with Killer("kept") as killer, pytest.raises(ClusterError, match=r"goes on serving: .*died"):
            swap(str(newer), models_dir=tmp_path, app_name="kept", timeout_s=60)
    assert visitor.failures == [] and set(visitor.models) == {old_digest}
    assert killer.killed >= 1
    assert _digest_after_a_crash(url, "kept") == old_digest

    swap(str(newer), models_dir=tmp_path, app_name="kept", timeout_s=60)
    assert _digest_after_a_crash(url, "kept") == new_digest


def test_a_swap_of_what_is_not_there_says_what_is(url: str, animals: Path) -> None:
    """A typo in the application's name."""
    with pytest.raises(ClusterError, match=r"no such application here; running: .*default"):
        swap(str(animals), models_dir=animals, app_name="defualt", timeout_s=5)


def test_an_application_deployed_from_a_file_swaps_too_and_survives_a_bad_model(
    serve_url: str, animals: Path, tmp_path: Path
) -> None:
    """`serve deploy` of a file that names a bad model leaves the old one serving, and its status says why."""
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    def deploy_file(model: Path) -> None:
        application = {
            "name": "declared",
            "route_prefix": "/declared",
            "import_path": "serving.app:deploy",
            "args": {"model": str(model), "max_batch_size": 4},
        }
        config = ServeDeploySchema.model_validate({"applications": [application]})
        _get_global_client().deploy_apps(config, _blocking=False)

    def wait_for(status: str) -> str:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            found = serve.status().applications["declared"]
            if found.status == status:
                return found.message
            time.sleep(0.2)
        raise TimeoutError(str(found))

    def digest() -> str:
        return str(requests.get(f"{serve_url}/declared/model", timeout=10).json()["digest"])

    deploy_file(animals)
    wait_for("RUNNING")
    newer = write_animals(tmp_path / "newer", seed=5)
    swap(str(newer), models_dir=tmp_path, app_name="declared", timeout_s=60)
    assert digest() == read_manifest(newer).digest
    wait_for("RUNNING")

    deploy_file(tmp_path / "absent")
    assert "neither a model folder nor a dataset" in wait_for("DEPLOY_FAILED")
    assert digest() == read_manifest(newer).digest
