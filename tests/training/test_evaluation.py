"""What the report says is what the probabilities say."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.evaluation import evaluate, write_report

LABELS = ("bad", "good", "odd")
CODES = np.array([0, 0, 1, 1, 1])
PROBABILITIES = np.array(
    [[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.1, 0.8, 0.1], [0.05, 0.9, 0.05], [0.9, 0.05, 0.05]], dtype=np.float32
)


def test_macro_f1_is_the_mean_over_classes_and_not_the_accuracy() -> None:
    """By hand: bad has P 1/2, R 1/2; good has P 2/3, R 2/3; odd has no test picture and none predicted."""
    scores = evaluate(PROBABILITIES, CODES, labels=LABELS)

    assert scores["accuracy"] == pytest.approx(3 / 5)
    assert scores["macro_f1"] == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
    assert scores["per_class"]["good"] == pytest.approx(
        {"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "support": 3}
    )
    assert scores["loss"] == pytest.approx(-np.log([0.8, 0.3, 0.8, 0.9, 0.05]).mean(), rel=1e-6)


def test_errors_are_listed_with_the_surest_first(tmp_path: Path) -> None:
    """A sure mistake is the likeliest to be a wrong label."""
    paths = ["bad/1.jpg", "bad/2, copy.jpg", "good/1.jpg", "good/2.jpg", "good/3.jpg"]
    metrics = evaluate(PROBABILITIES, CODES, labels=LABELS)

    write_report(tmp_path, metrics, PROBABILITIES, CODES, paths=paths, labels=LABELS, tensorboard=None)

    with (tmp_path / "classification_errors.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["filepath", "true_label", "predicted_label", "probability"],
            ["good/3.jpg", "good", "bad", "0.900000"],
            ["bad/2, copy.jpg", "bad", "good", "0.600000"],
        ]
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics


@pytest.mark.parametrize(("classes", "smallest_px", "largest_px"), [(2, 400, 1000), (50, 1500, 3200)])
def test_the_confusion_matrix_grows_with_the_classes(
    tmp_path: Path, classes: int, smallest_px: int, largest_px: int
) -> None:
    """Names of 50 classes need room; two do not need a poster."""
    random = np.random.default_rng(0)
    codes = random.integers(0, classes, 500)
    probabilities = random.dirichlet(np.ones(classes), 500).astype(np.float32)
    labels = tuple(f"a class with quite a long name {number}" for number in range(classes))

    write_report(
        tmp_path,
        evaluate(probabilities, codes, labels=labels),
        probabilities,
        codes,
        paths=[str(number) for number in range(500)],
        labels=labels,
        tensorboard=None,
    )

    with Image.open(tmp_path / "confusion_matrix.png") as picture:
        assert all(smallest_px <= side_px <= largest_px for side_px in picture.size)


def test_a_class_may_have_any_name(tmp_path: Path) -> None:
    """matplotlib takes what is between two dollars for mathematics, and refuses this."""
    labels = ("$5_$", "a_b", "50%")

    write_report(tmp_path, {}, PROBABILITIES, CODES, paths=["x"] * 5, labels=labels, tensorboard=None)

    assert (tmp_path / "confusion_matrix.png").exists()
