"""`python -m serving.batch` on small folders: results, odd inputs, arguments."""

import csv
import json
import os
import unicodedata
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from classifier.model_folder import read_manifest
from tests.conftest import write_tiny_model
from tests.serving.folders import job, job_process, picture, records, summary


def test_every_picture_gets_a_file_of_its_own_in_the_same_tree(tiny_model: Path, tmp_path: Path) -> None:
    """The suffix is kept and its case does not matter, so a.jpg, a.png, A.JPG and sub/a.jpg never overwrite each other."""
    names = ["a.jpg", "a.png", "A.JPG", "sub/a.jpg", "sub/deeper/b.JpEg", "c.webp", "d.bmp", "e.tif"]
    for seed, name in enumerate(names):
        picture(tmp_path / "in" / name, seed)

    assert job(tiny_model, tmp_path / "in", tmp_path / "out") == 0

    found = records(tmp_path / "out")
    assert sorted(found) == sorted(f"{name}.json" for name in names)
    assert all(record["file"] == str(tmp_path / "in" / name[: -len(".json")]) for name, record in found.items())


def test_a_record_has_the_keys_that_programs_read(tiny_model: Path, tmp_path: Path) -> None:
    """Two classes give two answers, where the first version of the program could not answer at all."""
    file = picture(tmp_path / "in" / "a.jpg")

    job(tiny_model, tmp_path / "in", tmp_path / "out")

    record = records(tmp_path / "out")["a.jpg.json"]
    manifest = read_manifest(tiny_model)
    first, second = record["predictions"]
    assert list(record) == [
        "file",
        "predictions",
        "top_3_predicted_labels",
        "top_3_predicted_codes",
        "top_3_probabilities",
        "model",
    ]
    assert record["file"] == str(file)
    assert record["model"] == {"name": "PETS/default/2026-11-22/14-03-55", "digest": manifest.digest}
    assert record["top_3_predicted_labels"] == [first["label"], second["label"]]
    assert record["top_3_predicted_codes"] == [first["code"], second["code"]]
    assert record["top_3_probabilities"] == [first["probability"], second["probability"]]
    assert manifest.labels[first["code"]] == first["label"]
    assert first["probability"] >= second["probability"]
    assert first["probability"] + second["probability"] == pytest.approx(1, abs=2e-6)


def test_odd_names_are_pictures_like_others(tiny_model: Path, tmp_path: Path) -> None:
    """Spaces, quotes, newlines, a leading dash, both Unicode forms of one name, bytes that are no UTF-8, 250 bytes."""
    names = [
        "with space.jpg",
        "-rf.jpg",
        "quo'te\".jpg",
        "new\nline.jpg",
        "комната 部屋.jpg",
        unicodedata.normalize("NFC", "é.jpg"),
        unicodedata.normalize("NFD", "é.jpg"),
        os.fsdecode(b"latin\xe9.jpg"),
        "x" * 247 + ".jpg",
        "x" * 248 + ".jpg",
        "[brackets].jpg",
        ".hidden.jpg",
    ]
    for seed, name in enumerate(names):
        picture(tmp_path / "in" / name, seed)

    assert job(tiny_model, tmp_path / "in", tmp_path / "out", "predict.format=json,csv,jsonl,parquet") == 0

    found = records(tmp_path / "out")
    assert sorted(record["file"] for record in found.values()) == sorted(str(tmp_path / "in" / name) for name in names)
    with open(tmp_path / "out" / "predictions.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert {row["file"] for row in csv.DictReader(file)} == {str(tmp_path / "in" / name) for name in names}


def test_what_cannot_be_read_is_told_apart_and_disturbs_no_neighbour(tiny_model: Path, tmp_path: Path) -> None:
    """Each odd input ends as unreadable with a reason, the rest is predicted, and the counts add up."""
    source = tmp_path / "in"
    good = [picture(source / f"good{seed}.jpg", seed) for seed in range(5)]
    (source / "empty.jpg").write_bytes(b"")
    (source / "text.jpg").write_text("not a picture")
    (source / "truncated.jpg").write_bytes(good[0].read_bytes()[:300])
    (source / "bomb.png").write_bytes(_png_of(100_000, 100_000))
    (source / "gone.jpg").symlink_to(source / "nowhere.jpg")
    (source / "itself.jpg").symlink_to(source / "itself.jpg")
    os.mkfifo(source / "fifo.jpg")
    picture(source / "folder.jpg" / "inside.png", 9)
    (source / "notes.txt").write_text("left alone")

    assert job(tiny_model, source, tmp_path / "out") == 3

    found = summary(tmp_path / "out")
    assert found["listed"] == 13
    assert found["predicted"] == 6
    assert found["unreadable"] == 7
    assert found["already_done"] == 0
    assert found["other_files"] == 1
    assert sum(found["classes"].values()) == 6
    with open(tmp_path / "out" / "errors.csv", newline="") as file:
        reasons = {Path(row["file"]).name: row["reason"] for row in csv.DictReader(file)}
    assert reasons == {
        "empty.jpg": "empty",
        "text.jpg": "unsupported_format",
        "truncated.jpg": "unreadable",
        "bomb.png": "too_many_pixels",
        "gone.jpg": "unreadable",
        "itself.jpg": "unreadable",
        "fifo.jpg": "not_a_file",
    }
    answers = records(tmp_path / "out")
    assert answers["empty.jpg.json"] == {
        "file": str(source / "empty.jpg"),
        "error": {"type": "EmptyImage", "message": "0 bytes"},
    }
    assert "predictions" in answers["folder.jpg/inside.png.json"]


def test_an_empty_folder_is_no_error(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()

    assert job(tiny_model, tmp_path / "in", tmp_path / "out") == 0

    assert summary(tmp_path / "out")["listed"] == 0


def test_all_formats_hold_the_same_answers(tiny_model: Path, tmp_path: Path) -> None:
    for seed in range(20):
        picture(tmp_path / "in" / f"{seed}.png", seed)
    (tmp_path / "in" / "bad.png").write_bytes(b"")

    assert job(tiny_model, tmp_path / "in", tmp_path / "out", "predict.format=json,csv,jsonl,parquet") == 3

    by_file = {record["file"]: record for record in records(tmp_path / "out").values()}
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert {record["file"]: record for record in map(json.loads, lines)} == by_file
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == sorted(by_file)
    for row in rows:
        record = by_file[row["file"]]
        if "error" in record:
            assert (row["error"], row["label_1"]) == (record["error"]["type"], "")
        else:
            labels = [row["label_1"], row["label_2"]]
            assert labels == record["top_3_predicted_labels"]
            assert float(row["probability_1"]) == record["top_3_probabilities"][0]
    for row in pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist():
        expected = by_file[row["file"]].get("predictions")
        found = row["predictions"]
        assert (found is None) == (expected is None)
        assert [entry["label"] for entry in found or []] == [entry["label"] for entry in expected or []]


def test_top_k_is_capped_at_the_number_of_classes(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m" / "a" / "b" / "c", labels=tuple("abcde"), seed=1)
    picture(tmp_path / "in" / "a.jpg")

    job(model, tmp_path / "in", tmp_path / "two", "top_k=2")
    job(model, tmp_path / "in", tmp_path / "nine", "top_k=9")

    assert len(records(tmp_path / "two")["a.jpg.json"]["predictions"]) == 2
    nine = records(tmp_path / "nine")["a.jpg.json"]
    assert len(nine["predictions"]) == 5
    assert len(nine["top_3_probabilities"]) == 3


def test_one_file_is_printed_and_written(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "photo (1).jpg")

    assert job(tiny_model, "nowhere", tmp_path / "out", "file=photo (1).jpg") == 0

    printed = capfd.readouterr().out
    record = records(tmp_path / "out")["photo (1).jpg.json"]
    assert json.loads(printed[printed.index("{") : printed.rindex("}") + 1]) == record
    assert record["file"] == str(tmp_path / "photo (1).jpg")
    assert not (tmp_path / "out" / "summary.json").exists(), "one file says nothing about the folder"


def test_one_file_that_cannot_be_read_says_why(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"")

    assert job(tiny_model, "nowhere", tmp_path / "out", f"file={tmp_path / 'bad.jpg'}") == 3

    assert '"message": "0 bytes"' in capfd.readouterr().out


def test_the_newest_model_of_a_dataset_is_taken(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model.parents[4])
    picture(tmp_path / "in" / "a.jpg")

    assert job(Path("PETS"), tmp_path / "in", tmp_path / "out") == 0

    assert summary(tmp_path / "out")["model"]["name"] == "PETS/default/2026-11-22/14-03-55"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["predict.input_dir=missing"], "/missing: no such folder"),
        (["predict.format=xml"], "json, jsonl, csv, parquet"),
        (["md=NOTHING"], "NOTHING"),
        (["md=null"], "md: not set"),
        (["file=missing.jpg"], "missing.jpg: no such file"),
        (["file=in/"], "file=in/ is a folder; for a folder: predict.input_dir=in/"),
        (["predict.outptu_dir=x"], "did you mean predict.output_dir?"),
        (["predict.input_dir=gopher://x/y"], "gopher://"),
        (["top_k=0"], "top_k=0"),
    ],
)
def test_a_wrong_argument_is_one_line_and_leaves_nothing_behind(
    settings: list[str],
    expected: str,
    tiny_model: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "in" / "a.jpg")

    assert job(tiny_model, tmp_path / "in", tmp_path / "out", *settings) == 2

    line = [line for line in capfd.readouterr().out.splitlines() if line.startswith("Error: ")]
    assert len(line) == 1
    assert expected in line[0]
    assert not (tmp_path / "out").exists()


def test_a_results_folder_that_cannot_be_written_is_one_line(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Here a folder stands where a picture's JSON should go."""
    picture(tmp_path / "in" / "a.jpg")
    (tmp_path / "out" / "a.jpg.json").mkdir(parents=True)

    assert job(tiny_model, tmp_path / "in", tmp_path / "out") == 2

    assert f"Error: {tmp_path / 'out' / 'a.jpg.json'} cannot be written" in capfd.readouterr().out


def test_help_names_every_setting_with_its_meaning(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    process = job_process(tmp_path, tmp_path, tmp_path / "out", "--help")
    printed, _ = process.communicate(timeout=60)

    assert process.returncode == 0
    for key in ("md", "file", "num_workers", "device", "top_k", "batch_size", "force", "predict.format"):
        assert any(line.split()[:1] == [key] and len(line.split()) > 3 for line in printed.splitlines()), key


def _png_of(width_px: int, height_px: int) -> bytes:
    """The header of a PNG that would need gigabytes."""
    import struct
    import zlib

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(b"\0" * 64)) + part(b"IEND", b"")
