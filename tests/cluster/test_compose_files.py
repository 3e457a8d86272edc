"""docker-compose.yml and what is laid over it: the schema's word, the seed's promises, nothing public."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest

from tests.cluster.deployment import COMPOSE, OVERLAYS, ROOT, Plain, check_compose, load_compose, overlaid

NODES = ("prepare", "head", "worker")


@pytest.fixture
def compose() -> Plain:
    """docker-compose.yml as Docker sees it with no .env beside it."""
    return load_compose(COMPOSE)


@pytest.mark.parametrize("file", [COMPOSE, *OVERLAYS], ids=lambda file: file.name)
def test_each_file_follows_the_compose_specification(file: Path) -> None:
    """By itself, as far as a part of a whole can."""
    check_compose(load_compose(file))


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda file: file.name)
def test_what_is_laid_over_follows_it_too_and_keeps_what_is_under_it(compose: Plain, overlay: Path) -> None:
    """Both files together are valid, and no service loses its token, its user or its limits."""
    both = overlaid(compose, load_compose(overlay))
    check_compose(both)
    for name in NODES:
        for key in ("user", "cap_drop", "security_opt", "shm_size", "volumes"):
            assert both["services"][name][key] == compose["services"][name][key]
        assert both["services"][name]["environment"].items() >= compose["services"][name]["environment"].items()


def _misspelt(plain: Plain) -> None:
    plain["services"]["head"]["heathcheck"] = plain["services"]["head"].pop("healthcheck")


def _bad_port(plain: Plain) -> None:
    plain["services"]["head"]["ports"] = ["127.0.0.1:eight:8000"]


def _bad_duration(plain: Plain) -> None:
    plain["services"]["head"]["healthcheck"]["interval"] = "soon"


def _bad_condition(plain: Plain) -> None:
    plain["services"]["worker"]["depends_on"]["head"]["condition"] = "service_happy"


@pytest.mark.parametrize("damage", [_misspelt, _bad_port, _bad_duration, _bad_condition])
def test_a_damaged_file_is_refused(compose: Plain, damage: Callable[[Plain], None]) -> None:
    """The check is able to fail."""
    damaged = deepcopy(compose)
    damage(damaged)
    with pytest.raises(ValueError, match=r"\S"):
        check_compose(damaged)


def test_the_first_pages_commands_find_their_container_and_their_folders(compose: Plain) -> None:
    """`docker exec -it modular-ai-app python -m training.run ds=EXAMS`, then tensorboard at 6006."""
    head = compose["services"]["head"]
    assert head["container_name"] == "modular-ai-app"
    assert head["environment"]["RAY_ADDRESS"] == "auto"
    assert "127.0.0.1:6006:6006" in head["ports"]
    mounted = dict(volume.split(":")[:2] for volume in head["volumes"])
    for folder in ("data", "models", "input", "out"):
        assert mounted[f"./{folder}"] == f"/app/{folder}"
        assert (ROOT / folder).is_dir(), f"{folder}/ must be in the repository: Docker would make it, owned by root"


def test_nothing_is_published_beyond_this_machine_unless_it_is_asked_for(compose: Plain) -> None:
    """The dashboard never; predictions only with SERVE_HOST."""
    published = [port for name in NODES for port in compose["services"][name].get("ports", [])]
    assert sorted(published) == ["127.0.0.1:6006:6006", "127.0.0.1:8000:8000", "127.0.0.1:8265:8265"]
    asked = load_compose(COMPOSE, {"SERVE_HOST": "0.0.0.0"})["services"]["head"]["ports"]
    assert sorted(set(asked) - set(published)) == ["0.0.0.0:8000:8000"]


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda file: file.name)
def test_nothing_that_is_laid_over_is_public_either(overlay: Path) -> None:
    """Prometheus and Grafana show names of datasets and ask for no token."""
    for service in load_compose(overlay)["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert not source.startswith("./") or (ROOT / source).exists(), volume


def test_every_container_holds_the_token_and_none_is_root(compose: Plain) -> None:
    """The token is a file in a volume that all mount, and only `prepare` writes it."""
    for name in NODES:
        service = compose["services"][name]
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
        assert "secrets:/run/secrets" in service["volumes"]
        assert service["user"] == "1000:1000"
        assert service["cap_drop"] == ["ALL"]
        assert service["init"] is True
    assert compose["services"]["prepare"]["command"][3] == "/run/secrets/ray_token"
    assert compose["services"]["head"]["depends_on"]["prepare"]["condition"] == "service_completed_successfully"
    assert compose["services"]["worker"]["depends_on"]["head"]["condition"] == "service_healthy"


def test_workers_are_as_many_as_are_asked_for(compose: Plain) -> None:
    """`--scale worker=3` needs a service without a fixed name or a fixed port."""
    worker = compose["services"]["worker"]
    assert worker["deploy"]["replicas"] == 0
    assert not {"container_name", "ports", "hostname"} & set(worker)
    assert "--address=head:6379" in worker["command"]


def test_gpus_go_to_one_container_only() -> None:
    """Two containers that both announce the machine's GPUs would place two workers on each."""
    services = load_compose(ROOT / "cluster" / "compose.gpu.yaml")["services"]
    with_gpus = [name for name, service in services.items() if "devices" in str(service.get("deploy"))]
    assert with_gpus == ["head"]
    assert services["head"]["build"]["args"]["TORCH"] == "cu130"
