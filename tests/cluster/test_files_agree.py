"""One version, one port, one token: what one file says, no other contradicts."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.deployment import (
    COMPOSE,
    KUBERAY,
    LAUNCHER,
    OVERLAYS,
    ROOT,
    check_kuberay,
    load,
    load_compose,
    pinned,
    pods,
    project,
)

FILES = sorted(
    [
        COMPOSE,
        ROOT / "Dockerfile",
        *(file for file in (ROOT / "cluster").rglob("*") if file.suffix in (".yaml", ".yml", ".md", ".json")),
    ]
)
IMAGE = re.compile(r"class-folders:(?P<version>[\d.]+)-ray(?P<ray>[\d.]+)-(?P<torch>cpu|cu\d+)")
_SECRET = re.compile(
    r"""(?ix) -----BEGIN[ ](?:\w+[ ])*PRIVATE[ ]KEY | \bAKIA[0-9A-Z]{16}\b | \bghp_\w{20,} | \bhf_\w{20,} | [0-9a-f]{32,}
      | (?:password|passwd|auth_token|api_key|secret_key)["']?\s*[:=]\s*["']?(?!\$|~|null\b|/)[\w+/-]{8,}"""
)


def _images() -> dict[str, str]:
    """Every image of ours that a file names, by where it stands."""
    found = {}
    for file in (COMPOSE, *OVERLAYS):
        for name, service in load_compose(file)["services"].items():
            if "class-folders" in service.get("image", ""):
                found[f"{file.name}: {name}"] = service["image"]
    for file in KUBERAY:
        for pod in pods(check_kuberay(load(file))):
            found |= {f"{file.name}: {container['name']}": container["image"] for container in pod["containers"]}
    return found | {file.name: load(file)["docker"]["image"] for file in LAUNCHER}


def test_ray_is_the_same_version_everywhere() -> None:
    """A worker with another Ray than the head's is turned away."""
    ray = pinned("ray")
    assert any(re.match(r"ray\[.*\]>=2\.60", dependency) for dependency in project()["project"]["dependencies"])
    assert ray.startswith("2.60.")
    for where, image in _images().items():
        found = IMAGE.search(image)
        assert found, f"{where}: {image}"
        assert found["ray"] == ray, where
        assert found["version"] == project()["project"]["version"], where
    for file in KUBERAY:
        assert check_kuberay(load(file)).cluster.rayVersion == ray, file.name


def test_torch_is_pinned_without_a_build() -> None:
    """`2.13.0+cpu` in constraints.txt would keep the CUDA image from being built."""
    assert "+" not in pinned("torch")


def test_python_is_one_that_the_project_supports() -> None:
    """In the image, to the patch; in pyproject.toml, the range."""
    found = re.search(r"^ARG PYTHON_VERSION=3\.(\d+)\.\d+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert found
    assert project()["project"]["requires-python"] == ">=3.11,<3.13"
    assert 11 <= int(found[1]) < 13


def test_ports_are_the_same_everywhere() -> None:
    """6379 to join, 8265 to submit, 8000 to predict, 6006 for curves, 8080 for metrics."""
    head = load_compose(COMPOSE)["services"]["head"]
    assert {"--port=6379", "--dashboard-port=8265", "--metrics-export-port=8080"} <= set(head["command"])
    assert {port.rpartition(":")[2] for port in head["ports"]} == {"6006", "8000", "8265"}
    for file in KUBERAY:
        head_pod, *worker_pods = pods(check_kuberay(load(file)))
        ports = {port["name"]: port["containerPort"] for port in head_pod["containers"][0]["ports"]}
        assert ports == {"gcs-server": 6379, "dashboard": 8265, "serve": 8000, "metrics": 8080}
        for pod in worker_pods:
            assert {port["containerPort"] for port in pod["containers"][0]["ports"]} == {8000, 8080}
    exposed = re.search(r"^EXPOSE (.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert exposed
    assert exposed[1].split() == ["6006", "8000", "6379", "8265"]


def test_prometheus_asks_every_node_where_it_answers() -> None:
    """The services of the compose file, at the port that they are started with."""
    services = load_compose(COMPOSE)["services"]
    asked = load(ROOT / "cluster" / "monitoring" / "prometheus.yml")["scrape_configs"][0]["dns_sd_configs"][0]
    assert asked["type"] == "A"
    assert set(asked["names"]) == {name for name in services if "ray" in services[name]["command"]}
    for name in asked["names"]:
        assert f"--metrics-export-port={asked['port']}" in services[name]["command"]


def test_the_guide_names_files_that_are_there() -> None:
    """cluster/README.md: every link, and every file of ours in a command."""
    text = (ROOT / "cluster" / "README.md").read_text()
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", text):
        assert (ROOT / "cluster" / target).exists(), target
    named = set(re.findall(r"\bcluster/[\w./-]+\.yaml\b", text))
    assert len(named) >= 8
    for file in named:
        assert (ROOT / file).is_file(), file
    for anchor in re.findall(r"\]\(#([^)]+)\)", text):
        headings = [re.sub(r"[^\w -]", "", line.lstrip("# ").lower()) for line in text.splitlines() if line[:1] == "#"]
        assert anchor in [heading.replace(" ", "-") for heading in headings], anchor


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_is_latest_and_nothing_is_secret(file: Path) -> None:
    """A tag that moves is no version, and a token in a file is no secret."""
    text = file.read_text()
    assert ":latest" not in text
    found = _SECRET.search(text)
    assert found is None, f"{file}: {found and found[0]}"


@pytest.mark.parametrize(
    "text",
    ["RAY_AUTH_TOKEN=" + "0f" * 32, "password: correct-horse", "-----BEGIN RSA PRIVATE KEY", "auth_token: swordfish1"],
)
def test_a_secret_would_be_found(text: str) -> None:
    """The search is able to find one."""
    assert _SECRET.search(text)


def test_every_yaml_file_is_tidy(tmp_path: Path) -> None:
    """yamllint, every warning an error; and it does find what is wrong with a damaged one."""
    assert _yamllint("docker-compose.yml", "cluster", "configs") == (0, "")
    damaged = tmp_path / "twice.yaml"
    damaged.write_text("a: 1\na: 2\n")
    code, said = _yamllint(str(damaged))
    assert code == 1
    assert "duplication" in said


def _yamllint(*paths: str) -> tuple[int, str]:
    program = Path(sys.executable).with_name("yamllint")
    command = [program, "--strict", "--format=parsable", "--config-file=.yamllint", *paths]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr
