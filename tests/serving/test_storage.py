"""Local folders and buckets behind one interface."""

from pathlib import Path

import fsspec
import pytest

from classifier import image
from classifier.errors import BadImage, ConfigError, OutputError, TooManyBytes
from cluster.bucket import Bucket
from serving.storage import LocalStorage, claimed, open_storage
from tests.conftest import S3
from tests.serving.folders import job, picture


@pytest.fixture
def bucket() -> str:
    """A bucket in memory, reached as s3:// or gs:// would be, by a URL."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs.clear()
    memory.pseudo_dirs.append("")
    return "memory://bucket"


def test_a_bucket_is_predicted_like_a_folder(tiny_model: Path, tmp_path: Path, bucket: str) -> None:
    """Same tree, same records but for the file's address; a second run finds everything done; exit codes too."""
    memory = fsspec.filesystem("memory")
    for seed, name in enumerate(["a.jpg", "sub/a.jpg", "sub/deep/b.png", "ü ö.webp"]):
        file = picture(tmp_path / "in" / name, seed)
        memory.pipe_file(f"/bucket/in/{name}", file.read_bytes())
    memory.pipe_file("/bucket/in/bad.jpg", b"no picture")
    (tmp_path / "in" / "bad.jpg").write_bytes(b"no picture")
    memory.pipe_file("/bucket/in/notes.txt", b"left alone")

    assert job(tiny_model, tmp_path / "in", tmp_path / "out", "predict.format=json,csv") == 3
    assert job(tiny_model, f"{bucket}/in", f"{bucket}/out", "predict.format=json,csv") == 3

    found = {name: memory.cat_file(name).decode() for name in memory.find("/bucket/out") if "/.batch/" not in name}
    for name in ("a.jpg", "sub/a.jpg", "sub/deep/b.png", "ü ö.webp", "bad.jpg"):
        local = (tmp_path / "out" / f"{name}.json").read_text()
        assert found[f"/bucket/out/{name}.json"] == local.replace(str(tmp_path), bucket)
    table = (tmp_path / "out" / "predictions.csv").read_text()
    assert found["/bucket/out/predictions.csv"] == table.replace(str(tmp_path), bucket)

    assert job(tiny_model, f"{bucket}/in", f"{bucket}/out") == 3
    assert '"already_done": 4' in memory.cat_file("/bucket/out/summary.json").decode()


def test_a_real_server_is_read_and_written(tiny_model: Path, s3: S3) -> None:
    """S3, not only memory; what says where the server is stays out of the records, and nothing is done twice."""
    for seed, name in enumerate(["a.jpg", "sub/a.jpg", "ü ö.webp"]):
        picture(s3.folder / "suite" / "in" / name, seed)

    assert job(tiny_model, s3.url("suite/in"), s3.url("suite/out"), "predict.format=json,csv") == 0
    assert job(tiny_model, s3.url("suite/in"), s3.url("suite/out"), "predict.format=json,csv") == 0

    out = s3.folder / "suite" / "out"
    assert '"file": "s3://suite/in/sub/a.jpg"' in (out / "sub/a.jpg.json").read_text()
    assert '"already_done": 3' in (out / "summary.json").read_text()


def test_a_bucket_that_is_not_there_is_one_line(
    tiny_model: Path, tmp_path: Path, bucket: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert job(tiny_model, f"{bucket}/nowhere", tmp_path / "out") == 2

    assert f"Error: predict.input_dir={bucket}/nowhere: no such folder" in capfd.readouterr().out


def test_a_job_that_brings_its_working_directory_must_not_keep_its_results_there(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ray job submit --working-dir .` runs in a copy that Ray removes, and the results with it."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}}')
    copy, kept = tmp_path / "copy", tmp_path / "kept"
    file = picture(copy / "in" / "a.jpg")
    monkeypatch.chdir(copy)

    assert job(tiny_model, "in", "out") == 2
    assert job(tiny_model, "in", "out", f"file={file}") == 2
    refusals = capfd.readouterr().out
    assert refusals.count(f"Error: predict.output_dir={copy}/out is in the copy of the working directory") == 2
    assert not (copy / "out").exists()

    assert job(tiny_model, "in", kept) == 0


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    storage.write_all([("sub/a", b"old")])

    with pytest.raises(RuntimeError), storage.writing("sub/a") as stream:
        stream.write(b"half")
        raise RuntimeError

    assert storage.read("sub/a") == b"old"
    assert storage.names(".batch/scratch") == []


def test_a_write_to_a_bucket_that_fails_leaves_no_half_object(bucket: str) -> None:
    storage = open_storage(bucket, key="x")

    with pytest.raises(OutputError, match="memory://bucket/a cannot be written"), storage.writing("a") as stream:
        stream.write(b"half")
        raise RuntimeError

    assert storage.names("") == []


def test_too_many_bytes_are_not_fetched(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "MAX_BYTES", 10)
    fsspec.filesystem("memory").pipe_file("/bucket/big.jpg", b"x" * 11)
    storage = open_storage(bucket, key="x")

    (found,) = storage.read_pictures(["big.jpg"])

    assert isinstance(found, TooManyBytes)


def test_a_picture_that_has_gone_is_unreadable(bucket: str, tmp_path: Path) -> None:
    for storage in (open_storage(bucket, key="x"), open_storage(str(tmp_path), key="x")):
        (found,) = storage.read_pictures(["gone.jpg"])
        assert type(found) is BadImage


def test_local_places_are_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert open_storage("in", key="x") == LocalStorage(str(tmp_path / "in"))
    assert open_storage(f"file://{tmp_path}/in", key="x") == LocalStorage(str(tmp_path / "in"))
    assert isinstance(open_storage("memory://in", key="x"), Bucket)


def test_an_unknown_scheme_says_what_is_known() -> None:
    with pytest.raises(ConfigError, match=r"gopher://.*s3:// or gs://"):
        open_storage("gopher://x", key="predict.input_dir")


def test_what_a_killed_run_was_writing_is_cleared_away(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    scratch = tmp_path / ".batch" / "scratch"
    scratch.mkdir(parents=True)
    (scratch / "half").write_bytes(b"half a file")

    with claimed(storage):
        assert list(scratch.iterdir()) == []
