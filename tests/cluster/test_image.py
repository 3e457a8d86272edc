"""The Dockerfile: hadolint's word, what is in the image and what is not, and layers that an edit does not rebuild."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.deployment import ROOT, project

DOCKERFILE = ROOT / "Dockerfile"
PACKAGES = ("classifier", "cluster", "configs", "training", "serving")


def _hadolint(file: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("hadolint")
    return subprocess.run([program, "--no-color", file], capture_output=True, text=True, timeout=60, check=False)


def _instructions() -> list[str]:
    """The Dockerfile's instructions, comments dropped and continued lines joined."""
    kept = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    return [line for line in "\n".join(kept).replace("\\\n", " ").splitlines() if line.strip()]


def _at(pattern: str) -> int:
    return next(number for number, line in enumerate(_instructions()) if re.search(pattern, line))


def test_hadolint_has_nothing_to_say() -> None:
    """Not even in passing."""
    found = _hadolint(DOCKERFILE)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize(
    ("before", "after", "rule"),
    [
        ("USER 1000:1000", "USER root", "DL3002"),
        ("FROM python:${PYTHON_VERSION}-slim-bookworm", "FROM python:latest", "DL3007"),
        ("--no-install-recommends ", "", "DL3015"),
        ('CMD ["python", "-m", "training.run", "--help"]', "CMD python -m training.run", "DL3025"),
    ],
)
def test_hadolint_refuses_a_damaged_one(tmp_path: Path, before: str, after: str, rule: str) -> None:
    """The check is able to fail."""
    text = DOCKERFILE.read_text()
    assert before in text
    damaged = tmp_path / "Dockerfile"
    damaged.write_text(text.replace(before, after))
    found = _hadolint(damaged)
    assert found.returncode != 0
    assert rule in found.stdout


def test_an_edit_of_the_code_rebuilds_no_dependency() -> None:
    """Versions first, code last; torch alone in its layer."""
    assert _at("COPY constraints.txt") < _at("pip install .* torch") < _at("tomllib") < _at("COPY .* classifier")
    code = [re.split(r"\s+", line)[-2] for line in _instructions() if line.startswith("COPY --chown")]
    assert sorted(code) == sorted(PACKAGES)


def test_every_pip_install_obeys_the_pinned_versions() -> None:
    """Otherwise tomorrow's image is another one."""
    installs = [part for line in _instructions() for part in line.split("&&") if "pip install" in part]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in install for install in installs)


def test_what_the_dockerfile_lists_is_what_the_project_depends_on() -> None:
    """Its one-liner, run here, prints the project's dependencies."""
    command = next(line for line in _instructions() if "tomllib" in line)
    script = re.search(r'python -c "(.+?)"\s', command)
    assert script
    printed = subprocess.run(
        [sys.executable, "-c", script[1]], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    ).stdout
    assert printed.split("\n")[:-1] == project()["project"]["dependencies"]


def test_pictures_models_and_secrets_stay_out_of_the_build() -> None:
    """Everything is left out but what the Dockerfile copies."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == {*PACKAGES, "constraints.txt", "pyproject.toml"}


def test_the_image_runs_as_nobody_in_particular() -> None:
    """A number, which Kubernetes can check, and the same one as in the compose file's default."""
    users = [line.split()[1] for line in _instructions() if line.startswith("USER")]
    assert users == ["1000:1000"]
