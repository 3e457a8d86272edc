"""The same picture gets the same answer in training, over HTTP and in the folder job."""

from pathlib import Path

import numpy as np
import pytest
import requests

from classifier.predict import Predictor
from tests.serving.conftest import pictures_of_every_kind
from tests.serving.folders import job, records
from training.stream import read_block, stream_blocks


def test_every_kind_of_picture_is_answered_alike_in_all_three(url: str, animals: Path, tmp_path: Path) -> None:
    """Training's stream gives the pixels, the Predictor their probabilities; the other two must say just that."""
    import ray

    pictures = pictures_of_every_kind()
    source, target = tmp_path / "input", tmp_path / "out"
    source.mkdir()
    for name, data in pictures.items():
        (source / name).write_bytes(data)
    predictor = Predictor.load(animals, device="cpu")
    blocks = stream_blocks(
        list(pictures),
        root=source,
        spec=predictor.spec,
        mean_bytes=1e3,
        task_cpus=1,
        tasks=2,
        name="alike",
        shards=None,
    )
    opened = [read_block(ray.get(block)) for block, _ in blocks]
    pixels, readable = (np.concatenate(parts) for parts in zip(*opened, strict=True))

    assert job(animals, source, target, f"top_k={len(predictor.labels)}") == 0
    in_folder = records(target)

    assert readable.all()
    for row, (name, data) in enumerate(pictures.items()):
        trained_on = dict(
            zip(predictor.labels, predictor.probabilities(pixels[row : row + 1])[0].tolist(), strict=True)
        )
        served = requests.post(f"{url}/predict", data=data, timeout=10).json()["predictions"]
        batched = in_folder[f"{name}.json"]["predictions"]
        assert {each["label"]: each["probability"] for each in batched} == pytest.approx(trained_on, rel=1e-5), name
        assert [each["label"] for each in served] == [each["label"] for each in batched][:3], name
        assert [each["probability"] for each in served] == pytest.approx(
            [trained_on[each["label"]] for each in served], rel=1e-5
        ), name
