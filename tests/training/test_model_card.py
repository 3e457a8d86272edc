"""The model card says where the weights come from."""

from pathlib import Path

import pytest

from training.loop import Job
from training.model_card import write_model_card
from training.run_folder import RunFolder
from training.settings import read_settings


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.model_name=google/some-vit"], "Fine-tuned from `google/some-vit` on the dataset PETS (4 pictures"),
        (["model=tiny"], "Trained from random weights (`resnet`) on the dataset PETS (4 pictures"),
    ],
)
def test_weights_that_were_random_are_not_called_fine_tuned(overrides: list[str], said: str, tmp_path: Path) -> None:
    """`model.model_name` counts for nothing where `model.config` is set."""
    split = {"cat": 2, "dog": 2}
    job = Job(
        config=read_settings(["ds=PETS", *overrides]).model_dump(mode="json"),
        spec={},
        labels=("cat", "dog"),
        codes={},
        test_paths=[],
        dataset={"name": "PETS", "fingerprint": "sha256:0", "counts": {"train": split, "val": split, "test": split}},
        folder=tmp_path,
        run="run",
        attempt="attempt",
        threads=1,
        feed=None,
    )

    write_model_card(RunFolder(tmp_path), job, {})

    assert said in (tmp_path / "README.md").read_text()
