"""A model's preprocessing is asked for once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from classifier import image, processor
from classifier.errors import UnknownModel
from classifier.preprocess import PreprocessSpec
from tests.classifier.test_network import RESNET, saved


def _load(place: Path, remember_in: Path, size_px: int | None = None) -> PreprocessSpec:
    return processor.load_preprocess(str(place), size_px=size_px, max_pixels=image.MAX_PIXELS, remember_in=remember_in)


def test_the_answer_is_kept_until_what_it_follows_from_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's files and the settings are part of the question."""
    place, kept = saved(tmp_path / "hub", RESNET), tmp_path / "cache"
    asked = []
    find = processor._find
    monkeypatch.setattr(processor, "_find", lambda name, **settings: asked.append(name) or find(name, **settings))

    first = _load(place, kept)
    assert (_load(place, kept), len(asked)) == (first, 1)
    assert (_load(place, kept, size_px=48).height_px, len(asked)) == (48, 2)
    config = json.loads((place / "preprocessor_config.json").read_text())
    (place / "preprocessor_config.json").write_text(json.dumps(config | {"image_mean": [0.1, 0.2, 0.3]}))
    assert (_load(place, kept).mean, len(asked)) == ((0.1, 0.2, 0.3), 3)


def test_a_damaged_answer_is_asked_again(tmp_path: Path) -> None:
    """Nothing half written can be believed."""
    place, kept = saved(tmp_path / "hub", RESNET), tmp_path / "cache"
    first = _load(place, kept)
    (file,) = kept.iterdir()
    file.write_text(file.read_text()[:50])

    assert _load(place, kept) == first
    assert [each.name for each in kept.iterdir()] == [file.name]


def test_a_folder_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    """So does a file in its place."""
    place = saved(tmp_path / "hub", RESNET)
    (tmp_path / "cache").write_text("")

    assert _load(place, tmp_path / "cache").height_px == 32


def test_a_model_that_is_not_there_is_refused_as_ever(tmp_path: Path) -> None:
    """And nothing is kept of it."""
    with pytest.raises(UnknownModel, match="no such folder"):
        _load(tmp_path / "nowhere", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_known_answer_needs_no_pytorch(tmp_path: Path) -> None:
    """Its import takes longer than all else that happens before Ray is started."""
    place, kept = saved(tmp_path / "hub", RESNET), tmp_path / "cache"
    _load(place, kept)
    code = (
        "import sys; from pathlib import Path; from classifier.processor import load_preprocess;"
        f"load_preprocess({str(place)!r}, size_px=None, max_pixels={image.MAX_PIXELS}, remember_in=Path({str(kept)!r}));"
        "import training.run, training.job, training.experiment, training.checkpoint, training.catalog;"
        "print(sorted({'torch', 'transformers', 'lightning'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)

    assert answer.stdout.strip() == "[]"
