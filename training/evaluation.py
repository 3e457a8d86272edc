"""What the test split says: metrics, the list of errors, the confusion matrix.

Axis letters: N pictures, C classes.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

_METRICS, _ERRORS, _MATRIX = _REPORT = ("metrics.json", "classification_errors.csv", "confusion_matrix.png")
# Up to so many classes, letters are large and names lie aslant.
_FEW = 20
# The picture grows with the classes up to here; with more of them a cell has no room for a number.
_MOST_NUMBERED = 70


def evaluate(
    probabilities: np.ndarray,  # float32 [N,C]
    codes: np.ndarray,  # int64 [N]
    *,
    labels: tuple[str, ...],
) -> dict[str, Any]:
    """Accuracy, macro F1, loss (mean cross-entropy) and per-class precision, recall, F1 and support.

    A class that was never predicted has precision 0.
    """
    from sklearn.metrics import precision_recall_fscore_support

    predicted = probabilities.argmax(1)
    every = np.arange(len(labels))
    columns = precision_recall_fscore_support(codes, predicted, labels=every, zero_division=0.0)
    per_class = {
        label: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
        for label, p, r, f, s in zip(labels, *columns, strict=True)
    }
    true_probabilities = probabilities[np.arange(len(codes)), codes].astype(np.float64)
    return {
        "accuracy": float((predicted == codes).mean()),
        "macro_f1": float(np.mean([scores["f1"] for scores in per_class.values()])),
        "loss": float(-np.log(np.clip(true_probabilities, 1e-12, None)).mean()),
        "per_class": per_class,
    }


def remove_report(folder: Path) -> None:
    """Remove what `write_report` writes."""
    for name in _REPORT:
        (folder / name).unlink(missing_ok=True)


def write_report(
    folder: Path,
    metrics: dict[str, Any],
    probabilities: np.ndarray,  # float32 [N,C]
    codes: np.ndarray,  # int64 [N]
    *,
    paths: list[str],
    labels: tuple[str, ...],
    tensorboard: Path | None,
) -> None:
    """Write `metrics.json`, `classification_errors.csv` and `confusion_matrix.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _METRICS).write_text(json.dumps(metrics, indent=2) + "\n")
    predicted = probabilities.argmax(1)
    with (folder / _ERRORS).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("filepath", "true_label", "predicted_label", "probability"))
        wrong = np.flatnonzero(predicted != codes)
        # the surest mistakes first: they are the likeliest to be wrong labels
        for index in wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")]:
            probability = f"{probabilities[index, predicted[index]]:.6f}"
            writer.writerow((paths[index], labels[codes[index]], labels[predicted[index]], probability))
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(counts, (codes, predicted), 1)
    _draw_confusion_matrix(counts, labels, folder / _MATRIX, tensorboard)


def _draw_confusion_matrix(
    counts: np.ndarray,  # int64 [C,C], row true, column predicted
    labels: tuple[str, ...],
    file: Path,
    tensorboard: Path | None,
) -> None:
    from matplotlib.figure import Figure

    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    side_in = max(4.5, min(24.0, 2.2 + 0.55 * len(labels) if len(labels) <= _FEW else 3 + 0.3 * len(labels)))
    figure = Figure(figsize=(side_in + 1, side_in), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [label if len(label) <= 24 else label[:23] + "…" for label in labels]
    font_pt = 10 if len(labels) <= _FEW else 8
    plain: dict[str, Any] = {"fontsize": font_pt, "parse_math": False}  # a class may be called $5_$
    axes.set_xticks(range(len(labels)), names, rotation=45 if len(labels) <= _FEW else 90, **plain)
    if len(labels) <= _FEW:
        for tick in axes.get_xticklabels():
            tick.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(labels)), names, **plain)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    accuracy = counts.trace() / max(1, counts.sum())
    axes.set_title(f"{counts.sum()} test pictures, accuracy {accuracy:.3f}")
    for row, column in np.argwhere(counts > 0) if len(labels) <= _MOST_NUMBERED else ():
        colour = "white" if shares[row, column] > 0.5 else "black"
        size_pt = 10 if len(labels) <= _FEW else 6
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=size_pt)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    figure.savefig(file, dpi=120)
    if tensorboard is not None:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(tensorboard)) as writer:
            writer.add_figure("confusion_matrix", figure)
