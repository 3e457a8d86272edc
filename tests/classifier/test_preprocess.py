"""One preprocessing: what the model's own Hugging Face processor does, bit for bit, without importing it to do so."""

import functools
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image

from classifier import image
from classifier.errors import ConfigError, TooManyPixels
from classifier.preprocess import PreprocessSpec, load_pixels, to_pixels
from tests.classifier.pictures import encoded, photo

BY_PILLOW: list[tuple[str, dict[str, Any]]] = [
    ("ViTImageProcessorPil", {}),
    ("ViTImageProcessorPil", {"size": {"height": 96, "width": 160}, "resample": 3}),
    ("ViTImageProcessorPil", {"do_normalize": False}),
    ("ViTImageProcessorPil", {"do_rescale": False}),
    ("BeitImageProcessorPil", {}),
    ("BitImageProcessorPil", {}),
    ("BitImageProcessorPil", {"size": {"shortest_edge": 256}}),  # DINOv2's
    ("CLIPImageProcessorPil", {}),
    ("CLIPImageProcessorPil", {"size": {"shortest_edge": 336}, "crop_size": 336}),
    ("ConvNextImageProcessorPil", {}),
    ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 224}}),
    ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 224}, "crop_pct": 0.95}),
    ("DeiTImageProcessorPil", {}),
    ("EfficientNetImageProcessorPil", {}),
    ("EfficientNetImageProcessorPil", {"rescale_factor": 1 / 127.5, "rescale_offset": True, "include_top": False}),
    ("LevitImageProcessorPil", {}),
    ("MobileNetV1ImageProcessorPil", {}),
    ("MobileNetV2ImageProcessorPil", {}),
    ("PoolFormerImageProcessorPil", {}),
    ("PvtImageProcessorPil", {}),
    ("SegformerImageProcessorPil", {}),
    ("SiglipImageProcessorPil", {}),
]
BY_ITSELF = [("MobileViTImageProcessorPil", {}), ("PerceiverImageProcessorPil", {})]

PHOTOS = [(320, 240), (240, 321), (31, 47), (224, 224), (600, 45), (7, 3), (3, 7), (1, 1)]


def processor_of(name: str, options: dict[str, Any]) -> Any:
    return getattr(transformers, name)(**options)


@functools.cache
def spec_of(name: str, options_json: str = "{}") -> PreprocessSpec:
    return PreprocessSpec.from_processor(processor_of(name, json.loads(options_json)))


def output_of(processor: Any, picture: Image.Image, switches: dict[str, bool]) -> np.ndarray:
    """What the processor itself hands to the network, or its pixels with the rest switched off."""
    batch = processor(picture, input_data_format="channels_last", return_tensors="np", **switches)
    return np.asarray(batch["pixel_values"][0], dtype=np.float64)


@pytest.mark.parametrize(("name", "options"), BY_PILLOW + BY_ITSELF)
def test_pixels_and_normalisation_are_the_processors_own(name: str, options: dict[str, Any]) -> None:
    """On pictures of all shapes: our pixels are its own to the bit, normalised they are its floats."""
    processor = processor_of(name, options)
    spec = spec_of(name, json.dumps(options))
    off = {"do_rescale": False, "do_normalize": False}
    off |= {"include_top": False} if hasattr(processor, "include_top") else {}
    assert spec.engine == ("pillow" if (name, options) in BY_PILLOW else "huggingface")
    mean, std = (np.array(values)[:, None, None] for values in (spec.mean, spec.std))
    for size in PHOTOS:
        picture = photo(*size, seed=sum(size))
        pixels = to_pixels(picture, spec)
        assert pixels.dtype == np.uint8
        assert pixels.shape == (3, spec.height_px, spec.width_px)
        assert pixels.flags.c_contiguous
        assert np.array_equal(pixels, output_of(processor, picture, off))
        expected = output_of(processor, picture, {})
        np.testing.assert_allclose((pixels * spec.rescale_factor - mean) / std, expected, atol=1e-4)


def test_spec_survives_json() -> None:
    """It travels in the model folder's manifest and to Ray's workers."""
    for name in ("EfficientNetImageProcessorPil", "MobileViTImageProcessorPil"):
        spec = spec_of(name)
        again = PreprocessSpec.model_validate_json(spec.model_dump_json())
        assert again == spec
        assert np.array_equal(to_pixels(photo(), again), to_pixels(photo(), spec))


def test_decode_workers_need_no_transformers() -> None:
    """Importing it takes seconds in every worker: with the `pillow` engine nobody does."""
    spec = PreprocessSpec.from_processor(processor_of("ConvNextImageProcessorPil", {"size": {"shortest_edge": 224}}))
    code = (
        "import sys; from classifier.preprocess import PreprocessSpec, load_pixels;"
        "spec = PreprocessSpec.model_validate_json(sys.argv[1]);"
        "print(load_pixels(sys.stdin.buffer.read(), spec).shape, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, spec.model_dump_json()],
        input=encoded(photo(), "JPEG"),
        capture_output=True,
        check=False,
    )
    assert done.stdout.decode().strip() == "(3, 224, 224) False False", done.stderr.decode()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("ViTImageProcessorPil", {"do_resize": False}, "different sizes"),
        ("TextNetImageProcessorPil", {}, "different sizes"),
        ("Siglip2ImageProcessorPil", {}, "different sizes"),
        ("ImageGPTImageProcessorPil", {}, "gives no pixels"),
    ],
)
def test_a_processor_without_one_size_is_refused_with_the_way_out(
    name: str, options: dict[str, Any], words: str
) -> None:
    """The message names the setting that helps."""
    with pytest.raises(ConfigError, match=rf"{words}.*set model\.size_px"):
        PreprocessSpec.from_processor(processor_of(name, options))


@pytest.mark.parametrize("name", ["BitImageProcessorPil", "MobileViTImageProcessorPil", "ViTImageProcessorPil"])
def test_an_elongated_picture_is_refused_where_its_resized_form_would_be_huge(name: str) -> None:
    """1 x 20,000 pixels, resized to a short side of 224, are a gigapixel; a fixed size takes any shape."""
    spec = spec_of(name)
    for size in ((1, 20_000), (20_000, 1)):
        if isinstance(spec.resize, tuple):
            assert to_pixels(Image.new("RGB", size), spec).shape == (3, 224, 224)
        else:
            with pytest.raises(TooManyPixels, match="too elongated"):
                to_pixels(Image.new("RGB", size), spec)


def test_load_pixels_uses_the_models_own_decode_policy() -> None:
    """A JPEG is decoded at a reduced scale, no smaller than what the resize asks for; `max_pixels` is kept."""
    spec = PreprocessSpec.from_processor(processor_of("ViTImageProcessorPil", {}), max_pixels=2_000_000)
    data = encoded(photo(1600, 1200), "JPEG", quality=95)
    reduced = load_pixels(data, spec)
    assert np.array_equal(reduced, to_pixels(image.decode(data, draft_px=224), spec))
    full = to_pixels(image.decode(data), spec)
    assert not np.array_equal(reduced, full)
    assert np.abs(reduced.astype(float) - full).mean() < 1.5
    with pytest.raises(TooManyPixels, match="at most 2,000,000"):
        load_pixels(encoded(Image.new("L", (2001, 1000)), "PNG"), spec)


@pytest.mark.parametrize(("name", "options"), BY_PILLOW + BY_ITSELF)
def test_reduced_decode_never_falls_below_what_the_geometry_asks_for(name: str, options: dict[str, Any]) -> None:
    """Otherwise a photo would be blown up again."""
    spec = spec_of(name, json.dumps(options))
    asked = max(spec.resize) if isinstance(spec.resize, tuple) else spec.resize or max(spec.height_px, spec.width_px)
    assert spec.draft_px is not None
    assert spec.draft_px >= asked


def test_processor_is_kept_as_its_own_file_would_be() -> None:
    """What is written as preprocessor_config.json loads as the same processor."""
    processor = processor_of("DeiTImageProcessorPil", {})
    kept = PreprocessSpec.from_processor(processor).processor
    assert kept == json.loads(processor.to_json_string())
