"""Small real pictures in every form that the tests need, made in memory."""

import functools
import io
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

ORIENTATION = 0x0112


def photo(width_px: int = 64, height_px: int = 48, *, seed: int = 0) -> Image.Image:
    """A smooth coloured picture without any symmetry."""
    return _photo(width_px, height_px, seed).copy()


@functools.cache
def _photo(width_px: int, height_px: int, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(3)), dtype=np.float32)
    ramp = np.linspace(0, 90, width_px, dtype=np.float32)[None, :, None]
    fall = np.linspace(0, 60, height_px, dtype=np.float32)[:, None, None]
    return Image.fromarray(np.clip(smooth - 60 + ramp + fall, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """The bytes of a picture in a format of Pillow's."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def with_orientation(image: Image.Image, orientation: int, form: str = "PNG", **options: Any) -> bytes:
    """A file whose EXIF states an orientation; its stored pixels are the image's."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(image, form, exif=exif, **options)
