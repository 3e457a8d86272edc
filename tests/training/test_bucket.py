"""Training from a bucket: the same as from a folder, and one line when it cannot be."""

import os
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem

from classifier import image
from classifier.errors import BadImage, DatasetError, TooManyBytes
from classifier.processor import load_preprocess
from cluster.bucket import Bucket, open_place
from tests.conftest import S3, TINY_CONFIG
from tests.training.conftest import Project
from tests.training.digits import write_picture
from training.catalog import CATALOG, CONFLICTS, INFO, SET_ASIDE, Catalog, prepare_catalog
from training.config import DataConfig
from training.failures import is_systems
from training.inspection import inspect
from training.listing import Entry, find_dataset, list_dataset, tabulate
from training.root import Root, read_pictures
from training.run import main
from training.settings import read_settings
from training.stream import read_block, stream_blocks

_DATE_NS = 1_700_000_000_123_000_000
_NAMES = ("cat/a.png", "cat/2024/june/b.PNG", "cat/ü ö.png", "dog/c.png", "dog/d.png", "dog/e+f%20.png")


def _bucket(url: str) -> Bucket:
    place = open_place(url, key="x")
    assert isinstance(place, Bucket)
    return place


@pytest.fixture
def pets(s3: S3) -> tuple[Path, Bucket]:
    """A dataset, as a folder and as a bucket: six pictures and four files that are none."""
    folder = s3.folder / "suite" / "raw" / "PETS"
    for number, name in enumerate(_NAMES):
        write_picture(folder / name, colour=(40 * number, 255 - 40 * number, 7))
    for name in ("cat/notes.txt", "cat/.DS_Store", "readme.md"):
        (folder / name).write_bytes(b"x")
    (folder / "dog" / "broken.png").write_bytes(b"broken")
    (folder / "cat" / "folder.png").mkdir()
    # rclone leaves zeros at the end of milliseconds out, and the client then reads no date
    for file in folder.rglob("*"):
        os.utime(file, ns=(_DATE_NS, _DATE_NS))
    return folder, _bucket(s3.url("suite/raw/PETS"))


def _without_dates(entries: list[Entry]) -> list[Entry]:
    return [entry._replace(modified_ns=0) for entry in entries]


def test_a_bucket_is_listed_as_its_folder_is(pets: tuple[Path, Bucket]) -> None:
    """Depth, upper case, spaces, and what is no picture."""
    folder, bucket = pets

    entries = list_dataset(bucket)

    assert _without_dates(entries) == _without_dates(list_dataset(folder))
    assert len(entries) == 10
    assert {entry.modified_ns for entry in entries} == {_DATE_NS}


def _prepare(raw_data: str | Path, metadata: str | Path) -> tuple[Catalog, list[str]]:
    """The catalog, and the paths of the pictures that were opened for it."""
    opened: list[str] = []

    def inspect_some(listing: pa.Table, root: Root) -> Any:
        opened.extend(listing["path"].to_pylist())
        return inspect(listing, root, max_pixels=image.MAX_PIXELS, task_cpus=1, tasks=2, on_progress=lambda *_: None)

    config: DataConfig = read_settings(["ds=PETS"]).data
    root = find_dataset("PETS", raw_data=raw_data)
    found = prepare_catalog(
        "PETS",
        root=root,
        listing=tabulate(list_dataset(root)),
        metadata=metadata,
        config=config,
        seed=1,
        inspect=inspect_some,
    )
    return found, opened


def test_the_catalog_of_a_bucket_is_that_of_its_folder_and_lies_where_it_is_told(
    pets: tuple[Path, Bucket], s3: S3, tmp_path: Path, ray_once: None
) -> None:
    """Also the second time, when only the picture that has changed is opened."""
    folder, bucket = pets
    raw, metadata = s3.url("suite/raw"), s3.url("suite/metadata")

    local, _ = _prepare(folder.parent, tmp_path / "metadata")
    first, opened = _prepare(raw, metadata)
    second, opened_again = _prepare(raw, metadata)

    assert first.fingerprint == local.fingerprint
    assert first.counts() == local.counts()
    assert first.counts()["set_aside"]["unsupported_format"] == 1
    assert len(opened) == 7
    assert second.reused and not opened_again
    names = {file.name for file in (s3.folder / "suite/metadata/PETS").iterdir()}
    assert names == {CATALOG, INFO, SET_ASIDE, CONFLICTS}
    assert str(first.folder) == "s3://suite/metadata/PETS"

    with bucket.writing("cat/a.png") as stream:
        stream.write(write_picture(tmp_path / "a.png", colour=(1, 2, 3), size_px=(30, 30)).read_bytes())
    third, opened_then = _prepare(raw, metadata)
    assert "cat/a.png" in opened_then and "cat/ü ö.png" not in opened_then
    assert third.fingerprint != first.fingerprint


def _pixels(root: Root, paths: list[str]) -> tuple[np.ndarray, np.ndarray]:
    import ray

    spec = load_preprocess("tiny", size_px=32, max_pixels=image.MAX_PIXELS, config=TINY_CONFIG)
    blocks = stream_blocks(paths, root=root, spec=spec, mean_bytes=100, task_cpus=1, tasks=1, name="pets", shards=None)
    opened = [read_block(ray.get(block)) for block, _ in blocks]
    return np.concatenate([pixels for pixels, _ in opened]), np.concatenate([readable for _, readable in opened])


def test_pictures_of_a_bucket_are_decoded_as_those_of_its_folder(pets: tuple[Path, Bucket], ray_once: None) -> None:
    """In order; one that has gone and one that is broken keep their places and weigh nothing."""
    folder, bucket = pets
    paths = [_NAMES[0], "dog/gone.png", *_NAMES[1:], "dog/broken.png"]

    local, readable_locally = _pixels(folder, paths)
    pixels, readable = _pixels(bucket, paths)

    assert np.array_equal(pixels, local)
    assert np.array_equal(readable, readable_locally)
    assert np.flatnonzero(~readable).tolist() == [1, 7]


class _Slow(MemoryFileSystem):  # type: ignore[misc]
    """A bucket whose every answer takes a while; counts the requests under way."""

    protocol = "slow"
    store: dict[str, Any] = {}  # noqa: RUF012
    now, most, lock = 0, 0, threading.Lock()

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        with _Slow.lock:
            _Slow.now += 1
            _Slow.most = max(_Slow.most, _Slow.now)
        time.sleep(0.05)
        with _Slow.lock:
            _Slow.now -= 1
        return super()._open(path, mode, **options)


def test_a_task_has_sixteen_requests_in_flight_and_no_more_pictures_in_memory() -> None:
    """A request is waiting, nearly all of it; but pictures may be large."""
    slow = _Slow()
    paths = [f"{number}.png" for number in range(48)]
    for path in paths:
        slow.store[f"/pets/{path}"] = None
        slow.pipe_file(f"/pets/{path}", path.encode())
    bucket = Bucket(PyFileSystem(FSSpecHandler(slow)), "/pets", "slow://pets")
    _Slow.most = 0

    pictures = read_pictures(bucket, paths)
    first = next(pictures)
    time.sleep(0.3)  # nobody asks for more
    rest = list(pictures)

    assert [first, *rest] == [path.encode() for path in paths]
    assert _Slow.most == 16


def test_a_huge_object_is_not_fetched(pets: tuple[Path, Bucket], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size is asked for first."""
    monkeypatch.setattr(image, "MAX_BYTES", 10)

    (found,) = read_pictures(pets[1], ["cat/a.png"])

    assert isinstance(found, TooManyBytes)


def test_a_bucket_that_stops_answering_sets_no_picture_aside(s3: S3, ray_once: None) -> None:
    """It says nothing of the pictures: the run ends with a line, and no catalog is written."""
    for label in ("cat", "dog"):
        for number in range(3):
            write_picture(s3.folder / f"suite/raw/PETS/{label}/{number}.png", colour=(number, 9, len(label)))
    bucket = _bucket(s3.url("suite/raw/PETS"))
    listing = tabulate(list_dataset(bucket))
    s3.stop()

    with pytest.raises(DatasetError, match=r"^s3://suite/raw/PETS/cat/0.png cannot be read: .*NETWORK_CONNECTION"):
        inspect(listing, bucket, max_pixels=image.MAX_PIXELS, task_cpus=1, tasks=1, on_progress=lambda *_: None)


def test_decoding_that_loses_its_bucket_is_a_fault_of_the_cluster(s3: S3, ray_once: None) -> None:
    """So the workers are started anew, and decoding with them, instead of the run ending or going on with less."""
    bucket = _bucket(s3.url("suite"))
    s3.stop()

    with pytest.raises(OSError, match=r"s3://suite/a.png cannot be read: .*NETWORK_CONNECTION") as raised:
        _pixels(bucket, ["a.png"])

    assert is_systems(raised.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["paths.raw_data=s3://nobody/raw{query}"],
            r"paths\.raw_data=s3://nobody/raw cannot be listed .*NO_SUCH_BUCKET",
        ),
        (["paths.raw_data=s3://suite/raw{query}", "ds=PET"], r"ds=PET: no such .*\(datasets in s3://suite/raw: PETS\)"),
        (
            ["paths.raw_data=s3://suite{query}", "ds=raw"],
            r"s3://suite/raw has 1 class folder \(PETS\); need at least 2",
        ),
        (["paths.raw_data=s3://suite{query}", "ds=raw/PETS"], r"ds=raw/PETS is a path"),
        (["paths.raw_data=gopher://x"], r"paths\.raw_data=gopher://x cannot be opened .*such as s3:// or gs://"),
        (["paths.raw_data=s3://me:hush@suite/raw"], r"paths\.raw_data: a key in a URL would be shown"),
        (["paths.metadata=s3://nobody/x{query}"], r"paths\.metadata=s3://nobody/x cannot be listed .*NO_SUCH_BUCKET"),
        (["paths.models=s3://suite/models"], r"paths\.models=s3://suite/models: expected a folder that every machine"),
        (["paths.cache=s3://suite/cache"], r"paths\.cache=s3://suite/cache: expected a folder that every machine"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str], said: str, pets: tuple[Path, Bucket], s3: S3, capfd: pytest.CaptureFixture[str]
) -> None:
    """Before Ray is started, with exit code 2; and a key is not repeated."""
    query = s3.url("").partition("?")[2]
    base = ["model=tiny", f"paths.raw_data={s3.url('suite/raw')}"]
    given = [each.format(query=f"?{query}") for each in arguments]

    exit_code = main(["ds=PETS", *base, *given])

    output = capfd.readouterr().out
    *_, line = output.strip().splitlines()
    assert exit_code == 2
    assert re.search(said, line), line
    assert "hush" not in output


def test_google_does_not_try_for_a_quarter_of_an_hour() -> None:
    """Unless the URL says so."""
    limits = [_bucket(f"gs://anonymous@pets/raw{query}").filesystem for query in ("", "?retry_limit_seconds=90")]

    found = [each.__reduce__()[1][0]["retry_time_limit"].total_seconds() for each in limits]
    assert found == [20, 90]


def test_a_wrong_key_is_one_line(
    pets: tuple[Path, Bucket], s3: S3, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the server says, and what to look at."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stranger")

    assert main(["ds=PETS", "model=tiny", f"paths.raw_data={s3.url('suite/raw')}"]) == 2

    *_, line = capfd.readouterr().out.strip().splitlines()
    assert line.startswith("Error: paths.raw_data=s3://suite/raw cannot be listed (OSError: ")
    assert "are there credentials for it?" in line


def test_training_from_a_bucket(project: Project, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the variables that the documents name; only the command has them, Ray's workers hear from it."""
    shutil.copytree(project.folder / "data/raw_data", s3.folder / "suite/raw")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{s3.endpoint}")

    ended = project.train(
        "ds=DIGITS", "model=tiny", "augment=none", "trainer=cpu", "trainer.max_epochs=1",
        "paths.raw_data=s3://suite/raw", "paths.metadata=s3://suite/metadata", "paths.models=from-a-bucket",
    )  # fmt: skip

    assert ended.exit_code == 0, ended.output
    assert "120 pictures of 3 classes (prepared)" in ended.output
    assert project.metrics(ended.model)["epochs"] == 1
    assert (s3.folder / "suite/metadata/DIGITS" / CATALOG).is_file()


def test_the_bytes_of_a_folder_named_like_a_picture_are_not_asked_for(pets: tuple[Path, Bucket]) -> None:
    """`folder.png/` is a prefix: nothing lies at that name."""
    (found,) = read_pictures(pets[1], ["cat/folder.png"])

    assert isinstance(found, BadImage)
