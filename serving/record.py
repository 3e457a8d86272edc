"""One answer as JSON, the same from the folder job and over HTTP."""

import json
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

Format = Literal["json", "jsonl", "csv", "parquet"]  # of the folder job's answers

# float32 holds seven; the last of them changes with the number of pictures that share a batch.
_DECIMALS = 6


class ModelMark(NamedTuple):
    """Which model answered."""

    name: str
    digest: str


def answer(file: str, predictions: Sequence[tuple[str, int, float]], model: ModelMark) -> dict[str, Any]:
    """The record of a picture that was predicted.

    Args:
        file: where the picture is, or what its sender calls it.
        predictions: (label, code, probability), best first; `predict.Prediction` is one.
        model: who answered.
    """
    return {
        "file": file,
        "predictions": [
            {"label": label, "code": code, "probability": round(probability, _DECIMALS)}
            for label, code, probability in predictions
        ],
        "model": model._asdict(),
    }


def with_seed_keys(record: dict[str, Any]) -> dict[str, Any]:
    """Add the three lists that result files had from the start; programs read them. Shorter with fewer classes."""
    best = record["predictions"][:3]
    lists = {
        "top_3_predicted_labels": [prediction["label"] for prediction in best],
        "top_3_predicted_codes": [prediction["code"] for prediction in best],
        "top_3_probabilities": [prediction["probability"] for prediction in best],
    }
    return {"file": record["file"], "predictions": record["predictions"], **lists, "model": record["model"]}


def failure_of(file: str, kind: str, message: str) -> dict[str, Any]:
    """The record of a picture that cannot be read, from the name of the error's class and its message."""
    return {"file": file, "error": {"type": kind, "message": message}}


def to_bytes(record: dict[str, Any], *, indent: int | None = 2) -> bytes:
    """JSON in UTF-8, a newline at the end.

    A file name that is not UTF-8 cannot stand in it as it is: such a record is written in ASCII with escapes, which
    Python's `json` reads back to the very name.
    """
    try:
        return (json.dumps(record, indent=indent, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(record, indent=indent) + "\n").encode()
