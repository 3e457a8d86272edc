"""What happens to a chunk of pictures: read and decode, predict, write. Values in, values out; no Ray in it.

Every picture of a chunk is an `Entry` from the first stage to the last: nothing is dropped on the way.

Axis letters: N pictures that are new, H and W pixels.
"""

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from classifier.errors import BadImage
from classifier.preprocess import PreprocessSpec, load_pixels
from serving import ledger as ledgers
from serving.ledger import Ledger
from serving.listing import Chunk
from serving.record import ModelMark, answer, failure_of, to_bytes, with_seed_keys
from serving.storage import Storage

if TYPE_CHECKING:
    from classifier.predict import Device

# On a CPU a few pictures at a time stay in its caches: MobileNet takes a third longer for 32 or 64 at once.
_PICTURES_AT_A_TIME_ON_CPU = 8
_NAME_MAX_BYTES = 255  # of nearly every file system


@dataclass
class Entry:
    """One picture on its way."""

    path: str  # relative to the input folder
    key: int  # `ledger.path_key` of its full place
    content: int = 0  # `ledger.content_key`; 0 when it could not be read
    done: int | None = None  # top code from the ledger when it has an answer
    error: BadImage | None = None
    predictions: list[tuple[str, int, float]] = field(default_factory=list)  # label, code, probability; best first


@dataclass(frozen=True)
class Decoded:
    """A chunk after the first stage."""

    chunk: int
    entries: list[Entry]
    pixels: np.ndarray  # uint8 [N,3,H,W], of the entries that are neither done nor in error, in their order


@dataclass(frozen=True)
class Unreadable:
    """A picture that has no answer, and why."""

    file: str
    reason: str
    error: str
    message: str


@dataclass(frozen=True)
class Outcome:
    """What became of a chunk, in the few bytes that the terminal needs."""

    keys: np.ndarray  # uint64, `path_key` of every entry
    predicted: int
    already_done: int
    unreadable: list[Unreadable]
    top_codes: Counter[int]  # of the predicted and the done


@dataclass(frozen=True)
class Decoder:
    """Reads the pictures of a chunk, finds those that are done, decodes the others."""

    source: Storage
    target: Storage
    spec: PreprocessSpec
    ledger: Ledger
    settings: bytes  # `ledger.settings_key`
    writes_json: bool

    def __call__(self, chunk: Chunk) -> Decoded:
        """Never raises for a picture: what is wrong with it stands in its entry."""
        entries = [Entry(found.path, ledgers.path_key(self.source.uri(found.path))) for found in chunk.found]
        readable = []
        for entry, found in zip(entries, chunk.found, strict=True):
            if found.fault is None:
                readable.append(entry)
            else:
                entry.error = BadImage(found.fault)
        pixels = list(self._decode(readable))
        shape = (0, 3, self.spec.height_px, self.spec.width_px)
        return Decoded(chunk.number, entries, np.stack(pixels) if pixels else np.empty(shape, np.uint8))

    def _decode(self, entries: list[Entry]) -> Iterator[np.ndarray]:
        intact = self._intact(entries)
        pictures = self.source.read_pictures([entry.path for entry in entries])
        for entry, data in zip(entries, pictures, strict=True):
            if isinstance(data, BadImage):
                entry.error = data
                continue
            entry.content = ledgers.content_key(data, self.settings)
            if entry.key in intact:
                entry.done = self.ledger.find(entry.key, entry.content)
                if entry.done is not None:
                    continue
            try:
                yield load_pixels(data, self.spec)
            except BadImage as error:
                entry.error = error

    def _intact(self, entries: list[Entry]) -> set[int]:
        """The keys of entries that the ledger knows and whose result file is still the one that was written for them.

        Pictures of two input folders, or `file=`, can have results of the same name.
        """
        known = [entry for entry in entries if entry.key in self.ledger]
        if not self.writes_json:
            return {entry.key for entry in known}
        results = self.target.read_pictures([result_name(entry.path) for entry in known])
        return {
            entry.key
            for entry, result in zip(known, results, strict=True)
            if not isinstance(result, BadImage)
            and self.ledger.wrote(entry.key, result, file=self.source.uri(entry.path))
        }


class Answerer:
    """Predicts the new pictures of a chunk. Holds the model, which is loaded once."""

    def __init__(self, model: Path, *, device: "Device", threads: int | None, top_k: int) -> None:
        from classifier.predict import Predictor

        self._predictor = Predictor.load(model, device=device, threads=threads)
        on_cpu = self._predictor.device == "cpu"
        self._at_a_time = _PICTURES_AT_A_TIME_ON_CPU if on_cpu else None
        # A GPU takes one batch at a time, whatever thread it comes from.
        self._turn: contextlib.AbstractContextManager[object] = contextlib.nullcontext() if on_cpu else threading.Lock()
        self._top_k = top_k

    def __call__(self, decoded: Decoded) -> Decoded:
        """The same entries with predictions, without pixels."""
        from classifier.predict import top

        new = [entry for entry in decoded.entries if entry.done is None and entry.error is None]
        step = self._at_a_time or max(1, len(new))
        for start in range(0, len(new), step):
            with self._turn:
                rows = self._predictor.probabilities(decoded.pixels[start : start + step])
            for entry, probabilities in zip(new[start : start + step], rows, strict=True):
                best = top(probabilities, labels=self._predictor.labels, k=self._top_k)
                # plain tuples: whoever unpickles a Prediction imports torch
                entry.predictions = [(label, code, probability) for label, code, probability in best]
        return Decoded(decoded.chunk, decoded.entries, decoded.pixels[:0])


@dataclass(frozen=True)
class Writer:
    """Writes the results of a chunk, then its entries in the ledger: from then on they are done."""

    source: Storage
    target: Storage
    model: ModelMark
    run: str  # `ledger.next_run`
    writes_json: bool

    def __call__(self, decoded: Decoded) -> Outcome:
        """Raises OutputError when a result cannot be written."""
        fresh = [entry for entry in decoded.entries if entry.done is None]
        results = [to_bytes(self._record(entry)) if self.writes_json else None for entry in fresh]
        self.target.write_all(
            (result_name(entry.path), data) for entry, data in zip(fresh, results, strict=True) if data is not None
        )
        if fresh:
            ledgers.write_part(self.target, self._table(fresh, results), run=self.run, chunk=decoded.chunk)
        bad = [entry for entry in fresh if entry.error is not None]
        return Outcome(
            keys=np.array([entry.key for entry in decoded.entries], np.uint64),
            predicted=len(fresh) - len(bad),
            already_done=len(decoded.entries) - len(fresh),
            unreadable=[
                Unreadable(self.source.uri(entry.path), error.reason, type(error).__name__, str(error))
                for entry in bad
                if (error := entry.error) is not None
            ],
            top_codes=Counter(
                entry.done if entry.done is not None else entry.predictions[0][1]
                for entry in decoded.entries
                if entry.error is None
            ),
        )

    def _record(self, entry: Entry) -> dict[str, object]:
        file = self.source.uri(entry.path)
        if entry.error is not None:
            return failure_of(file, type(entry.error).__name__, str(entry.error))
        return with_seed_keys(answer(file, entry.predictions, self.model))

    def _table(self, entries: list[Entry], results: list[bytes | None]) -> pa.Table:
        errors = [entry.error for entry in entries]
        return pa.table(
            {
                "path_key": [entry.key for entry in entries],
                "content_key": [entry.content for entry in entries],
                "file": [os.fsencode(self.source.uri(entry.path)) for entry in entries],
                "codes": [[code for _, code, _ in entry.predictions] for entry in entries],
                "probabilities": [[probability for _, _, probability in entry.predictions] for entry in entries],
                "error": [None if error is None else type(error).__name__ for error in errors],
                "message": [None if error is None else _utf8(str(error)) for error in errors],
                "result_key": [0 if data is None else ledgers.result_key(data) for data in results],
            },
            schema=ledgers.SCHEMA,
        )


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def result_name(path: str) -> str:
    """Where a picture's JSON goes: its own path, suffix kept, so that no two pictures share one.

    A name that `.json` would make too long for a file system is cut, and told apart by a digest.
    """
    folder, slash, name = path.rpartition("/")
    encoded = os.fsencode(name)
    if len(encoded) + len(".json") > _NAME_MAX_BYTES:
        digest = f"{ledgers.path_key(path):016x}"
        name = encoded[: _NAME_MAX_BYTES - len(f"~{digest}.json")].decode("utf-8", "ignore") + f"~{digest}"
    return f"{folder}{slash}{name}.json"
