"""After the last epoch: the best weights, the test split once, the model folder, the report."""

import datetime
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from classifier.errors import BadModelFolder
from classifier.model_folder import OnnxReport, publish, read_manifest, write_model
from classifier.network import Network
from classifier.onnx_export import export_onnx
from classifier.preprocess import PreprocessSpec
from training.batches import Batch
from training.checkpoint import Candidate, best_candidate, find_candidates
from training.config import TrainConfig
from training.loop import Job
from training.run_folder import RunFolder


def finish(
    job: Job,
    config: TrainConfig,
    spec: PreprocessSpec,
    network: Network,
    test: Iterable[Batch],
    folder: RunFolder,
    *,
    rank: int,
    world_size: int,
    samples: np.ndarray,
    tell: Callable[[dict[str, Any]], None],
    agree: Callable[[Candidate | None], Candidate | None],
    writes: Callable[[], None],
) -> None:
    """Score the test split with the best epoch's weights; the first worker writes what comes of it.

    Args:
        job: what the run is.
        config: its settings.
        spec: the model's preprocessing.
        network: the one that was trained.
        test: this worker's part of the test split.
        folder: of the run.
        rank: which worker this is.
        world_size: how many there are.
        samples: uint8 [n,3,H,W], pictures on which `model.onnx` must give the same answers.
        tell: posts an event for the user.
        agree: gives every worker what the first one has.
        writes: is called before the model is written.

    Raises:
        StopRequested: `test` raised it.
    """
    # the first worker looks, because not every machine sees a new file at once
    best = agree(_best(folder, config) if rank == 0 else None)
    assert best is not None
    load_weights(network, best.file)
    if rank == 0:
        tell({"kind": "testing", "best_epoch": best.metrics["epoch"], "pictures": len(job.codes["test"])})
    probabilities, scored = _score(network, test, pictures=len(job.codes["test"]), world_size=world_size)
    codes = job.codes["test"][scored]
    if rank != 0:
        return
    from training.evaluation import evaluate, remove_report, write_report

    writes()
    scores = evaluate(probabilities, codes, labels=job.labels)
    metrics = scores | {
        "best_epoch": best.metrics["epoch"],
        "epochs": _epochs_so_far(folder),
        "val_acc": best.metrics["val_acc"],
    }
    remove_report(folder.train_info)  # an earlier end of this run left it: it is of other weights
    tell({"kind": "note", "text": "Writing model.onnx, and comparing its answers."})
    report = export(job, spec, network, folder, metrics, samples=samples)
    if report is not None and not report.kept:
        tell({"kind": "note", "text": f"No model.onnx in the model folder: {report.reason}"})
    write_report(
        folder.train_info,
        metrics,
        probabilities,
        codes,
        paths=[job.test_paths[place] for place in scored],
        labels=job.labels,
        tensorboard=folder.tensorboard if config.logger.tensorboard else None,
    )


def export(
    job: Job,
    spec: PreprocessSpec,
    network: Network,
    folder: RunFolder,
    metrics: dict[str, Any],
    *,
    samples: np.ndarray | None,  # uint8 [n,3,H,W]
) -> OnnxReport | None:
    """Write the model card and the Hugging Face repository, with `model.onnx` when there are samples, and last of all
    `classifier.json`."""
    from training.model_card import write_model_card

    names = ("accuracy", "macro_f1", "loss", "val_acc", "best_epoch")
    kept: dict[str, Any] = {name: metrics[name] for name in names if name in metrics}
    write_model_card(folder, job, metrics)
    with tempfile.TemporaryDirectory(dir=folder.path, prefix=".writing-") as scratch:
        manifest = write_model(
            Path(scratch),
            network,
            name=folder.name,
            labels=job.labels,
            spec=spec,
            dataset=job.dataset,
            metrics=kept,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        if samples is not None:
            manifest = export_onnx(Path(scratch), samples)
        publish(Path(scratch), folder.path)
    return manifest.onnx


def best_epoch_of_model(folder: RunFolder) -> int | None:
    """The epoch whose weights the model folder holds already; None when it is no model yet."""
    try:
        epoch: int | None = read_manifest(folder.path).metrics.get("best_epoch")
    except BadModelFolder:
        return None
    return epoch


def _best(folder: RunFolder, config: TrainConfig) -> Candidate:
    rule = config.callbacks.model_checkpoint
    return best_candidate(find_candidates(folder), monitor=rule.monitor, mode=rule.mode)


def load_weights(network: Network, checkpoint: Path) -> None:
    """Put an epoch's weights into a network."""
    import torch

    # weights_only: a Lightning checkpoint is a pickle, and this refuses to run code from it
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    prefix = "network."
    network.load_state_dict({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})


def _score(network: Network, test: Iterable[Batch], *, pictures: int, world_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Every worker scores its part; the sum of the parts is the whole, because each row is one worker's only.

    Returns:
        float32 [N,C], and int64 [N]: the places in the split that they belong to. Pictures that could not be read any more
        have none.
    """
    import torch

    device = next(network.parameters()).device
    network.eval()
    rows: torch.Tensor | None = None
    with torch.inference_mode():
        for batch in test:
            answers = torch.softmax(network(batch.pixels.to(device)), dim=1)
            if rows is None:
                rows = torch.zeros(pictures, answers.shape[1], device=device)
            real = batch.weights > 0
            rows[torch.from_numpy(batch.places)[real].to(device)] = answers[real.to(device)]
        assert rows is not None
        rows = rows.clone()
        if world_size > 1:
            torch.distributed.all_reduce(rows)
    # probabilities add up to 1 (or are NaN): what is still 0 throughout was scored by nobody
    scored = rows.ne(0).any(dim=1).cpu().numpy()
    return rows.cpu().numpy()[scored], np.flatnonzero(scored)


def _epochs_so_far(folder: RunFolder) -> int:
    return len((folder.train_info / "history.csv").read_text().splitlines()) - 1
