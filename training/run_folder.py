"""The model folder while it is being made: what lies where, and what is in reach after an interruption."""

import contextlib
import datetime
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from classifier.errors import OutputError
from cluster.bucket import Bucket, open_place
from cluster.claim import claimed
from cluster.session import check_kept


@dataclass(frozen=True)
class RunFolder:
    """`models/EXAMS/default/2026-11-22/14-03-55`."""

    path: Path  # absolute

    @property
    def name(self) -> str:
        """What the model calls itself: `EXAMS/default/2026-11-22/14-03-55`."""
        return "/".join(self.path.parts[-4:])

    @property
    def ray(self) -> Path:
        """Where Ray Train and Tune keep their state while the run lasts."""
        return self.path / ".ray"

    @property
    def checkpoints(self) -> Path:
        """`epoch=3-val_acc=0.953.ckpt`, `last.ckpt`."""
        return self.path / "checkpoints"

    @property
    def train_info(self) -> Path:
        """Reports."""
        return self.path / "train_info"

    @property
    def tensorboard(self) -> Path:
        """Curves."""
        return self.path / "tensorboard"

    @property
    def log(self) -> Path:
        """Everything that the terminal did not show."""
        return self.path / "train.log"

    def attempts(self) -> list[Path]:
        """The Train runs that this folder holds, oldest first."""
        return sorted(self.ray.glob("train-*")) if self.ray.is_dir() else []


def check_writable(place: str | Path, *, key: str) -> None:
    """Find out early whether a folder can be made or written, or a bucket reached; makes nothing.

    Raises:
        OutputError: a folder that cannot be written; names the setting.
        ConfigError: a URL that cannot be opened or listed.
    """
    folder = open_place(place, key=key)
    if isinstance(folder, Bucket):
        folder.check_reachable(key=key)
        return
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{key}={folder}: {there} cannot be written; set {key} to a folder that can")
    check_kept(folder, key=key)


def make_run_folder(models: Path, *, dataset: str, category: str, now: datetime.datetime) -> RunFolder:
    """Make the folder of a new run; of two runs in the same second the later one waits for the next name.

    Raises:
        OutputError: it cannot be made.
    """
    while True:
        path = (models / dataset / category / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}").absolute()
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            now += datetime.timedelta(seconds=1)
            continue
        except OSError as error:
            raise OutputError(
                f"{path} cannot be made: {error.strerror}; set paths.models to a folder that can"
            ) from error
        return RunFolder(path)


@contextlib.contextmanager
def held(folder: RunFolder) -> Iterator[None]:
    """Keep other commands out of a run's folder: two would write each other's files.

    Raises:
        OutputError: another command is training there, or it cannot be written.
    """
    taken = f"{folder.path}: another command is training there; wait for it, or stop it"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(claimed(folder.log, taken=taken))  # the log: no file more in the model folder
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"{folder.path} cannot be written: {error.strerror}") from error
        yield


def remove_run_folder(folder: RunFolder, *, models: Path) -> None:
    """Take back a folder that holds nothing of use, and those of its parents that hold nothing else."""
    shutil.rmtree(folder.path, ignore_errors=True)
    for parent in folder.path.parents:
        if parent == models.absolute() or not parent.is_relative_to(models.absolute()):
            return
        try:
            parent.rmdir()
        except OSError:
            return
