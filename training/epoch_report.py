"""The end of an epoch: one report to Ray with one checkpoint, the rule that stops, the history that explains."""

import csv
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from classifier.errors import ConfigError
from training.checkpoint import CKPT, METRICS, move_checkpoint
from training.config import CallbacksConfig
from training.module import ClassifierModule
from training.stopping import NoImprovementStopper, best_of, has_diverged, score

HISTORY_COLUMNS = ("epoch", "train_loss", "val_loss", "val_acc", "lr", "seconds", "computing_s", "pictures_per_s")
_TRIAL = "run"


class EpochReport(lightning.Callback):
    """Reports each epoch once, from every worker.

    Its state travels in the checkpoint, so a run that goes on knows its history, and patience is not reset.
    """

    def __init__(
        self,
        rules: CallbacksConfig,
        *,
        report: Callable[[dict[str, Any], Path | None], None],
        tell: Callable[[dict[str, Any]], None],
        keep: Callable[..., Any],
        scratch: Path,
        history_file: Path,
        pictures: int,
    ) -> None:
        self._rules = rules
        stopping = rules.early_stopping
        self._stopper = (
            NoImprovementStopper(
                monitor=stopping.monitor, mode=stopping.mode, patience=stopping.patience, min_delta=stopping.min_delta
            )
            if stopping
            else None
        )
        self._report, self._tell, self._keep = report, tell, keep
        self._scratch = scratch  # in the run's storage: a checkpoint is moved from there, not copied
        self._history_file, self._pictures = history_file, pictures
        self._history: list[dict[str, Any]] = []
        self._started_s = 0.0
        self._trained_s = 0.0
        self._computed_s = 0.0  # of the epoch, in steps and validation batches; beside a GPU only what the host took
        self._batch_began_s = 0.0
        self._has_begun = False

    @property
    def epoch(self) -> int:
        """The epoch under way, counted over resumes; Lightning's own count lags behind after one."""
        return len(self._history)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {"history": self._history, "stopper": self._stopper.state() if self._stopper else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._history = list(state_dict["history"])
        if self._stopper and state_dict["stopper"]:
            self._stopper.load_state(state_dict["stopper"])

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock."""
        self._started_s, self._computed_s = time.monotonic(), 0.0
        self._has_begun = False

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The first batch is there: training begins."""
        if not self._has_begun and trainer.is_global_zero:
            # who was ended just after the last epoch's checkpoint could not tell of it any more
            last = self._event() if self._history else None
            self._tell({"kind": "started", "world_size": trainer.world_size, "epoch": self.epoch, "last": last})
        self._has_begun = True
        self._batch_began_s = time.monotonic()

    def on_train_batch_end(self, *_: Any) -> None:
        """Forward, backward, optimizer and average are done."""
        self._computed_s += time.monotonic() - self._batch_began_s

    def on_validation_batch_start(self, *_: Any) -> None:
        """A batch is there."""
        self._batch_began_s = time.monotonic()

    def on_validation_batch_end(self, *_: Any) -> None:
        """Its forward is done."""
        self._computed_s += time.monotonic() - self._batch_began_s

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Training is over for this epoch."""
        self._trained_s = time.monotonic() - self._started_s

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Report, keep a checkpoint, decide whether to stop.

        Raises:
            ConfigError: the network gives no numbers, and never did at an epoch's end; the same in every worker.
        """
        assert isinstance(pl_module, ClassifierModule)
        row: dict[str, Any] = {"epoch": self.epoch, **pl_module.take_epoch_metrics()}
        row["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        row["seconds"] = round(time.monotonic() - self._started_s, 3)
        row["computing_s"] = round(self._computed_s, 3)
        row["pictures_per_s"] = round(self._pictures / max(1e-9, self._trained_s), 1)
        self._history.append(row)
        if all(has_diverged(each) for each in self._history):  # weights that are not numbers stay so
            raise ConfigError(f"the loss is not a number after epoch {row['epoch']}; lower model.lr")
        if self._stopper and self._stopper(_TRIAL, row):
            trainer.should_stop = True
        rule = self._rules.model_checkpoint
        metrics = {**row, "score": score(row, monitor=rule.monitor, mode=rule.mode)}
        self._keep(lambda: self._save(trainer, metrics), what=f"checkpoint of epoch {row['epoch']}")
        if trainer.is_global_zero:
            file = self._history_file
            self._keep(lambda: _write_history(file, self._history), what=f"file {file.name}")
            if trainer.logger is not None:
                curves = {key: row[key] for key in ("train_loss", "val_loss", "val_acc", "lr")}
                trainer.logger.log_metrics(curves, step=row["epoch"])
        self._report(metrics, self._scratch if trainer.is_global_zero else None)
        self._started_s, self._computed_s = time.monotonic(), 0.0
        if trainer.is_global_zero:
            self._tell(self._event())

    def _event(self) -> dict[str, Any]:
        """What is told of the latest epoch."""
        rule = self._rules.model_checkpoint
        best = best_of(self._history, monitor=rule.monitor, mode=rule.mode)
        return {"kind": "epoch", **self._history[-1], "best_epoch": best["epoch"], "best": best[rule.monitor]}

    def _save(self, trainer: lightning.Trainer, metrics: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            self._scratch.mkdir(exist_ok=True)
            (self._scratch / METRICS).write_text(json.dumps(metrics))
        # every rank calls it (it ends with a barrier), the first one writes
        trainer.save_checkpoint(self._scratch / CKPT)


class DirectCheckpointIO(TorchCheckpointIO):
    """Writes where it is told to. Lightning's own goes by way of /tmp, where a killed worker leaves the file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; what is wrong with the disk is an OSError, which torch's own writer hides."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).write_bytes(content.getbuffer())


def report(metrics: dict[str, Any], checkpoint: Path | None, *, keep: Callable[..., Any]) -> None:
    """Report an epoch to Ray Train; a checkpoint is moved to its place first.

    Args:
        metrics: plain numbers.
        checkpoint: a folder in the run's storage with a whole checkpoint; None on every worker but the first.
        keep: `failures.patiently`: the storage may be out of reach for a moment.
    """
    from ray import train

    storage = train.get_context().get_storage()

    def upload(_: train.Checkpoint, name: str) -> train.Checkpoint:
        assert checkpoint is not None
        target = Path(storage.experiment_fs_path) / name
        keep(lambda: move_checkpoint(checkpoint, target), what=f"checkpoint of epoch {metrics['epoch']}")
        return train.Checkpoint(str(target), filesystem=storage.storage_filesystem)

    made = train.Checkpoint.from_directory(checkpoint) if checkpoint else None
    train.report(metrics, checkpoint=made, checkpoint_upload_fn=upload)


def _write_history(file: Path, history: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY_COLUMNS)
    writer.writeheader()
    writer.writerows(history)
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(".csv.new")
    scratch.write_text(text.getvalue())
    scratch.replace(file)
