"""The model folder: whole or absent, checked against its digests, safe to be handed around."""

import json
import os
import pickle
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from classifier.errors import BadModelFolder
from classifier.model_folder import Manifest, find_model, load_model, read_manifest
from classifier.onnx_export import export_onnx
from tests.conftest import write_tiny_model

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)


def logits(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        answer: torch.Tensor = load_model(folder).network(torch.from_numpy(PIXELS))
    return answer


def copied(tiny_model: Path, place: Path) -> Path:
    shutil.copytree(tiny_model, place)
    return place


def edited(folder: Path, **changes: Any) -> Path:
    """The folder, with fields of its manifest changed by hand."""
    plain = json.loads((folder / "classifier.json").read_text())
    (folder / "classifier.json").write_text(json.dumps(plain | changes))
    return folder


def test_what_was_written_is_what_loads(tmp_path: Path) -> None:
    """Weights, labels in code order, preprocessing, eval mode, float32 on the CPU."""
    folder = write_tiny_model(tmp_path / "PETS" / "default" / "d" / "t", labels=("zebra", "ant", "cat"), seed=3)
    model = load_model(folder)
    assert model.manifest.labels == ("zebra", "ant", "cat")
    assert model.manifest == read_manifest(folder)
    assert not any(module.training for module in model.network.modules())
    assert {parameter.dtype for parameter in model.network.parameters()} == {torch.float32}
    assert torch.equal(logits(folder), logits(folder))
    other = write_tiny_model(tmp_path / "PETS" / "default" / "d" / "u", labels=("zebra", "ant", "cat"), seed=4)
    assert not torch.equal(logits(folder), logits(other))
    assert read_manifest(folder).digest != read_manifest(other).digest


def test_nothing_else_is_left_in_the_folder_and_nothing_in_it_is_touched(tmp_path: Path) -> None:
    """Checkpoints and logs lie there as well; writing again replaces only what is the model's."""
    folder = tmp_path / "m" / "a" / "b" / "c"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "best.ckpt").write_text("kept")
    write_tiny_model(folder, labels=("a", "b"), seed=0)
    write_tiny_model(folder, labels=("b", "a"), seed=1)
    assert sorted(entry.name for entry in folder.iterdir()) == [
        "checkpoints",
        "classifier.json",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert (folder / "checkpoints" / "best.ckpt").read_text() == "kept"
    assert load_model(folder).manifest.labels == ("b", "a")


def test_whoever_may_read_one_file_may_read_them_all(tmp_path: Path) -> None:
    """A model folder that is shared can be loaded by others: safetensors ignores the umask."""
    before = os.umask(0o027)
    try:
        folder = write_tiny_model(tmp_path / "m", labels=("a", "b"), seed=0)
        export_onnx(folder, PIXELS)
    finally:
        os.umask(before)

    assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == dict.fromkeys(
        ("classifier.json", "config.json", "model.onnx", "model.safetensors", "preprocessor_config.json"), 0o640
    )


def test_a_file_that_only_its_owner_may_read_is_said_to_be_so(tiny_model: Path, tmp_path: Path) -> None:
    """Copying it again, which mends a damaged one, would not help."""
    if os.getuid() != 0:
        pytest.skip("needs root to become another user")
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        Path(name).chmod(0o755)
        folder = copied(tiny_model, Path(name) / "m")
        (folder / "model.safetensors").chmod(0o600)
        os.seteuid(1000)
        try:
            with pytest.raises(BadModelFolder, match=r"safetensors cannot be read: Permission denied; .*: chmod a\+r"):
                load_model(folder)
        finally:
            os.seteuid(0)


def test_a_folder_moved_and_renamed_answers_the_same(tiny_model: Path, tmp_path: Path) -> None:
    """And still calls itself by the name that it was trained under."""
    moved = copied(tiny_model, tmp_path / "my favourite (1)")
    assert torch.equal(logits(moved), logits(tiny_model))
    assert read_manifest(moved).name == "PETS/default/2026-11-22/14-03-55"
    assert read_manifest(moved).digest == read_manifest(tiny_model).digest


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_changed_file_is_refused(tiny_model: Path, tmp_path: Path, file: str) -> None:
    """One bit is enough; the message names the file and says what to do."""
    folder = copied(tiny_model, tmp_path / "m")
    data = bytearray((folder / file).read_bytes())
    data[-2] ^= 1
    (folder / file).write_bytes(data)
    with pytest.raises(BadModelFolder, match=rf"{file} is not the file that was written.*copy the whole"):
        load_model(folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_missing_file_is_refused(tiny_model: Path, tmp_path: Path, file: str) -> None:
    """Half a copy."""
    folder = copied(tiny_model, tmp_path / "m")
    (folder / file).unlink()
    with pytest.raises(BadModelFolder, match=rf"{file} cannot be read: No such file"):
        load_model(folder)


def test_a_fifo_in_place_of_the_weights_does_not_block(tiny_model: Path, tmp_path: Path) -> None:
    """Hashing it would wait for a writer for ever."""
    folder = copied(tiny_model, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(BadModelFolder, match=r"model\.safetensors"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema_version": 2}, "schema_version.*another version"),
        ({"schema_version": None}, "schema_version"),
        ({"labels": ["one"]}, "labels"),
        ({"surprise": 1}, "surprise"),
        ({"files": {}}, "states no digest of config.json"),
        ({"labels": ["dog", "cat"]}, "labels: found dog, cat.*config.json.*has cat, dog"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    """Another schema, or somebody's edit: swapped labels would swap every answer."""
    with pytest.raises(BadModelFolder, match=words) as caught:
        load_model(edited(copied(tiny_model, tmp_path / "m"), **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_torn_manifest_is_refused(tiny_model: Path, tmp_path: Path, content: bytes) -> None:
    """Whatever is in it, one line comes out."""
    folder = copied(tiny_model, tmp_path / "m")
    (folder / "classifier.json").write_bytes(content)
    with pytest.raises(BadModelFolder, match="another version, or damaged") as caught:
        read_manifest(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_model_folder_is_named_as_what_it_is(tmp_path: Path) -> None:
    """Missing, empty, or a file."""
    with pytest.raises(BadModelFolder, match="no such folder; expected a model folder"):
        read_manifest(tmp_path / "missing")
    with pytest.raises(BadModelFolder, match=r"no classifier\.json in it"):
        read_manifest(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadModelFolder):
        read_manifest(tmp_path / "file")


@pytest.mark.parametrize("outside", ["../outside.txt", "/etc/hostname", "sub/file", "..", ""])
def test_a_manifest_cannot_name_files_outside_its_folder(tiny_model: Path, tmp_path: Path, outside: str) -> None:
    """Nor be used to ask for the digest of another file."""
    folder = copied(tiny_model, tmp_path / "m")
    files = read_manifest(folder).files | {outside: "sha256:0"}
    with pytest.raises(BadModelFolder, match=r"outside the folder|cannot be read|not a file"):
        load_model(edited(folder, files=files))


def test_what_else_lies_in_the_folder_is_never_read(tiny_model: Path, tmp_path: Path) -> None:
    """A pickle, an adapter, an index of other weights and a Python file change nothing and are not run."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    folder = copied(tiny_model, tmp_path / "m")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/else", "peft_type": "LORA"}')
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "other.safetensors"}}')
    (folder / "modeling_resnet.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert torch.equal(logits(folder), logits(tiny_model))
    assert not (tmp_path / "ran").exists()


def test_weights_are_read_from_safetensors_only(tiny_model: Path, tmp_path: Path) -> None:
    """A pickle under the name of the weights, with a digest that fits, is still refused and not run."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    from classifier.model_folder import sha256

    folder = copied(tiny_model, tmp_path / "m")
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    files = read_manifest(folder).files | {"model.safetensors": sha256(folder / "model.safetensors")}
    with pytest.raises(BadModelFolder, match="cannot be loaded"):
        load_model(edited(folder, files=files))
    assert not (tmp_path / "ran").exists()


def test_digest_covers_what_an_answer_depends_on(tiny_model: Path) -> None:
    """Not the name, the date or the scores; but labels, weights and preprocessing."""
    manifest = read_manifest(tiny_model)
    same = manifest.model_copy(update={"name": "x", "created": "y", "metrics": {}})
    assert same.digest == manifest.digest
    spec = manifest.preprocess.model_copy(update={"max_pixels": 1})
    for other in ({"labels": ("dog", "cat")}, {"files": manifest.files | {"x": "y"}}, {"preprocess": spec}):
        assert manifest.model_copy(update=other).digest != manifest.digest
    assert Manifest.model_validate_json(manifest.model_dump_json()).digest == manifest.digest


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    """Several runs of two datasets; the newest of all is in the category that sorts first."""
    models = tmp_path / "models"
    for place in (
        "EXAMS/default/2026-11-21/10-00-00",
        "EXAMS/default/2026-11-22/09-00-00",
        "EXAMS/default/2026-11-22/08-59-59",
        "EXAMS/a-category/2026-12-01/00-00-01",
        "PETS/default/2026-01-01/00-00-00",
    ):
        (models / place).mkdir(parents=True)
        (models / place / "classifier.json").write_text("{}")
    (models / "EXAMS" / "default" / "2027-01-01" / "00-00-00").mkdir(parents=True)  # was never finished
    return models


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("EXAMS", "EXAMS/a-category/2026-12-01/00-00-01"),
        ("EXAMS/default", "EXAMS/default/2026-11-22/09-00-00"),
        ("EXAMS/default/", "EXAMS/default/2026-11-22/09-00-00"),
        ("PETS", "PETS/default/2026-01-01/00-00-00"),
    ],
)
def test_the_newest_model_of_a_dataset_or_category(models_dir: Path, asked: str, found: str) -> None:
    """By date and time, whatever the category is called; unfinished runs do not count."""
    assert find_model(asked, models_dir=models_dir) == models_dir / found


def test_a_folder_is_taken_as_it_is_named(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absolute, relative, or a part of the way into the models folder."""
    monkeypatch.chdir(models_dir.parent)
    expected = models_dir / "PETS/default/2026-01-01/00-00-00"
    for asked in (
        str(expected),
        "models/PETS/default/2026-01-01/00-00-00",
        "./models/PETS/default/2026-01-01/00-00-00/",
    ):
        assert find_model(asked, models_dir=Path("models")) == expected
    for asked in ("models/PETS", "models/PETS/default/", "models/PETS/default/2026-01-01", str(models_dir / "PETS")):
        assert find_model(asked, models_dir=Path("models")) == expected


@pytest.mark.parametrize(
    "asked",
    ["../models/EXAMS", "EXAMS/../PETS", "/etc", "CATS", "EXAMS/none", ".", "*", "a" * 5000, "nul\0l", "~nobody/x"],
)
def test_what_names_no_model_is_refused_with_those_that_exist(models_dir: Path, asked: str) -> None:
    """Climbing out, patterns and nonsense find nothing."""
    with pytest.raises(BadModelFolder, match="EXAMS, PETS") as caught:
        find_model(asked, models_dir=models_dir)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("asked", ["", "  "])
def test_no_model_named(models_dir: Path, asked: str) -> None:
    """`md=` left empty."""
    with pytest.raises(BadModelFolder, match=r"no model named.*EXAMS, PETS"):
        find_model(asked, models_dir=models_dir)


def test_no_models_at_all(tmp_path: Path) -> None:
    """Before the first training."""
    with pytest.raises(BadModelFolder, match=r"none; train one first: python -m training\.run ds=EXAMS"):
        find_model("EXAMS", models_dir=tmp_path / "models")


def test_a_part_of_a_model_folder_leads_to_the_folder(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who knows other programs names the weights, or a checkpoint."""
    monkeypatch.chdir(models_dir.parent)
    folder = Path("models/PETS/default/2026-01-01/00-00-00")
    (folder / "checkpoints").mkdir()
    for part in ("classifier.json", "checkpoints"):
        with pytest.raises(BadModelFolder, match=f"lies in the model folder {folder}: name that folder"):
            find_model(str(folder / part), models_dir=Path("models"))
