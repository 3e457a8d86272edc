"""The files that bring a cluster up, read the way their tools read them, for the tests that check them."""

import json
import re
import tomllib
from copy import deepcopy
from pathlib import Path
from typing import Any

import compose_spec
import kubernetes_validate
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster.kuberay import KINDS, Resource

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
OVERLAYS = sorted((ROOT / "cluster").glob("compose.*.yaml"))
KUBERNETES = sorted((ROOT / "cluster" / "k8s").glob("*.yaml"))
KUBERAY = [file for file in KUBERNETES if file.name.startswith("ray")]
LAUNCHER = sorted((ROOT / "cluster" / "launcher").glob("*.yaml"))
KUBERNETES_VERSION = "1.32"

Plain = dict[str, Any]


def load(file: Path) -> Plain:
    """A YAML file as plain data, its anchors and merges resolved."""
    plain = yaml.safe_load(file.read_text())
    assert isinstance(plain, dict), file
    return plain


def load_compose(file: Path, environment: dict[str, str] | None = None) -> Plain:
    """A compose file with its variables filled in, as `docker compose config` does it."""
    found = environment or {}
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda match: found.get(match[1]) or match[2], file.read_text())
    assert "${" not in text, f"{file}: a variable without a default"
    plain = yaml.safe_load(text)
    assert isinstance(plain, dict)
    return plain


def check_compose(plain: Plain) -> None:
    """Against the Compose Specification; raises ValueError."""
    compose_spec.PyCompose.from_json(json.dumps(plain))


def overlaid(base: Plain, overlay: Plain) -> Plain:
    """What `docker compose -f base -f overlay` makes of two files: mappings merge, everything else is replaced."""
    merged = deepcopy(base)
    for key, value in overlay.items():
        known = merged.get(key)
        merged[key] = overlaid(known, value) if isinstance(known, dict) and isinstance(value, dict) else deepcopy(value)
    return merged


def check_kuberay(plain: Plain) -> Resource:
    """Against the operator's fields, and each pod against Kubernetes' schema."""
    resource = KINDS[plain["kind"]].model_validate(plain)
    for pod in pods(resource):
        check_kubernetes({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod})
    return resource


def check_kubernetes(plain: Plain) -> None:
    """Against Kubernetes' own schema, unknown fields refused; raises kubernetes_validate.ValidationError."""
    kubernetes_validate.validate(plain, KUBERNETES_VERSION, strict=True)


def pods(resource: Resource) -> list[Plain]:
    """The pods' specifications: the head's first."""
    groups = [resource.cluster.headGroupSpec, *resource.cluster.workerGroupSpecs]
    return [group.template["spec"] for group in groups]


def check_launcher(plain: Plain) -> Plain:
    """As `ray up` reads it: filled with the provider's defaults, then against Ray's own schema."""
    prepared = prepare_config(deepcopy(plain))
    validate_config(prepared)
    assert isinstance(prepared, dict)
    return prepared


def pinned(package: str) -> str:
    """The version of a package in constraints.txt."""
    found = re.search(rf"^{re.escape(package)}==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found, f"constraints.txt pins no {package}"
    return found[1]


def project() -> Plain:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())
