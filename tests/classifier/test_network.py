"""A Hugging Face model with a new head: built, repaired, in training mode; or one line that says why not."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, BertConfig

from classifier import image
from classifier.errors import ConfigError, UnknownModel
from classifier.network import Network, load_network
from classifier.preprocess import PreprocessSpec, load_pixels
from classifier.processor import load_preprocess
from tests.classifier.pictures import encoded, photo

LABELS = ("cat", "dog", "fish")
RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
VIT = {
    "model_type": "vit",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
MOBILENET_V1 = {"model_type": "mobilenet_v1", "depth_multiplier": 0.25, "image_size": 64, "min_depth": 4}
MOBILENET_V2 = {"model_type": "mobilenet_v2", "depth_multiplier": 0.25, "image_size": 64, "min_depth": 4}
EFFICIENTNET = {
    "model_type": "efficientnet",
    "image_size": 64,
    "width_coefficient": 0.25,
    "depth_coefficient": 0.2,
    "hidden_dim": 320,
}


def spec_for(config: dict[str, Any], *, size_px: int | None = 32) -> PreprocessSpec:
    return load_preprocess("tiny", size_px=size_px, max_pixels=image.MAX_PIXELS, config=config)


def built(config: dict[str, Any], labels: tuple[str, ...] = LABELS) -> Network:
    torch.manual_seed(0)
    return load_network("tiny", labels=labels, spec=spec_for(config), config=config)


def saved(
    folder: Path, config: dict[str, Any], *, labels: int = 7, dtype: torch.dtype = torch.float32, head: bool = True
) -> Path:
    """A checkpoint as the hub would hold it."""
    fields = {key: value for key, value in config.items() if key != "model_type"}
    kind = AutoModelForImageClassification if head else AutoModel
    model = kind.from_config(AutoConfig.for_model(config["model_type"], num_labels=labels, **fields))
    model.to(dtype).save_pretrained(folder)
    spec = spec_for(config)
    (folder / "preprocessor_config.json").write_text(json.dumps(spec.processor))
    return folder


@pytest.mark.parametrize("config", [RESNET, VIT, MOBILENET_V1, MOBILENET_V2, EFFICIENTNET])
def test_a_config_alone_gives_a_network_that_trains(config: dict[str, Any]) -> None:
    """Random weights, nothing to download: the loss on one batch goes down."""
    network = built(config)
    pixels = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    codes = torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(network(pixels), codes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < losses[0]
    assert network.backbone.config.id2label == dict(enumerate(LABELS))


def test_everything_is_in_training_mode() -> None:
    """`from_pretrained` returns eval mode and Lightning leaves it so: dropout and BatchNorm would be off."""
    assert all(module.training for module in built(MOBILENET_V2).modules())


def test_a_head_of_other_classes_is_replaced_and_the_rest_kept(tmp_path: Path) -> None:
    """Seven classes in the checkpoint, three wanted."""
    place = saved(tmp_path / "hub", RESNET)
    network = load_network(str(place), labels=LABELS, spec=spec_for(RESNET))
    before = AutoModelForImageClassification.from_pretrained(place)
    assert network.training
    kept = [name for name in before.state_dict() if "classifier" not in name]
    assert kept
    for name in kept:
        assert torch.equal(network.backbone.state_dict()[name], before.state_dict()[name])
    assert network(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 3)


def test_a_feature_extractor_without_a_head_gets_one(tmp_path: Path) -> None:
    """The hub's Image Feature Extraction category."""
    place = saved(tmp_path / "hub", VIT, head=False)
    network = load_network(str(place), labels=("a", "b"), spec=spec_for(VIT))
    assert network(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_checkpoint_is_trained_in_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    """transformers would keep the precision it was saved in."""
    place = saved(tmp_path / "hub", RESNET, dtype=dtype)
    assert json.loads((place / "config.json").read_text())["dtype"] != "float32"
    network = load_network(str(place), labels=LABELS, spec=spec_for(RESNET))
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert network(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).dtype == torch.float32


@pytest.mark.parametrize("config", [MOBILENET_V1, MOBILENET_V2, EFFICIENTNET])
def test_tensorflows_batch_norm_momentum_is_turned_round(config: dict[str, Any]) -> None:
    """0.997 in PyTorch means that the statistics are those of the last batch."""
    norms = [module for module in built(config).modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert {module.momentum for module in norms} <= {0.05, 0.1}


def test_running_statistics_survive_one_odd_batch() -> None:
    """What the momentum is for: a last batch of black pictures must not become the statistics."""
    network = built(MOBILENET_V1)
    norm = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    for _ in range(60):
        network(pixels)
    assert norm.running_var is not None
    before = norm.running_var.clone()
    network(torch.zeros(8, 3, 32, 32, dtype=torch.uint8))
    assert torch.allclose(norm.running_var, before, rtol=0.11)


@pytest.mark.parametrize(("config", "most"), [(MOBILENET_V1, 0.001), (MOBILENET_V2, 0.2)])
def test_tensorflows_keep_probability_is_turned_round(config: dict[str, Any], most: float) -> None:
    """MobileNet's configs say dropout 0.999 and 0.8, which is what TensorFlow keeps."""
    rates = [module.p for module in built(config).modules() if isinstance(module, nn.Dropout)]
    assert rates
    assert max(rates) == pytest.approx(most)


@pytest.mark.parametrize("config", [MOBILENET_V1, MOBILENET_V2], ids=["v1", "v2"])
@pytest.mark.parametrize("side_px", [64, 51])
def test_convolutions_pad_by_themselves_and_answer_as_before(config: dict[str, Any], side_px: int) -> None:
    """The same logits and gradients as the network of transformers, which copies every input to pad it."""
    network = built(config).eval()
    plain = AutoModelForImageClassification.from_config(network.backbone.config)
    plain.load_state_dict(network.backbone.state_dict())
    plain.eval()
    pixels = torch.randint(0, 256, (2, 3, side_px, side_px), dtype=torch.uint8)
    ours, theirs = network(pixels), plain(pixel_values=network.normalise(pixels)).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for logits in (ours, theirs):
        logits.square().sum().backward()
    first, second = (next(iter(model.parameters())).grad for model in (network, plain))
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)
    own = [layer.convolution for layer in network.modules() if hasattr(layer, "convolution")]
    assert all(max(each.padding) == max(each.kernel_size) // 2 for each in own if max(each.stride) == 1)
    assert network.backbone.config.tf_padding  # as it is saved


def test_normalisation_lies_in_the_network_and_happens_once(tmp_path: Path) -> None:
    """uint8 in: the logits are those of the backbone on the processor's own floats."""
    place = saved(tmp_path / "hub", RESNET)
    spec = load_preprocess(str(place), size_px=None, max_pixels=image.MAX_PIXELS)
    network = load_network(str(place), labels=LABELS, spec=spec).eval()
    picture = photo(90, 70)
    floats = AutoImageProcessor.from_pretrained(place, backend="pil")(picture, return_tensors="pt")["pixel_values"]
    pixels = torch.from_numpy(load_pixels(encoded(picture, "PNG"), spec))[None]
    with torch.inference_mode():
        expected = network.backbone(pixel_values=floats).logits
        assert torch.allclose(network(pixels), expected, atol=1e-5)
        assert torch.allclose(network(pixels.float()), expected, atol=1e-5)  # augmented batches are floats in 0..255
    assert not {"mean", "std"} & set(network.state_dict())  # they come from the spec, never from a checkpoint


def test_real_checkpoints_load(shared: Path) -> None:
    """Heads of 1,000 classes and none; geometry and mean from their own processors."""
    for place in sorted((shared / "models").iterdir()):
        spec = load_preprocess(str(place), size_px=None, max_pixels=image.MAX_PIXELS)
        assert (spec.engine, spec.height_px, spec.width_px) == ("pillow", 224, 224)
        network = load_network(str(place), labels=LABELS, spec=spec)
        assert network(torch.zeros(2, 3, 224, 224, dtype=torch.uint8)).shape == (2, 3)


def test_size_px_makes_a_square_with_the_models_own_mean(tmp_path: Path) -> None:
    """For small pictures, and for models that state no size."""
    place = saved(tmp_path / "hub", RESNET)
    own = load_preprocess(str(place), size_px=None, max_pixels=image.MAX_PIXELS)
    spec = load_preprocess(str(place), size_px=48, max_pixels=image.MAX_PIXELS)
    assert (spec.height_px, spec.width_px, spec.resize) == (48, 48, (48, 48))
    assert (spec.mean, spec.std) == (own.mean, own.std)


def test_a_model_without_processor_is_resized_to_its_configs_size(tmp_path: Path) -> None:
    """Many folders hold config and weights only."""
    place = saved(tmp_path / "hub", VIT)
    (place / "preprocessor_config.json").unlink()
    assert load_preprocess(str(place), size_px=None, max_pixels=image.MAX_PIXELS).height_px == 32


def test_a_model_without_any_size_asks_for_one(tmp_path: Path) -> None:
    """Nothing is guessed."""
    place = saved(tmp_path / "hub", RESNET)
    (place / "preprocessor_config.json").unlink()
    with pytest.raises(UnknownModel, match=r"no image size; set model\.size_px"):
        load_preprocess(str(place), size_px=None, max_pixels=image.MAX_PIXELS)
    with pytest.raises(UnknownModel, match=r"no image size; set model\.size_px"):
        spec_for(RESNET, size_px=None)
    assert spec_for(VIT, size_px=None).height_px == 32


@pytest.mark.parametrize("load", ["network", "preprocess"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("google/vit-base-patch16-224-in21k", "neither a folder nor in the local cache.*cannot be reached.*FOLDER"),
        ("./missing", "no such folder"),
        ("/no/such/model", "no such folder"),
        ("~/no/such/model", "no such folder"),
        ("a/b/c", "no such folder"),
        ("x" * 5000, "cannot be loaded|neither a folder"),
        ("two words", "cannot be loaded|neither a folder"),
        ("", "cannot be loaded|neither a folder"),
    ],
)
def test_a_model_that_cannot_be_had_is_one_line(load: str, name: str, words: str) -> None:
    """With the hub out of reach it takes no retries and says what to set."""
    with pytest.raises(UnknownModel, match=words) as caught:
        if load == "network":
            load_network(name, labels=LABELS, spec=spec_for(RESNET))
        else:
            load_preprocess(name, size_px=None, max_pixels=image.MAX_PIXELS)
    assert "\n" not in str(caught.value)


def test_a_text_model_is_no_image_classifier(tmp_path: Path) -> None:
    """The message says which kind of model is expected."""
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(UnknownModel, match=r"as an image classifier.*Image Classification") as caught:
        load_network(str(tmp_path), labels=LABELS, spec=spec_for(RESNET))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content"),
    [("config.json", "{not json"), ("config.json", "{}"), ("model.safetensors", "torn"), ("model.safetensors", None)],
)
def test_a_damaged_checkpoint_is_one_line(tmp_path: Path, file: str, content: str | None) -> None:
    """Half a download, a missing file."""
    place = saved(tmp_path / "hub", RESNET)
    if content is None:
        (place / file).unlink()
    else:
        (place / file).write_text(content)
    with pytest.raises(UnknownModel, match="cannot be loaded") as caught:
        load_network(str(place), labels=LABELS, spec=spec_for(RESNET))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", [{"model_type": "no-such-net"}, {"hidden_size": 3}, {**VIT, "hidden_size": "many"}])
def test_a_config_that_makes_no_network_is_one_line(config: dict[str, Any]) -> None:
    """The model.config section is free text as far as we know; transformers knows better."""
    with pytest.raises((UnknownModel, ConfigError)) as caught:
        load_network("tiny", labels=LABELS, spec=spec_for(RESNET), config=config)
    assert "\n" not in str(caught.value)


def test_code_of_a_model_repository_is_never_run(tmp_path: Path) -> None:
    """A config can name Python files of the repository; they are refused."""
    place = saved(tmp_path / "hub", RESNET)
    config = json.loads((place / "config.json").read_text())
    auto = {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"}
    config |= {"model_type": "evil", "auto_map": auto}
    (place / "config.json").write_text(json.dumps(config))
    (place / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UnknownModel):
        load_network(str(place), labels=LABELS, spec=spec_for(RESNET))
    assert not (tmp_path / "ran").exists()


def test_repairs_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A user who compares with another program finds the difference in the log."""
    with caplog.at_level(logging.INFO):
        built(MOBILENET_V2)
    assert "TensorFlow" in caplog.text


def test_forward_gives_the_same_answer_whatever_the_memory_layout() -> None:
    """channels_last is for speed only."""
    network = built(RESNET).eval()
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8))
    with torch.inference_mode():
        plain = network(pixels)
        last = network(pixels.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(plain, last, atol=1e-6)
