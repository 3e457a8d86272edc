"""The catalog: what every file of a dataset is, which split it is in, or why it is set aside.

`data/metadata/DS/` holds it: `catalog.parquet`, a row for every file met, and `data_info.yaml`, the summary; and what a
person wants to look at, `set_aside.csv` and `conflicts.csv`.
"""

import contextlib
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from pyarrow.csv import write_csv

from classifier.errors import BadImage, DatasetError, OutputError
from cluster.bucket import Bucket, open_place
from training.config import DataConfig
from training.inspection import ROW
from training.listing import FEWEST_PICTURES, NO_PICTURE_SUFFIX, refuse_small_classes
from training.root import Root
from training.split import SPLITS, split_pictures

CATALOG, INFO = "catalog.parquet", "data_info.yaml"
SET_ASIDE, CONFLICTS = "set_aside.csv", "conflicts.csv"

_SCHEMA = pa.schema([*ROW, pa.field("split", pa.string()), pa.field("state", pa.string())])

# (listing of the pictures to look at, their root) -> their rows; `inspection.inspect` does it on Ray.
Inspect = Callable[[pa.Table, Root], pa.Table]


@dataclass(frozen=True)
class Catalog:
    """A dataset, ready to train on."""

    name: str
    root: Root
    folder: Root  # where it is kept
    table: pa.Table  # a row for every file met, sorted by path
    labels: tuple[str, ...]  # sorted; a class's code is its place here
    fingerprint: str  # over path, class and content of every used picture
    seed: int
    reused: bool  # whether it was found ready

    def pictures(self, split: str) -> pa.Table:
        """`path` and `label` of the pictures in a split, sorted by path."""
        return self.table.filter(pc.equal(self.table["split"], split)).select(["path", "label"])

    def counts(self) -> dict[str, dict[str, int]]:
        """Split -> class -> pictures, `set_aside` -> reason -> files."""
        counts = {split: _counted(self.pictures(split)["label"]) for split in SPLITS}
        counts["set_aside"] = _counted(self.table["reason"].drop_null())
        return {key: dict(sorted(counter.items())) for key, counter in counts.items()}

    def lists(self) -> dict[str, pa.Table]:
        """What a person wants to look at.

        Returns:
            `set_aside.csv`: `path` and `reason` of the files that are not used. `conflicts.csv`: `path`, `label` and
            `group` of the pictures that lie in another class too with the same content, group by group.
        """
        set_aside = self.table.filter(pc.is_valid(self.table["reason"])).select(["path", "reason"])
        used = self.table.select(["path", "label", "group"]).filter(pc.equal(self.table["state"], "used"))
        labels = used.group_by("group").aggregate([("label", "count_distinct")])
        several = labels["group"].filter(pc.greater(labels["label_count_distinct"], 1)).combine_chunks()
        conflicts = used.filter(pc.is_in(used["group"], value_set=several))
        return {SET_ASIDE: set_aside, CONFLICTS: conflicts.sort_by([("group", "ascending"), ("path", "ascending")])}

    def info(self) -> dict[str, Any]:
        """What `data_info.yaml` holds."""
        return {
            "num_classes": len(self.labels),
            "class_map": dict(enumerate(self.labels)),
            "counts": self.counts(),
            "seed": self.seed,
            "fingerprint": self.fingerprint,
        }


def prepare_catalog(
    name: str,
    *,
    root: Root,
    listing: pa.Table,
    metadata: str | Path,
    config: DataConfig,
    seed: int,
    inspect: Inspect,
) -> Catalog:
    """Find a dataset's catalog, or make it; only files that are new or changed are opened.

    Args:
        name: the dataset.
        root: its folder or bucket, as `find_dataset` gives it.
        listing: the files there, as `list_dataset` met them and `tabulate` holds them.
        metadata: where catalogs are kept, `metadata/NAME/`; a folder or URL.
        config: shares of the split, largest picture, largest share of bad ones.
        seed: of the split.
        inspect: opens pictures; takes those that must be looked at.

    Raises:
        DatasetError: it has too few pictures, or too many that cannot be read.
        OutputError: the catalog cannot be written.
    """
    if isinstance(root, Path):
        root = root.resolve()
    kept = open_place(metadata, key="paths.metadata")
    folder = kept.below(name) if isinstance(kept, Bucket) else kept / name
    policy = {"max_pixels": config.max_pixels, "split": config.split.model_dump(), "seed": seed}
    digest = _listing_digest(listing)
    known = _read(folder)
    if known is not None:
        table, info = known
        is_same = info.get("listing") == digest and info.get("policy") == policy
        if is_same and not _has_unopened(table):
            _check(name, root, table, max_bad_share=config.max_bad_share)
            return _catalog(name, root, folder, table, seed=seed, reused=True)
        same_limits = info.get("policy", {}).get("max_pixels") == config.max_pixels
        found = _opened(table) if same_limits else ROW.empty_table()
    else:
        found = ROW.empty_table()
    places = _places(listing, found)
    fresh = listing.filter(pc.and_(pc.is_null(listing["aside"]), pc.is_null(places)))
    found = found.take(places.drop_null())
    if len(fresh):
        found = pa.concat_tables([found, inspect(fresh, root)])
    table = _table(listing, found)
    del fresh, found
    pa.default_memory_pool().release_unused()
    _check(name, root, table, max_bad_share=config.max_bad_share)
    table = _with_splits(table, config=config, seed=seed)
    catalog = _catalog(name, root, folder, table, seed=seed, reused=False)
    _write(catalog, listing=digest, policy=policy)
    return catalog


def write_summaries(folder: Path, catalog: Catalog) -> None:
    """Write `data_info.yaml`, `set_aside.csv` and `conflicts.csv` into a run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INFO).write_text(yaml.safe_dump(catalog.info(), sort_keys=False))
    for name, table in catalog.lists().items():
        write_csv(table, folder / name)


def _counted(values: pa.ChunkedArray) -> dict[str, int]:
    return {found["values"]: found["counts"] for found in pc.value_counts(values).to_pylist()}


def _opened(table: pa.Table) -> pa.Table:
    # a file that could not be opened may have been mended without a new date (permissions)
    return table.filter(pc.is_valid(table["sha256"])).select(ROW.names)


def _has_unopened(table: pa.Table) -> bool:
    # what kept it from being opened may have passed without a new date of the file
    candidates = table.filter(pc.equal(table["reason"], BadImage.reason))
    return bool(candidates["sha256"].null_count)


def _places(listing: pa.Table, found: pa.Table) -> pa.ChunkedArray:
    """Where in `found` each file that was met is; null where it is not, or has changed."""
    places = pc.index_in(listing["path"], value_set=found["path"].combine_chunks())
    before = found.select(["size_bytes", "modified_ns"]).take(places)
    same = [pc.equal(listing[name], before[name]) for name in before.column_names]
    return pc.if_else(pc.fill_null(pc.and_(*same), fill_value=False), places, None)


def _table(listing: pa.Table, found: pa.Table) -> pa.Table:
    """A row for each file that was met, with what its content said."""
    content = found.take(_places(listing, found))
    reason = pc.coalesce(listing["aside"], content["reason"])
    own = {
        "reason": reason,
        "state": pc.if_else(pc.is_valid(reason), "set_aside", "used"),
        "split": pa.nulls(len(listing), pa.string()),
    }
    met = {name: listing[name] for name in ("path", "label", "size_bytes", "modified_ns")}
    columns = dict(zip(content.column_names, content.columns, strict=True)) | met | own
    return pa.table([columns[name] for name in _SCHEMA.names], schema=_SCHEMA)


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=1000):
        yield from batch.to_pylist()


def _check(name: str, root: Root, table: pa.Table, *, max_bad_share: float) -> None:
    not_opened = pc.is_in(table["reason"], value_set=pa.array(_NOT_OPENED))
    opened = table.select(["path", "reason"]).filter(pc.or_(pc.is_valid(table["sha256"]), pc.invert(not_opened)))
    bad = opened.filter(pc.is_valid(opened["reason"]))
    if len(bad) > max_bad_share * len(opened):
        reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(bad["reason"].to_pylist()).most_common())
        raise DatasetError(
            f"{name}: {len(bad)} of {len(opened)} pictures cannot be used ({reasons}; the first is {bad['path'][0]}); at "
            f"most {max_bad_share:.0%} may be bad: mend or remove them, or raise data.max_bad_share"
        )
    different: dict[str, set[str]] = defaultdict(set)
    for row in _rows(table.select(["label", "group"]).filter(pc.is_null(table["reason"]))):
        if len(different[row["label"]]) < FEWEST_PICTURES:
            different[row["label"]].add(row["group"])
    refuse_small_classes(
        name,
        root,
        Counter({label: len(groups) for label, groups in different.items()}),
        what="different usable pictures",
        passed_over=table["path"].filter(pc.equal(table["reason"], NO_PICTURE_SUFFIX)).to_pylist(),
    )


_NOT_OPENED = ("no_class_folder", "hidden", "no_picture_suffix", "name_not_utf8")


def _with_splits(table: pa.Table, *, config: DataConfig, seed: int) -> pa.Table:
    used = table.select(["label", "group"]).filter(pc.equal(table["state"], "used"))
    shares = {"val": config.split.val, "test": config.split.test}
    label_of = used["label"].combine_chunks().dictionary_encode()
    labels = label_of.dictionary.to_pylist()  # each once
    assigned = split_pictures(
        [labels[code] for code in label_of.indices.to_numpy()],
        used["group"].combine_chunks(),
        shares=shares,
        seed=seed,
    )
    splits = pc.replace_with_mask(
        table["split"].combine_chunks(),
        pc.equal(table["state"], "used").combine_chunks(),
        pa.array(assigned, pa.string()),
    )
    return table.set_column(table.schema.get_field_index("split"), "split", splits)


def _catalog(name: str, root: Root, folder: Root, table: pa.Table, *, seed: int, reused: bool) -> Catalog:
    used = table.filter(pc.equal(table["state"], "used"))
    digest = hashlib.sha256()
    for row in _rows(used.select(["path", "label", "sha256"])):
        digest.update(json.dumps(list(row.values())).encode())
    labels = tuple(sorted(pc.unique(used["label"]).to_pylist()))
    fingerprint = "sha256:" + digest.hexdigest()
    return Catalog(
        name=name,
        root=root,
        folder=folder,
        table=table,
        labels=labels,
        fingerprint=fingerprint,
        seed=seed,
        reused=reused,
    )


def _listing_digest(listing: pa.Table) -> str:
    digest = hashlib.sha256()
    for row in _rows(listing):
        digest.update(json.dumps(list(row.values())).encode())
    return "sha256:" + digest.hexdigest()


def _read(folder: Root) -> tuple[pa.Table, dict[str, Any]] | None:
    """What an earlier run left, or None: a catalog that cannot be read is made anew."""
    try:
        info = yaml.safe_load(_content(folder, INFO))
        table = pq.read_table(pa.BufferReader(_content(folder, CATALOG)))
    except (OSError, yaml.YAMLError, pa.ArrowException):
        return None
    return (table, info) if isinstance(info, dict) and table.schema.equals(_SCHEMA) else None


def _content(folder: Root, name: str) -> bytes:
    return folder.read(name) if isinstance(folder, Bucket) else (folder / name).read_bytes()


def _write(catalog: Catalog, *, listing: str, policy: dict[str, Any]) -> None:
    """Whole or not at all; the summary comes last, because it is what makes the table count."""
    mark = hashlib.sha256(listing.encode()).hexdigest()[:8]
    with _writing(catalog.folder, CATALOG, mark) as stream:
        pq.write_table(catalog.table, stream)
    for name, table in catalog.lists().items():
        with _writing(catalog.folder, name, mark) as stream:
            write_csv(table, stream)
    with _writing(catalog.folder, INFO, mark) as stream:
        stream.write(yaml.safe_dump(catalog.info() | {"listing": listing, "policy": policy}, sort_keys=False).encode())


@contextlib.contextmanager
def _writing(folder: Root, name: str, mark: str) -> Iterator[IO[bytes]]:
    """A file that is there, whole, when the block ends, and not before."""
    if isinstance(folder, Bucket):
        with folder.writing(name) as stream:
            yield stream
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = folder / f".{name}.{mark}"
        with scratch.open("wb") as stream:
            yield stream
        scratch.replace(folder / name)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written: {error.strerror}; set paths.metadata to a folder that can"
        ) from error
