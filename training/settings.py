"""The command line of a training run: new, or going on with an earlier one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from classifier.errors import ConfigError
from cluster.configuration import compose
from training.config import TrainConfig
from training.run_folder import RunFolder

_FILE = "config.yaml"


def read_settings(arguments: Sequence[str]) -> TrainConfig:
    """Compose and check the settings; with `resume=FOLDER`, what is not on the command line is as it was in that run.

    Raises:
        ConfigError: see `cluster.configuration.compose`; or there is no dataset named, or nothing to resume.
    """
    resume = next(
        (Path(value) for key, _, value in (each.partition("=") for each in arguments) if key == "resume"), None
    )
    base = None if resume is None else _read(resume)
    return compose(TrainConfig, name="train", overrides=arguments, base=base)


def write_settings(folder: RunFolder, config: TrainConfig) -> None:
    """Keep the settings: `resume=` starts from them, and a reader sees what was trained how."""
    plain = config.model_dump(mode="json") | {"resume": None}
    (folder.path / _FILE).write_text(yaml.safe_dump(plain, sort_keys=False))


def _read(folder: Path) -> dict[str, Any]:
    expected = "expected the folder of a training run, models/EXAMS/default/DATE/TIME"
    try:
        plain = yaml.safe_load((folder / _FILE).read_text())
    except FileNotFoundError as error:
        found = f"no {_FILE} in it" if folder.is_dir() else "no such folder"
        raise ConfigError(f"resume={folder}: {found}; {expected}, not a dataset's name") from error
    except OSError as error:
        raise ConfigError(f"resume={folder}: {_FILE}: {error.strerror}; {expected}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"resume={folder}: {_FILE} is damaged; {expected}") from error
    if not isinstance(plain, dict):
        raise ConfigError(f"resume={folder}: {_FILE} holds no settings; {expected}")
    return plain
