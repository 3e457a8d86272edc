"""A run's checkpoints: which there are, which of them are kept, which is best."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from training.run_folder import RunFolder
from training.stopping import rank_key

CKPT, METRICS, INDEX = "last.ckpt", "metrics.json", "index.json"


class Candidate(NamedTuple):
    """A whole checkpoint."""

    metrics: dict[str, Any]
    file: Path


def move_checkpoint(source: Path, target: Path) -> None:
    """Move a checkpoint so that what can be seen of it is whole: its metrics, which `find_candidates` asks for, last.

    Ray copies the files of a folder side by side: killed in between, metrics may lie beside half a network.
    """
    target.mkdir(exist_ok=True)
    for name in (CKPT, METRICS):
        if (source / name).exists():  # else an earlier try got this far
            (source / name).replace(target / name)


def find_candidates(folder: RunFolder) -> list[Candidate]:
    """Every whole checkpoint that a run has, one for each epoch and in their order; a torn one is passed over."""
    found = [
        Candidate(metrics, folder.checkpoints / name) for name, metrics in _read(folder.checkpoints / INDEX).items()
    ]
    for attempt in folder.attempts():
        for file in attempt.glob(f"checkpoint_*/{METRICS}"):
            found.append(Candidate(_read(file), file.parent / CKPT))
    whole = [candidate for candidate in found if "epoch" in candidate.metrics and candidate.file.is_file()]
    of_epoch = {
        candidate.metrics["epoch"]: candidate for candidate in whole
    }  # the latest attempt's, if it was repeated
    return [of_epoch[epoch] for epoch in sorted(of_epoch)]


def keep_checkpoints(folder: RunFolder, *, monitor: str, mode: str, save_top_k: int) -> None:
    """Move the best checkpoints and the latest to `checkpoints/`, under names that say what they are.

    Killed at any moment, every checkpoint is still in one of the two places.
    """
    candidates = find_candidates(folder)
    if not candidates:
        return
    ranked = sorted(candidates, key=lambda each: rank_key(each.metrics, monitor=monitor, mode=mode), reverse=True)
    chosen = {checkpoint_name(each.metrics, monitor=monitor): each for each in ranked[:save_top_k]} | {
        CKPT: candidates[-1]
    }
    folder.checkpoints.mkdir(exist_ok=True)
    for name, candidate in chosen.items():
        target = folder.checkpoints / name
        if candidate.file != target:
            scratch = folder.checkpoints / f".{name}.new"
            scratch.unlink(missing_ok=True)
            try:
                scratch.hardlink_to(candidate.file)
            except OSError:  # a file system without hard links
                shutil.copyfile(candidate.file, scratch)
            scratch.replace(target)
            scratch.unlink(missing_ok=True)  # of two links to one file, a rename leaves both
    scratch = folder.checkpoints / f".{INDEX}.new"
    scratch.write_text(json.dumps({name: candidate.metrics for name, candidate in chosen.items()}, indent=2) + "\n")
    scratch.replace(folder.checkpoints / INDEX)
    for file in folder.checkpoints.glob("*.ckpt"):
        if file.name not in chosen:
            file.unlink()
    shutil.rmtree(folder.ray, ignore_errors=True)


def best_candidate(candidates: list[Candidate], *, monitor: str, mode: str) -> Candidate:
    """The checkpoint that becomes the model."""
    return max(candidates, key=lambda candidate: rank_key(candidate.metrics, monitor=monitor, mode=mode))


def checkpoint_name(metrics: dict[str, Any], *, monitor: str) -> str:
    """`epoch=3-val_acc=0.953.ckpt`."""
    return f"epoch={metrics['epoch']}-{monitor}={metrics[monitor]:.3f}.ckpt"


def _read(file: Path) -> dict[str, Any]:
    try:
        plain = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return plain if isinstance(plain, dict) else {}
