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
            ConfigError: the processor gives pixels whose size depends on the picture, no pixels of three channels, or
                values that are not its pixels rescaled and normalised.
        """
        config = json.loads(processor.to_json_string())
        kind = config.get("image_processor_type")
        try:
            found = [_by_processor(processor, photo) for photo in _probes()]
            floats = processor(_probes()[0], return_tensors="np")["pixel_values"][0]
        except Exception as error:  # a processor of something else than pictures of one size raises as it likes
            raise ConfigError(
                f"the image processor {kind} gives no pixels for a photo ({type(error).__name__}: {str(error)[:150]}); "
                "set model.size_px to resize every picture to one size"
            ) from error
        if len({pixels.shape for pixels in found}) != 1 or found[0].ndim != 3 or found[0].shape[0] != 3:
            raise ConfigError(
                f"the image processor {kind} gives pixels of different sizes for different pictures; set model.size_px "
                "to resize every picture to one size"
            )
        (_, height_px, width_px) = found[0].shape
        spec = cls(
            height_px=height_px,
            width_px=width_px,
            **_normalisation(processor, found[0], floats),
            engine="huggingface",
            resize=None,
            crop=None,
            resample=int(config.get("resample") if config.get("resample") is not None else 2),
            # Unknown geometry: any reduced decode must stay above every size that it could ask for.
            draft_px=2 * max(height_px, width_px),
            max_pixels=max_pixels,
            processor=config,
        )
        for resize, crop in _geometries(config):
            draft_px = max(resize) if isinstance(resize, tuple) else resize
            update = {"engine": "pillow", "resize": resize, "crop": crop, "draft_px": draft_px}
            ours = spec.model_copy(update=update)
            if all(
                np.array_equal(_by_pillow(photo, ours), theirs) for photo, theirs in zip(_probes(), found, strict=True)
            ):
                return ours
        return spec


def load_pixels(data: bytes, spec: PreprocessSpec) -> np.ndarray:
    """`decode` and `to_pixels` with the model's own decode policy: bytes -> uint8 [3, H, W].

    Raises:
        BadImage: the bytes are not a picture that can be used.
    """
    return to_pixels(images.decode(data, draft_px=spec.draft_px, max_pixels=spec.max_pixels), spec)


def to_pixels(photo: Image.Image, spec: PreprocessSpec, *, out: np.ndarray | None = None) -> np.ndarray:
    """Resize a photo to the network's input and return its pixels.

    The only path from photo to network: training, serving and the folder job call it.

    Args:
        photo: upright RGB image of any size, as `image.decode` returns it.
        spec: the model's geometry.
        out: where the pixels go, uint8 [3, height_px, width_px]; None: into an array of their own.

    Returns:
        uint8 [3, height_px, width_px], RGB, 0..255, contiguous. Not normalised: `Network` does that.

    Raises:
        TooManyPixels: the picture is so elongated that its resized form would not fit in memory.

    Source: the model's own Hugging Face image processor, Pillow form (transformers 5.23).
    """
    if spec.engine == "pillow":
        pixels = _by_pillow(photo, spec)
    else:
        _check_elongation(photo.size, 2 * max(spec.height_px, spec.width_px))
        pixels = _by_processor(_processor(json.dumps(spec.processor, sort_keys=True)), photo)
    if out is None:
        return np.ascontiguousarray(pixels)
    out[...] = pixels
    return out


def _by_pillow(photo: Image.Image, spec: PreprocessSpec) -> np.ndarray:
    if spec.resize is not None:
        height_px, width_px = _resized_size(photo.size, spec.resize)
        photo = photo.resize((width_px, height_px), resample=Image.Resampling(spec.resample))
    if spec.crop is not None:
        photo = _centre_crop(photo, spec.crop)
    return np.asarray(photo).transpose(2, 0, 1)


def _resized_size(size_px: tuple[int, int], resize: tuple[int, int] | int) -> tuple[int, int]:
    """(width, height) -> (height, width), as transformers' `get_resize_output_image_size` rounds it."""
    if isinstance(resize, tuple):
        return resize
    _check_elongation(size_px, resize)
    width_px, height_px = size_px
    short, long = sorted((width_px, height_px))
    new_long = int(resize * long / short)
    return (new_long, resize) if width_px <= height_px else (resize, new_long)


def _check_elongation(size_px: tuple[int, int], short_px: int) -> None:
    short, long = sorted(size_px)
    if short_px * short_px * long > _MAX_RESIZED_PIXELS * short:
        raise TooManyPixels(
            f"{size_px[0]} x {size_px[1]} pixels: too elongated to be resized to a short side of {short_px}"
        )


def _centre_crop(photo: Image.Image, crop: tuple[int, int]) -> Image.Image:
    """Cut the middle; a side that is too short is padded with black, as transformers' `center_crop` does."""
    crop_height, crop_width = crop
    left, top = (photo.width - crop_width) // 2, (photo.height - crop_height) // 2
    return photo.crop((left, top, left + crop_width, top + crop_height))


def _by_processor(processor: "BaseImageProcessor", photo: Image.Image) -> np.ndarray:
    off = {"do_rescale": False, "do_normalize": False}
    if hasattr(processor, "include_top"):  # EfficientNet's: a second normalisation
        off["include_top"] = False
    # The layout is stated: of a picture 3 pixels high it would be guessed wrongly.
    batch = processor(photo, **off, input_data_format="channels_last", return_tensors="np")
    return np.ascontiguousarray(batch["pixel_values"][0].astype(np.uint8, copy=False))


def _normalisation(processor: "BaseImageProcessor", pixels: np.ndarray, floats: np.ndarray) -> dict[str, Any]:
    """`rescale_factor`, `mean` and `std` that turn the processor's pixels into its own floats of the same picture."""
    rescales, normalises = getattr(processor, "do_rescale", None), getattr(processor, "do_normalize", None)
    factor = float(processor.rescale_factor) if rescales else 1.0
    stated: dict[str, Any] = {
        "rescale_factor": factor,
        "mean": _triple(processor.image_mean if normalises else 0.0),
        "std": _triple(processor.image_std if normalises else 1.0),
    }
    fitted = _fitted(pixels, floats)
    for candidate in (stated, fitted):
        mean, std = (np.array(candidate[key]).reshape(3, 1, 1) for key in ("mean", "std"))
        if np.allclose((pixels * candidate["rescale_factor"] - mean) / std, floats, atol=1e-4):
            return candidate
    raise ConfigError(
        f"{type(processor).__name__} does more to a picture's values than rescale and normalise; choose another model"
    )


def _fitted(pixels: np.ndarray, floats: np.ndarray) -> dict[str, Any]:
    """Some do more than they state, as EfficientNet's, which divides by std twice: a line through the values tells."""
    lines = [np.polyfit(pixels[channel].ravel(), floats[channel].ravel(), 1) for channel in range(3)]
    std = [1 / (255 * slope) if slope else 1.0 for slope, _ in lines]
    mean = [-offset * part for (_, offset), part in zip(lines, std, strict=True)]
    return {"rescale_factor": 1 / 255, "mean": _triple(mean), "std": _triple(std)}


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


def _geometries(config: dict[str, Any]) -> list[tuple[tuple[int, int] | int | None, tuple[int, int] | None]]:
    """(resize, crop) that a processor's config may mean; `from_processor` takes the one that gives its pixels."""
    size = _as_size(config.get("size")) if config.get("do_resize", True) else None
    crop = _as_size(config.get("crop_size")) if config.get("do_center_crop", False) else None
    crop = (crop, crop) if isinstance(crop, int) else crop
    candidates = [(size, crop)]
    short = min(size) if isinstance(size, tuple) else size
    if short is not None:
        share = config.get("crop_pct") or 224 / 256  # ConvNeXt's default; LeViT's is fixed
        candidates += [(int(short / share), crop or (short, short)), (int(256 / 224 * short), crop)]
        candidates += [((short, short), None)]  # ConvNeXt from 384 pixels on
    return candidates


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
