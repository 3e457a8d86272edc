"""The book of what was predicted: a picture whose content and model have an answer is not computed again.

It lies in `.batch/ledger/` of the results: a Parquet file for every chunk, written when the chunk's results are, and
merged into one at the end of a run. The newest entry of a picture counts. Files of other formats are made from it.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serving.storage import BOOKS, Storage

if TYPE_CHECKING:
    from numpy.typing import NDArray

FOLDER = f"{BOOKS}/ledger"
SCHEMA = pa.schema(
    [
        ("path_key", pa.uint64()),
        ("content_key", pa.uint64()),  # content and all that the answer depends on; 0 when there is none
        ("file", pa.binary()),  # a name need not be UTF-8
        ("codes", pa.list_(pa.int32())),  # best first; empty when the picture cannot be read
        ("probabilities", pa.list_(pa.float32())),
        ("error", pa.string()),  # the class of the error, null when there is none
        ("message", pa.string()),
        ("result_key", pa.uint64()),  # of the result file; 0 when none was written, null in parts of earlier versions
    ]
)
_KEYS = ["path_key", "content_key", "codes", "result_key"]
_NOT_STATED = 1  # stands for null in an array
# Another way of computing answers must not find those of this one.
_VERSION = 1


def path_key(file: str) -> int:
    """64 bits that stand for a place: a million places collide once in 40 million such folders."""
    return int.from_bytes(hashlib.sha256(os.fsencode(file)).digest()[:8], "little")


def settings_key(*, model_digest: str, top_k: int) -> bytes:
    """What `content_key` starts from: everything beside the picture that its answer depends on."""
    return f"{_VERSION} {model_digest} {top_k}\n".encode()


def content_key(data: bytes, settings: bytes) -> int:
    """64 bits that stand for a picture's bytes and the model that answers; never 0."""
    digest = hashlib.sha256(settings)
    digest.update(data)
    return int.from_bytes(digest.digest()[:8], "little") or 1


def result_key(data: bytes) -> int:
    """64 bits that stand for the bytes of a result file."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")


@dataclass(frozen=True)
class Ledger:
    """The newest entry of every picture, 28 bytes each; arrays, because every worker gets one without copying."""

    path_keys: "NDArray[np.uint64]"  # sorted
    content_keys: "NDArray[np.uint64]"
    top_codes: "NDArray[np.int32]"
    result_keys: "NDArray[np.uint64]"

    @classmethod
    def empty(cls) -> "Ledger":
        """A ledger in which nothing is done."""
        return cls(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.int32), np.empty(0, np.uint64))

    @classmethod
    def load(cls, storage: Storage) -> "Ledger":
        """Read the ledger of a results folder; empty when there is none."""
        keys, contents, codes, results = [], [], [], []
        for table in _read_parts(storage, columns=_KEYS):
            keys.append(table["path_key"].to_numpy())
            contents.append(table["content_key"].to_numpy())
            codes.append(_first_codes(table))
            results.append(table["result_key"].fill_null(_NOT_STATED).to_numpy())
        if not keys:
            return cls.empty()
        every_key = np.concatenate(keys)
        newest = _newest(every_key)
        return cls(*(np.concatenate(column)[newest] for column in (keys, contents, codes, results)))

    def find(self, path: int, content: int) -> int | None:
        """The top code of a picture that has an answer; None when it has none, or it is of another content or model."""
        if path not in self:
            return None
        place = self._place(path)
        code = int(self.top_codes[place])
        return code if code >= 0 and int(self.content_keys[place]) == content else None

    def wrote(self, path: int, result: bytes, *, file: str) -> bool:
        """Whether a result file is what was written with the entry of a picture: since then it may have been changed, or
        another picture's written over it.

        Args:
            path: a key that is in the ledger.
            result: what is in the result file now.
            file: the picture's full place, for entries of earlier versions, which state nothing of the result.
        """
        key = int(self.result_keys[self._place(path)])
        return _names(result, file) if key == _NOT_STATED else key == result_key(result)

    def __contains__(self, path: int) -> bool:
        place = self._place(path)
        return place < len(self.path_keys) and int(self.path_keys[place]) == path

    def _place(self, path: int) -> int:
        return int(np.searchsorted(self.path_keys, np.uint64(path)))

    def __len__(self) -> int:
        return len(self.path_keys)


def next_run(storage: Storage) -> str:
    """The name of the run that begins. Names of parts start with it, so their order is that of the runs."""
    number = max((int(name[:6]) for name in _parts(storage)), default=0) + 1
    # Workers of a killed run may write a little longer: never over a part of this one.
    return f"{number:06d}-{uuid.uuid4().hex[:8]}"


def write_part(storage: Storage, table: pa.Table, *, run: str, chunk: int) -> None:
    """Write the entries of a chunk. From then on its pictures are done."""
    with storage.writing(f"{FOLDER}/{run}-{chunk:09d}.parquet") as stream:
        pq.write_table(table, stream, compression="zstd")


def merge(storage: Storage, *, run: str) -> pa.Table:
    """Bring all parts into one, the newest entry of every picture, sorted by file; returns it.

    Killed in between, the old parts are merged again: the merged one has a later name than what went into it.
    """
    names = _parts(storage)
    tables = list(_read_parts(storage, columns=None))
    table = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
    table = table.take(pa.array(_newest(table["path_key"].to_numpy()))).sort_by("file")
    if len(names) > 1:
        merged = f"{run}-merged.parquet"
        with storage.writing(f"{FOLDER}/{merged}") as stream:
            pq.write_table(table, stream, compression="zstd")
        storage.remove(f"{FOLDER}/{name}" for name in names if name != merged)
    return table


def _parts(storage: Storage) -> list[str]:
    return [name for name in storage.names(FOLDER) if name.endswith(".parquet") and name[:6].isdigit()]


def _read_parts(storage: Storage, *, columns: list[str] | None) -> Iterator[pa.Table]:
    for name in _parts(storage):
        try:
            data = pa.BufferReader(storage.read(f"{FOLDER}/{name}"))
            yield pq.read_table(data, columns=columns, schema=SCHEMA)  # a column that is not there: nulls
        except pa.ArrowInvalid:  # torn, on a file system without whole writes: its pictures are done again
            continue


def _first_codes(table: pa.Table) -> "NDArray[np.int32]":
    lists = table["codes"].combine_chunks()
    starts, lengths = lists.offsets.to_numpy()[:-1], np.diff(lists.offsets.to_numpy())
    codes = np.full(len(table), -1, np.int32)
    codes[lengths > 0] = lists.values.to_numpy()[starts[lengths > 0]]
    return codes


def _names(result: bytes, file: str) -> bool:
    try:
        return bool(json.loads(result)["file"] == file)
    except (ValueError, LookupError, TypeError):  # not one of our results
        return False


def _newest(keys: "NDArray[np.uint64]") -> "NDArray[np.intp]":
    """Where the last occurrence of every key is, in the order of the keys."""
    _, first_from_end = np.unique(keys[::-1], return_index=True)
    return len(keys) - 1 - first_from_end
