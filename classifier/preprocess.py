"""From an upright RGB image to the pixels that the network takes: the one path of training, serving, folder job."""

import functools
import json
import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from classifier import image as images
from classifier.errors import ConfigError, TooManyPixels

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

# A strip of 1 x 100,000 pixels resized to a short side of 256 would need 6.5 gigapixels on the way.
_MAX_RESIZED_PIXELS = 16 * 1024 * 1024


class PreprocessSpec(BaseModel):
    """A model's input geometry and normalisation, as its own Hugging Face image processor states them.

    Geometry is applied here, to uint8; `rescale_factor`, `mean` and `std` are applied by `network.Network`, once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    height_px: int = Field(ge=1)
    width_px: int = Field(ge=1)
    rescale_factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    engine: Literal["pillow", "huggingface"]
    """Who resizes: `pillow` when our few lines give the processor's own pixels (checked by `from_processor`), which
    saves every decode worker the import of transformers; else the `huggingface` processor itself."""

    resize: tuple[int, int] | int | None
    """(height, width), or the length of the shorter side, or None: not resized. Only for `pillow`."""

    crop: tuple[int, int] | None
    """(height, width) cut from the middle after the resize, or None. Only for `pillow`."""

    resample: int
    """Pillow's resampling filter."""

    draft_px: int | None
    """A JPEG may be decoded at a reduced scale whose sides are at least this long. None: always at full size."""

    max_pixels: int = Field(ge=1, le=178_956_970)  # Pillow refuses more, whatever is asked
    """A picture that declares more pixels is not decoded."""

    processor: dict[str, Any]
    """The Hugging Face processor, as `preprocessor_config.json` holds it."""

    @classmethod
    def from_processor(
        cls, processor: "BaseImageProcessor", *, max_pixels: int = images.MAX_PIXELS
    ) -> "PreprocessSpec":
        """Read a Hugging Face image processor (in its Pillow form).

        Raises:
            ConfigError: the processor gives pixels whose size depends on the picture.
        """
        config = json.loads(processor.to_json_string())
        size = _as_size(config.get("size")) if config.get("do_resize", True) else None
        crop = _as_size(config.get("crop_size")) if config.get("do_center_crop", False) else None
        fields = {
            "rescale_factor": config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0,
            "mean": _triple(config.get("image_mean") if config.get("do_normalize", True) else 0.0),
            "std": _triple(config.get("image_std") if config.get("do_normalize", True) else 1.0),
            "resize": size,
            "crop": crop if isinstance(crop, tuple) else (crop, crop) if crop else None,
            "resample": int(config.get("resample") if config.get("resample") is not None else 2),
            "draft_px": max(size) if isinstance(size, tuple) else size,
            "max_pixels": max_pixels,
            "processor": config,
        }
        shapes = {_by_processor(processor, photo).shape for photo in _probes()}
        if len(shapes) != 1:
            raise ConfigError(
                f"the image processor {config.get('image_processor_type')} gives pixels of different sizes for "
                "different pictures; set model.size_px to resize every picture to one size"
            )
        (_, height_px, width_px) = shapes.pop()
        spec = cls(height_px=height_px, width_px=width_px, engine="pillow", **fields)
        if all(np.array_equal(_by_pillow(photo, spec), _by_processor(processor, photo)) for photo in _probes()):
            return spec
        # Unknown geometry: any reduced decode must stay above every size that it could ask for.
        draft_px = 2 * max(height_px, width_px)
        return spec.model_copy(update={"engine": "huggingface", "draft_px": draft_px, "resize": None, "crop": None})


def load_pixels(data: bytes, spec: PreprocessSpec) -> np.ndarray:
    """`decode` and `to_pixels` with the model's own decode policy: bytes -> uint8 [3, H, W].

    Raises:
        BadImage: the bytes are not a picture that can be used.
    """
    return to_pixels(images.decode(data, draft_px=spec.draft_px, max_pixels=spec.max_pixels), spec)


def to_pixels(photo: Image.Image, spec: PreprocessSpec) -> np.ndarray:
    """Resize a photo to the network's input and return its pixels.

    The only path from photo to network: training, serving and the folder job call it.

    Args:
        photo: upright RGB image of any size, as `image.decode` returns it.
        spec: the model's geometry.

    Returns:
        uint8 [3, height_px, width_px], RGB, 0..255, contiguous. Not normalised: `Network` does that.

    Raises:
        TooManyPixels: the picture is so elongated that its resized form would not fit in memory.

    Source: the model's own Hugging Face image processor, Pillow form (transformers 5.23).
    """
    if spec.engine == "pillow":
        return _by_pillow(photo, spec)
    return _by_processor(_processor(json.dumps(spec.processor, sort_keys=True)), photo)


def _by_pillow(photo: Image.Image, spec: PreprocessSpec) -> np.ndarray:
    if spec.resize is not None:
        height_px, width_px = _resized_size(photo.size, spec.resize)
        photo = photo.resize((width_px, height_px), resample=Image.Resampling(spec.resample))
    if spec.crop is not None:
        photo = _centre_crop(photo, spec.crop)
    return np.ascontiguousarray(np.asarray(photo).transpose(2, 0, 1))


def _resized_size(size_px: tuple[int, int], resize: tuple[int, int] | int) -> tuple[int, int]:
    """(width, height) -> (height, width), as transformers' `get_resize_output_image_size` rounds it."""
    if isinstance(resize, tuple):
        return resize
    width_px, height_px = size_px
    short, long = sorted((width_px, height_px))
    new_long = int(resize * long / short)
    if resize * new_long > _MAX_RESIZED_PIXELS:
        raise TooManyPixels(f"{width_px} x {height_px} pixels: too elongated to be resized to a short side of {resize}")
    return (new_long, resize) if width_px <= height_px else (resize, new_long)


def _centre_crop(photo: Image.Image, crop: tuple[int, int]) -> Image.Image:
    """Cut the middle; a side that is too short is padded with black, as transformers' `center_crop` does."""
    crop_height, crop_width = crop
    left, top = (photo.width - crop_width) // 2, (photo.height - crop_height) // 2
    return photo.crop((left, top, left + crop_width, top + crop_height))


def _by_processor(processor: "BaseImageProcessor", photo: Image.Image) -> np.ndarray:
    pixels = processor(photo, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    return np.ascontiguousarray(pixels.astype(np.uint8, copy=False))


@functools.lru_cache(maxsize=4)
def _processor(config_json: str) -> "BaseImageProcessor":
    from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name

    config = json.loads(config_json)
    name = config["image_processor_type"]
    # The Pillow form by name: with torchvision installed the plain name would resize differently.
    found = get_image_processor_class_from_name(f"{name}Pil") or get_image_processor_class_from_name(name)
    return found.from_dict(config)


def _probes() -> list[Image.Image]:
    """Noise in four shapes: geometry that agrees on them agrees. Seeded: a spec never depends on luck."""
    random = np.random.default_rng(0)
    shapes = ((480, 640), (640, 427), (97, 61), (301, 301))
    return [Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)) for height, width in shapes]


def _as_size(size: Any) -> tuple[int, int] | int | None:
    if isinstance(size, dict):
        if size.get("height") and size.get("width"):
            return int(size["height"]), int(size["width"])
        if size.get("shortest_edge") and not size.get("longest_edge"):
            return int(size["shortest_edge"])
        return None
    return int(size) if isinstance(size, int | float) and math.isfinite(size) else None


def _triple(value: Any) -> tuple[float, float, float]:
    if isinstance(value, list | tuple):
        first, second, third = (float(part) for part in value)
        return first, second, third
    return (float(value), float(value), float(value))
