"""From a model folder and pixels to the top few labels, the same as the rest of the world gets from the folder."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from classifier.errors import BadModelFolder, ClusterError, ConfigError
from classifier.model_folder import load_model, read_manifest
from classifier.predict import Predictor, top
from classifier.preprocess import load_pixels
from tests.classifier.pictures import encoded, photo
from tests.conftest import write_tiny_model


def test_probabilities_are_the_softmax_of_the_network(tiny_model: Path) -> None:
    """Rows sum to one, in the order that the pictures came in."""
    pixels = np.random.default_rng(1).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    predictor = Predictor.load(tiny_model)
    found = predictor.probabilities(pixels)
    with torch.inference_mode():
        expected = torch.softmax(load_model(tiny_model).network(torch.from_numpy(pixels)), dim=1).numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(predictor.probabilities(pixels[3:4]), found[3:4], atol=1e-6)
    assert predictor.probabilities(pixels[:0]).shape == (0, 2)


def test_predictor_states_what_it_is(tiny_model: Path) -> None:
    """Labels, preprocessing and digest come from the manifest."""
    predictor = Predictor.load(tiny_model, device="cpu", threads=1)
    predictor.warm_up(batch_size=3)
    assert predictor.labels == ("cat", "dog")
    assert (predictor.backend, predictor.device) == ("torch", "cpu")
    assert predictor.spec.height_px == 32
    assert predictor.manifest == read_manifest(tiny_model)


def test_transformers_pipeline_gives_the_same_answer_from_the_same_folder(tmp_path: Path) -> None:
    """Its image-classification pipeline is what other people have; the network's own size leaves no room for decode."""
    labels = ("a", "b", "c", "d", "e")
    folder = write_tiny_model(tmp_path / "X" / "default" / "d" / "t", labels=labels, seed=5)
    file = tmp_path / "a.png"
    file.write_bytes(encoded(photo(32, 32), "PNG"))
    pipeline = transformers.pipeline("image-classification", model=str(folder), device="cpu")
    theirs = pipeline(str(file), top_k=3)
    predictor = Predictor.load(folder)
    probabilities = predictor.probabilities(load_pixels(file.read_bytes(), predictor.spec)[None])[0]
    ours = top(probabilities, labels=predictor.labels, k=3)
    assert [answer["label"] for answer in theirs] == [answer.label for answer in ours]
    for their, our in zip(theirs, ours, strict=True):
        assert their["score"] == pytest.approx(our.probability, abs=1e-3)


def test_top_is_capped_at_the_number_of_classes() -> None:
    """Two classes have no third place."""
    found = top(np.array([0.25, 0.75]), labels=("good", "bad"), k=3)
    assert found == [("bad", 1, 0.75), ("good", 0, 0.25)]
    assert [type(value) for value in found[0]] == [str, int, float]  # JSON takes them as they are


def test_ties_go_to_the_lower_code() -> None:
    """So an answer never depends on how something is sorted."""
    found = top(np.array([0.1, 0.3, 0.3, 0.3]), labels=("a", "b", "c", "d"), k=2)
    assert [answer.code for answer in found] == [1, 2]
    assert [answer.code for answer in top(np.full(300, 1 / 300), labels=[str(i) for i in range(300)], k=5)] == [
        *range(5)
    ]


def test_a_gpu_that_is_not_there_is_an_error_and_never_a_slow_answer(tiny_model: Path) -> None:
    """`device=gpu` means it; `auto` takes what there is."""
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ClusterError, match="no GPU here; set device=cpu"):
        Predictor.load(tiny_model, device="gpu")
    with pytest.raises(ConfigError, match="backend=onnx runs on CPUs only"):
        Predictor.load(tiny_model, device="gpu", backend="onnx")
    assert Predictor.load(tiny_model, device="auto").device == "cpu"


def test_a_folder_without_onnx_says_so(tiny_model: Path) -> None:
    """Asked for by name it must not be replaced by something else."""
    with pytest.raises(BadModelFolder, match=r"has no model\.onnx \(training did not write one\); set backend=torch"):
        Predictor.load(tiny_model, backend="onnx")


def test_importing_it_imports_neither_torch_nor_transformers() -> None:
    """A serving replica that answers with ONNX Runtime starts in a tenth of the time."""
    code = (
        "import sys; import classifier.predict, classifier.model_folder, classifier.preprocess, classifier.onnx_export;"
        "sys.exit(bool({'torch', 'transformers', 'onnxruntime', 'onnx'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_real_photos_get_the_answers_that_the_pipeline_gives(shared: Path, tmp_path: Path) -> None:
    """A real checkpoint with its thousand classes, on photos of the network's own size."""
    from classifier import image
    from classifier.model_folder import write_model
    from classifier.network import Network, read_backbone
    from classifier.processor import load_preprocess

    place = shared / "models" / "mobilenet-v1-0.25-224-imagenet1k"
    backbone = read_backbone(place / "config.json", place / "model.safetensors")
    labels = tuple(backbone.config.id2label[code] for code in range(1000))
    spec = load_preprocess(str(place), size_px=None, max_pixels=image.MAX_PIXELS)
    write_model(
        tmp_path / "m",
        Network(backbone, spec),
        name="imagenet",
        labels=labels,
        spec=spec,
        dataset={},
        metrics={},
        created="2026-11-22T00:00:00",
    )
    pipeline = transformers.pipeline("image-classification", model=str(tmp_path / "m"), device="cpu")
    predictor = Predictor.load(tmp_path / "m")
    for number, original in enumerate(sorted(shared.glob("data/trashnet5/*/*"))[::200]):
        file = tmp_path / f"{number}.png"
        picture = image.decode(original.read_bytes()).resize((256, 256), Image.Resampling.BILINEAR)
        file.write_bytes(encoded(picture, "PNG"))
        probabilities = predictor.probabilities(load_pixels(file.read_bytes(), spec)[None])[0]
        ours = top(probabilities, labels=labels, k=3)
        theirs = pipeline(str(file), top_k=3)
        assert [answer.label for answer in ours] == [answer["label"] for answer in theirs]
        assert [answer.probability for answer in ours] == pytest.approx([a["score"] for a in theirs], abs=1e-3)
