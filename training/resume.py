"""What must be as it was for `resume=` to go on with a run."""

from typing import Any

import yaml

from classifier.errors import ConfigError
from classifier.model_folder import MANIFEST
from training.catalog import INFO, Catalog
from training.checkpoint import find_candidates
from training.config import TrainConfig
from training.run_folder import RunFolder

# Without the run's weights where the split is another: they know pictures that are then tested with.
_ANEW = "python -m training.run ds="


def check_resumable(config: TrainConfig, folder: RunFolder) -> None:
    """Find out, before anything is started or written, whether a run can go on.

    Raises:
        ConfigError: it holds a model and no checkpoint; or the split would be another one.
    """
    if not find_candidates(folder):
        if (folder.path / MANIFEST).is_file():  # it would be trained from scratch, and written over
            raise ConfigError(
                f"resume={config.resume}: it holds a model, but no checkpoint to go on from; begin a new run from its "
                f"weights with {_ANEW}{config.ds} model.model_name={config.resume}"
            )
        return
    then = _read(folder, "config.yaml")
    shares = (then.get("data") or {}).get("split")
    now = config.data.split.model_dump()
    changed = [f"seed={config.seed} (then {then['seed']})"] if then.get("seed", config.seed) != config.seed else []
    if shares is not None and shares != now:
        changed += [
            f"data.split.{name}={now[name]} (then {shares.get(name)})" for name in now if now[name] != shares.get(name)
        ]
    if changed:
        raise ConfigError(
            f"resume={config.resume} with {', '.join(changed)}: pictures that were trained on would be tested with; leave "
            f"it as it was, or begin a new run with {_ANEW}{config.ds}"
        )


def check_dataset(config: TrainConfig, folder: RunFolder, catalog: Catalog) -> None:
    """Find out whether the pictures and classes are those that the run was trained on.

    A run that kept no record of them, or has no checkpoint yet, goes on with any.

    Raises:
        ConfigError: they are others: one more picture, and those that were trained on are tested with.
    """
    then = _read(folder, f"train_info/{INFO}")
    if then.get("fingerprint", catalog.fingerprint) == catalog.fingerprint or not find_candidates(folder):
        return
    labels = set((then.get("class_map") or {}).values())
    gone, new = sorted(labels - set(catalog.labels)), sorted(set(catalog.labels) - labels)
    parts = [f"{what} {', '.join(names)}" for what, names in (("without", gone), ("with", new)) if labels and names]
    what = f"other classes ({'; '.join(parts)})" if parts else "other pictures"
    raise ConfigError(
        f"resume={config.resume}: the dataset {config.ds} has {what} than when the run began, and the split is another; "
        f"put it back as it was, or begin a new run with {_ANEW}{config.ds}"
    )


def _read(folder: RunFolder, name: str) -> dict[str, Any]:
    try:
        plain = yaml.safe_load((folder.path / name).read_text())
    except (OSError, yaml.YAMLError):
        return {}
    return plain if isinstance(plain, dict) else {}
