"""A project folder as a user has it, and the command as a user types it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.training.digits import write_few_digits

REPOSITORY = Path(__file__).resolve().parents[2]
_TIMEOUT_S = 240


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    exit_code: int
    output: str

    @property
    def model(self) -> Path:
        """The folder that the last line names, relative to the project."""
        line = next(line for line in self.output.splitlines() if line.startswith("Your model has been saved"))
        return Path(line.removeprefix("Your model has been saved in the ").removesuffix(" directory"))


@dataclass(frozen=True)
class Project:
    """A folder with `data/raw_data/DIGITS`, and a Ray to run on (None: the command starts its own)."""

    folder: Path
    ray_address: str | None

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """`python -m training.run ...` in the project's folder."""
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
        environment.pop("RAY_ADDRESS", None)
        if self.ray_address:
            environment["RAY_ADDRESS"] = self.ray_address
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "training.run", *arguments],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def train(self, *arguments: str) -> Ended:
        """Run a training command to its end."""
        with self.start(*arguments) as process:
            try:
                output, _ = process.communicate(timeout=_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                output, _ = process.communicate()
                pytest.fail(f"the command did not end within {_TIMEOUT_S} s; it printed:\n{output}")
        return Ended(process.returncode, output)

    def metrics(self, model: Path) -> dict[str, Any]:
        """`train_info/metrics.json` of a model."""
        plain: dict[str, Any] = json.loads((self.folder / model / "train_info/metrics.json").read_text())
        return plain


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Three digits, 40 pictures each; every command starts a Ray of its own, as on a laptop."""
    folder = tmp_path_factory.mktemp("digits-project")
    write_few_digits(folder / "data/raw_data/DIGITS", classes=3, each=40)
    return Project(folder, ray_address=None)


@pytest.fixture(scope="session")
def joining(project: Project, ray_once: None) -> Project:
    """The same folder, and commands that join the suite's Ray."""
    import ray

    return Project(project.folder, ray.get_runtime_context().gcs_address)
