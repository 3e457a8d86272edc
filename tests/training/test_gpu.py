"""The whole command on a GPU, where there is one."""

import numpy as np
import pytest
import torch

from classifier.predict import Predictor
from tests.training.conftest import Project
from training.batches import Pixels

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_a_run_takes_the_gpu_and_its_model_answers_alike_everywhere(project: Project) -> None:
    """Trained and scored on the GPU in bf16; the model folder is one that a laptop can use."""
    ended = project.train("ds=DIGITS", "model=tiny", "augment=none", "trainer.max_epochs=8", "trainer=gpu")

    assert ended.exit_code == 0, ended.output
    assert "GPU" in ended.output
    assert project.metrics(ended.model)["accuracy"] >= 0.8, ended.output
    pixels = np.random.default_rng(0).integers(0, 256, (16, 3, 32, 32), dtype=np.uint8)
    on_gpu = Predictor.load(project.folder / ended.model, device="gpu")
    on_cpu = Predictor.load(project.folder / ended.model, device="cpu", backend="torch")
    assert (on_gpu.device, on_cpu.device) == ("cuda", "cpu")
    # convolutions on a GPU are computed in TF32
    np.testing.assert_allclose(on_gpu.probabilities(pixels), on_cpu.probabilities(pixels), atol=5e-3)
    with_onnx = Predictor.load(project.folder / ended.model, backend="onnx")
    np.testing.assert_allclose(with_onnx.probabilities(pixels), on_cpu.probabilities(pixels), atol=1e-3)


def test_a_compiled_network_trains_and_is_saved_as_the_plain_one(project: Project) -> None:
    """`trainer.compile=true` changes the speed; the folder is the same."""
    ended = project.train(
        "ds=DIGITS", "model=tiny", "augment=none", "trainer.max_epochs=2", "trainer=gpu", "trainer.compile=true"
    )

    assert ended.exit_code == 0, ended.output
    assert Predictor.load(project.folder / ended.model, device="gpu").labels


def test_pictures_are_copied_once_on_their_way_to_the_gpu() -> None:
    """Out of the decoded block straight into pinned memory, from which the copy to the device is asynchronous."""
    block = np.arange(4 * 3 * 2 * 2, dtype=np.uint8).reshape(4, 3, 2, 2)
    pixels = Pixels(None, "train", pin=True)
    pixels._blocks, pixels._ends = [(block, np.ones(4, dtype=bool))], [4]

    rows, _ = pixels.rows(np.array([2, 0]))

    assert rows.is_pinned()
    assert np.array_equal(rows.numpy(), block[[2, 0]])
