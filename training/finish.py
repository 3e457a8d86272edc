"""After the last epoch: the best weights, the test split once, the model folder, the report."""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from classifier.model_folder import write_model
from classifier.network import Network
from classifier.onnx_export import export_onnx
from classifier.preprocess import PreprocessSpec
from training.batches import EvalBatches
from training.checkpoint import best_candidate, find_candidates
from training.config import TrainConfig
from training.loop import Job
from training.run_folder import RunFolder


def finish(
    job: Job,
    config: TrainConfig,
    spec: PreprocessSpec,
    network: Network,
    test: EvalBatches,
    folder: RunFolder,
    *,
    rank: int,
    world_size: int,
    samples: np.ndarray,
    tell: Callable[[dict[str, Any]], None],
) -> None:
    """Score the test split with the best epoch's weights; the first worker writes what comes of it."""
    rule = config.callbacks.model_checkpoint
    best = best_candidate(find_candidates(folder), monitor=rule.monitor, mode=rule.mode)
    load_weights(network, best.file)
    if rank == 0:
        tell({"kind": "testing", "best_epoch": best.metrics["epoch"], "pictures": len(job.codes["test"])})
    probabilities, scored = _score(network, test, pictures=len(job.codes["test"]), world_size=world_size)
    codes = job.codes["test"][scored]
    if rank != 0:
        return
    from training.evaluation import evaluate, write_report

    scores = evaluate(probabilities, codes, labels=job.labels)
    metrics = scores | {
        "best_epoch": best.metrics["epoch"],
        "epochs": _epochs_so_far(folder),
        "val_acc": best.metrics["val_acc"],
    }
    write_report(
        folder.train_info,
        metrics,
        probabilities,
        codes,
        paths=[job.paths["test"][place] for place in scored],
        labels=job.labels,
        tensorboard=folder.tensorboard if config.logger.tensorboard else None,
    )
    export(job, spec, network, folder, metrics)
    tell({"kind": "note", "text": "Writing model.onnx, and comparing its answers."})
    report = export_onnx(folder.path, samples).onnx
    if report is not None and not report.kept:
        tell({"kind": "note", "text": f"No model.onnx in the model folder: {report.reason}"})


def export(job: Job, spec: PreprocessSpec, network: Network, folder: RunFolder, metrics: dict[str, Any]) -> None:
    """Write the Hugging Face repository, `classifier.json` and the model card."""
    from training.model_card import write_model_card

    names = ("accuracy", "macro_f1", "loss", "val_acc", "best_epoch")
    kept: dict[str, Any] = {name: metrics[name] for name in names if name in metrics}
    write_model_card(folder, job, metrics)
    write_model(
        folder.path,
        network,
        name=folder.name,
        labels=job.labels,
        spec=spec,
        dataset=job.dataset,
        metrics=kept,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def load_weights(network: Network, checkpoint: Path) -> None:
    """Put an epoch's weights into a network."""
    import torch

    # weights_only: a Lightning checkpoint is a pickle, and this refuses to run code from it
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    prefix = "network."
    network.load_state_dict({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})


def _score(network: Network, test: EvalBatches, *, pictures: int, world_size: int) -> tuple[np.ndarray, np.ndarray]:
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
