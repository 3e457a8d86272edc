"""What each training worker does, from its first line to its last."""

import contextlib
import functools
import importlib.machinery
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from classifier.memory import keep_freed_memory
from classifier.preprocess import PreprocessSpec
from cluster.sizing import physical_cores, threads_here
from training.config import TrainConfig

if TYPE_CHECKING:
    from classifier.network import Network

# Pictures on which the ONNX form of the network must give the same answers.
_SAMPLES = 32


@dataclass(frozen=True)
class Job:
    """Everything that a run's workers are told; plain data, so that it crosses processes and machines."""

    config: dict[str, Any]  # a TrainConfig, dumped
    spec: dict[str, Any]  # a PreprocessSpec, dumped
    labels: tuple[str, ...]
    codes: dict[str, np.ndarray]  # split -> int64 [N], the class of each picture in the split's order
    test_paths: list[str]  # of each picture of the test split, relative to the dataset
    dataset: dict[str, Any]  # name, fingerprint, counts
    folder: Path
    run: str  # what the dashboard calls it
    attempt: str  # name of the Train run, one of those that the run takes
    threads: int
    feed: Any  # handle of the Feed actor


def train_loop(job: Job, *, attempt: str, start: str | None) -> None:
    """Train, stop by the rule, then score the test split with the best weights and write the model folder.

    Args:
        job: what to do.
        attempt: the same for all workers that were started together.
        start: the checkpoint file that they go on from.
    """
    keep_freed_memory()
    import torch

    with without_scipy_signal():
        import lightning.pytorch as lightning
    import ray
    from ray import train
    from ray.train.collective import broadcast_from_rank_zero
    from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment
    from ray.train.torch import get_device

    from training.batches import EvalBatches, Pixels, StopRequested, TrainBatches, until_stopped
    from training.epoch_report import DirectCheckpointIO, EpochReport, report
    from training.failures import patiently
    from training.module import ClassifierModule
    from training.precision import keep_slow_in_float32, lightning_precision
    from training.run_folder import RunFolder
    from training.watch import Watch

    config = TrainConfig.model_validate(job.config)
    spec = PreprocessSpec.model_validate(job.spec)
    context = train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(threads_here(job.threads, workers=context.get_local_world_size(), cores=physical_cores()))
    folder = RunFolder(job.folder)
    on_gpu = torch.cuda.is_available() and config.trainer.device != "cpu"
    device = get_device()
    precision = lightning_precision(config.trainer.precision, on_gpu=on_gpu)
    network = _network(job, config, spec, rank=rank)
    if precision == "bf16-mixed" and not on_gpu:
        keep_slow_in_float32(network)
    place = {"rank": rank, "world_size": world_size, "batch_size": config.data.batch_size, "pin": on_gpu}

    def tick(epoch: int, step: int, steps: int) -> bool:
        go_on: bool = ray.get(job.feed.tick.remote(attempt, rank, epoch, step, steps))
        return go_on

    epochs: EpochReport
    batches = TrainBatches(
        Pixels(job.feed, "train", pin=on_gpu),
        job.codes["train"],
        seed=config.seed,
        epoch=lambda: epochs.epoch,
        tick=tick,
        **place,
    )
    validation_pixels = Pixels(job.feed, "val", pin=on_gpu)
    validation = EvalBatches(validation_pixels, job.codes["val"], **place)
    module = ClassifierModule(network, config, steps_per_epoch=len(batches))

    def tell(event: dict[str, Any]) -> None:
        job.feed.post.remote(event)

    keep = functools.partial(
        patiently, wait_s=config.trainer.storage_wait_s, tell=lambda text: tell({"kind": "note", "text": text})
    )
    epochs = EpochReport(
        config.callbacks,
        report=functools.partial(report, keep=keep),
        tell=tell,
        keep=keep,
        scratch=folder.ray / f"checkpoint-{attempt}",  # a name of its own: a worker that was given up may still write
        history_file=folder.train_info / "history.csv",
        pictures=len(job.codes["train"]),
    )
    watch = Watch(
        epoch=lambda: epochs.epoch,
        tell=lambda doing, since_s: job.feed.beat.remote(attempt, rank, doing, since_s),
        hang_after_s=config.trainer.hang_after_s,
    )
    trainer = lightning.Trainer(
        max_epochs=config.trainer.max_epochs,
        accelerator="gpu" if on_gpu else "cpu",
        devices=1 if world_size == 1 else "auto",
        # buffers are averaged once an epoch by the module, instead of sent before every step
        strategy=RayDDPStrategy(broadcast_buffers=False) if world_size > 1 else "auto",
        plugins=[DirectCheckpointIO(), *([RayLightningEnvironment()] if world_size > 1 else [])],
        precision=precision,
        logger=_logger(config, folder) if rank == 0 else False,
        callbacks=[*_averaging(config, device), watch, epochs],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=1_000_000,
    )
    with watch, contextlib.suppress(StopRequested):
        trainer.fit(
            module,
            train_dataloaders=batches,
            val_dataloaders=validation,
            ckpt_path=start,
            weights_only=True,
        )
        from training.finish import finish

        test = EvalBatches(Pixels(job.feed, "test", pin=on_gpu), job.codes["test"], **place)
        samples, _ = validation_pixels.rows(np.arange(min(_SAMPLES, len(job.codes["val"]))))
        finish(
            job,
            config,
            spec,
            module.network.to(device),  # Lightning leaves it on the CPU
            watch.follow(until_stopped(test, lambda step, steps: tick(epochs.epoch, step, steps))),
            folder,
            rank=rank,
            world_size=world_size,
            samples=samples.numpy(),
            tell=tell,
            agree=broadcast_from_rank_zero,
            writes=watch.writes,
        )


@contextlib.contextmanager
def without_scipy_signal() -> Iterator[None]:
    """torchmetrics, which Lightning imports, imports scipy.signal to give a window an old name: a second of every start.

    It finds a stand-in that has the name already.
    """
    name = "scipy.signal"
    if name in sys.modules:
        yield
        return
    stand_in = types.ModuleType(name)
    stand_in.__spec__ = importlib.machinery.ModuleSpec(name, None)
    stand_in.hamming = None  # type: ignore[attr-defined]
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        del sys.modules[name]


def _network(job: Job, config: TrainConfig, spec: PreprocessSpec, *, rank: int) -> "Network":
    """The network with its new head, the same in every worker."""
    import lightning.pytorch as lightning
    import torch

    from classifier.network import load_network

    lightning.seed_everything(config.seed, verbose=False)
    network = load_network(config.model.model_name, labels=job.labels, spec=spec, config=config.model.config)
    _freeze_unused(network, spec)
    torch.manual_seed(config.seed + rank)  # dropout may differ between workers; the new head may not
    if config.trainer.compile:
        network.compile()  # in place: the names of the weights stay as they are
    return network


def _freeze_unused(network: Any, spec: PreprocessSpec) -> None:
    """Take parameters that no loss reaches (a mask token, a pooler) out of training: DDP would wait for them."""
    import torch

    network.eval()  # dropped layers must not look unused
    pixels = torch.zeros(1, 3, spec.height_px, spec.width_px, dtype=torch.uint8)
    network(pixels).sum().backward()
    for parameter in network.parameters():
        if parameter.grad is None:
            parameter.requires_grad_(requires_grad=False)
        parameter.grad = None
    network.train()


def _averaging(config: TrainConfig, device: Any) -> list[Any]:
    if config.model.average_decay is None:
        return []
    from training.averaging import WarmedUpAverage

    return [WarmedUpAverage(decay=config.model.average_decay, device=device)]


def _logger(config: TrainConfig, folder: Any) -> Any:
    if not config.logger.tensorboard:
        return False
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(save_dir=folder.path, name="tensorboard", version="")
