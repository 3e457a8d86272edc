"""The files beside the JSONs: one table of all answers in other formats, `errors.csv`, `summary.json`."""

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from classifier import errors
from classifier.model_folder import Manifest
from serving.record import Format, ModelMark, answer, failure_of, to_bytes, with_seed_keys
from serving.storage import Storage

_ROWS_AT_A_TIME = 4096


def write_table(
    storage: Storage, entries: pa.Table, *, keys: np.ndarray, manifest: Manifest, top_k: int, kind: Format
) -> str:
    """Write `predictions.jsonl`, `.csv` or `.parquet`: one row a picture, sorted by file; returns its place.

    Args:
        storage: the results folder.
        entries: the merged ledger.
        keys: uint64, `path_key` of every picture of this run; entries of others are left out.
        manifest: of the model that answered.
        top_k: columns of a CSV; fewer when there are fewer classes.
        kind: one of the formats but `json`, whose files the job writes as it goes.
    """
    chosen = _chosen(entries, keys)
    name = f"predictions.{kind}"
    with storage.writing(name) as stream:
        match kind:
            case "jsonl":
                for record in _records(chosen, manifest):
                    stream.write(to_bytes(record, indent=None))
            case "csv":
                text = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
                _write_csv(text, _records(chosen, manifest), columns=min(top_k, len(manifest.labels)))
                text.detach()
            case _:
                _write_parquet(stream, chosen, manifest)
    return storage.uri(name)


def write_errors(storage: Storage, entries: pa.Table, *, keys: np.ndarray) -> str:
    """Write `errors.csv`: `file,reason,error,message`, a line for each picture of this run without an answer."""
    bad = _chosen(entries, keys).filter(pc.field("error").is_valid())
    with storage.writing("errors.csv") as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(["file", "reason", "error", "message"])
        for batch in bad.to_batches(_ROWS_AT_A_TIME):
            for row in batch.to_pylist():
                reason = getattr(errors, row["error"], errors.BadImage).reason
                lines.writerow([os.fsdecode(row["file"]), reason, row["error"], row["message"]])
        text.detach()
    return storage.uri("errors.csv")


def write_summary(storage: Storage, summary: dict[str, Any]) -> None:
    """Write `summary.json`."""
    with storage.writing("summary.json") as stream:
        stream.write((json.dumps(summary, indent=2) + "\n").encode())


def _chosen(entries: pa.Table, keys: np.ndarray) -> pa.Table:
    return entries.filter(pa.array(np.isin(entries["path_key"].to_numpy(), keys)))


def _records(entries: pa.Table, manifest: Manifest) -> Iterator[dict[str, Any]]:
    model = ModelMark(manifest.name, manifest.digest)
    for batch in entries.to_batches(_ROWS_AT_A_TIME):
        for row in batch.to_pylist():
            file = os.fsdecode(row["file"])
            if row["error"] is not None:
                yield failure_of(file, row["error"], row["message"])
            else:
                predictions = [
                    (manifest.labels[code], code, probability)
                    for code, probability in zip(row["codes"], row["probabilities"], strict=True)
                ]
                yield with_seed_keys(answer(file, predictions, model))


def _write_csv(text: io.TextIOWrapper, records: Iterator[dict[str, Any]], *, columns: int) -> None:
    lines = csv.writer(text, lineterminator="\n")
    places = range(1, columns + 1)
    header = [f"{what}_{place}" for place in places for what in ("label", "code", "probability")]
    lines.writerow(["file", *header, "error", "message"])
    for record in records:
        if "error" in record:
            blank: Sequence[str] = [""] * len(header)
            lines.writerow([record["file"], *blank, record["error"]["type"], record["error"]["message"]])
        else:
            cells = [value for prediction in record["predictions"] for value in prediction.values()]
            lines.writerow([record["file"], *cells, "", ""])


def _write_parquet(stream: Any, entries: pa.Table, manifest: Manifest) -> None:
    prediction = pa.struct([("label", pa.string()), ("code", pa.int32()), ("probability", pa.float32())])
    schema = pa.schema(
        [
            ("file", pa.string()),
            ("predictions", pa.list_(prediction)),
            ("error", pa.string()),
            ("message", pa.string()),
        ],
        metadata={"model": manifest.name, "digest": manifest.digest},
    )
    with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        for batch in entries.to_batches(_ROWS_AT_A_TIME):
            rows = batch.to_pylist()
            answers = [
                None
                if row["error"] is not None
                else [
                    {"label": manifest.labels[code], "code": code, "probability": probability}
                    for code, probability in zip(row["codes"], row["probabilities"], strict=True)
                ]
                for row in rows
            ]
            columns = {
                # Parquet's strings are UTF-8: a name that is not is shown with \udc.. escapes
                "file": [os.fsdecode(row["file"]).encode("utf-8", "backslashreplace").decode() for row in rows],
                "predictions": answers,
                "error": [row["error"] for row in rows],
                "message": [row["message"] for row in rows],
            }
            writer.write_table(pa.table(columns, schema=schema))
