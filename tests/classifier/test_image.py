"""Decoding: every mode a picture can have, every way it can be turned."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from classifier.image import decode, read_header
from tests.classifier.pictures import ORIENTATION, encoded, photo, with_orientation

WHITE = (255, 255, 255)


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of two RGB images of one size."""
    return float(np.abs(np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64)).mean())


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG"])
def test_every_format_gives_its_own_picture(form: str) -> None:
    """Lossless formats to the bit, the others closely; always plain RGB of the picture's size."""
    image = photo()
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(form, {})
    decoded = decode(encoded(image, form, **options))
    assert (decoded.mode, decoded.size) == ("RGB", image.size)
    assert difference(decoded, image) <= {"GIF": 8.0, "JPEG": 3.0}.get(form, 0.0)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped_to_white(form: str) -> None:
    """Pillow's own conversion clips at 255, which turns a 16-bit picture white."""
    grey = np.asarray(photo().convert("L"), dtype=np.uint16)
    decoded = decode(encoded(Image.fromarray(grey * 257), form))
    assert np.array_equal(np.asarray(decoded)[:, :, 0], grey.astype(np.uint8))


def test_big_endian_16_bit_tiff_is_scaled() -> None:
    """Mode `I;16B` has its own byte order."""
    grey = np.asarray(photo().convert("L"), dtype=np.uint16) * 257
    data = bytearray(encoded(Image.fromarray(grey), "TIFF"))
    big = Image.frombytes("I;16B", (64, 48), grey.astype(">u2").tobytes())
    decoded = decode(encoded(big, "TIFF"))
    assert np.array_equal(np.asarray(decoded), np.asarray(decode(bytes(data))))


def test_32_bit_integer_samples_are_read_as_16_bit_ones() -> None:
    """Mode `I` holds 16-bit samples in practice; what is out of range is clipped, never wrapped."""
    samples = np.array([[0, 32_768, 65_535, 70_000, -5]], dtype=np.int32)
    decoded = np.asarray(decode(encoded(Image.fromarray(samples), "TIFF")))[0, :, 0]
    assert decoded.tolist() == [0, 128, 255, 255, 0]


@pytest.mark.parametrize(
    ("samples", "expected"), [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 100.4, 300.0], [0, 100, 255])]
)
def test_float_samples_of_both_ranges(samples: list[float], expected: list[int]) -> None:
    """0..1 and 0..255 are told apart; not-a-number is black."""
    row = np.array([[*samples, float("nan"), -1.0]], dtype=np.float32)
    decoded = np.asarray(decode(encoded(Image.fromarray(row), "TIFF")))[0, :, 0]
    assert decoded.tolist() == [*expected, 0, 0]


def test_cmyk_jpeg_has_natural_colours() -> None:
    """Adobe's CMYK is stored inverted."""
    image = photo()
    decoded = decode(encoded(image.convert("CMYK"), "JPEG", quality=95))
    assert difference(decoded, image) < 4.0


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_over_white(mode: str) -> None:
    """A transparent pixel is white whatever colour lies under it; half transparency is half white."""
    rgba = Image.new("RGBA", (3, 1))
    rgba.putdata([(0, 0, 0, 0), (0, 0, 0, 128), (0, 0, 0, 255)])
    if mode == "PA":
        image = Image.new("P", (3, 1))
        image.putpalette([0, 0, 0] * 3)
        image.putdata([0, 1, 2])
        data = encoded(image, "PNG", transparency=bytes([0, 128, 255]))
    else:
        data = encoded(rgba.convert(mode), "PNG")
    first, second, third = np.asarray(decode(data))[0, :, 0].tolist()
    assert (first, third) == (255, 0)
    assert second == pytest.approx(127, abs=1)


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
def test_one_colour_declared_transparent_is_white(mode: str) -> None:
    """Palette, grey and RGB pictures may name a single transparent colour."""
    image = Image.new("RGB", (2, 1), (255, 255, 255))
    image.putpixel((0, 0), (0, 0, 0))
    plain = image.convert(mode) if mode != "P" else image.quantize(2)
    colour = plain.getpixel((0, 0))
    decoded = decode(encoded(plain, "PNG", transparency=colour))
    assert decoded.getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("mode", ["L", "1", "P", "LAB", "YCbCr", "HSV"])
def test_other_modes_become_rgb(mode: str) -> None:
    """Grey, bilevel, palette and colour spaces that TIFF can hold."""
    image = photo()
    form = "TIFF" if mode in ("LAB", "YCbCr") else "PNG"
    stored = image.convert(mode) if mode not in ("LAB", "HSV") else image
    decoded = decode(encoded(stored, form))
    assert decoded.mode == "RGB"
    assert difference(decoded, stored.convert("RGB")) < 3.0


@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 65_535])
@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_every_orientation_ends_upright(form: str, orientation: int) -> None:
    """What a camera stored turned comes out as it was seen; an orientation that does not exist changes nothing."""
    upright = photo()
    turned_by = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(turned_by[orientation]) if orientation in turned_by else upright
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}.get(form, {})
    data = with_orientation(stored, orientation, form, **options)
    decoded = decode(data)
    assert difference(decoded, upright) <= (3.0 if form == "JPEG" else 0.0)
    header = read_header(data)
    assert (header.width_px, header.height_px) == decoded.size
    assert difference(ImageOps.exif_transpose(decoded), decoded) == 0.0  # nobody can turn it a second time


def test_orientation_in_xmp_counts() -> None:
    """Some editors write the orientation only there."""
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encoded(photo(64, 48), "JPEG", xmp=xmp)
    assert decode(data).size == (48, 64)
    assert read_header(data).width_px == 48


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage" * 9, b"\0" * 40])
def test_broken_exif_does_not_cost_the_picture(exif: bytes) -> None:
    """Its pixels are fine, so it is used as it stands."""
    data = encoded(photo(), "JPEG", exif=exif)
    assert decode(data).size == read_header(data)[:2] == (64, 48)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_exif_behind_the_pixels_of_a_png_counts() -> None:
    """The standard allows the chunk anywhere; header and pixels agree on it."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    plain = encoded(photo(64, 48), "PNG")
    end = plain.rindex(b"IEND") - 4
    data = plain[:end] + png_chunk(b"eXIf", exif.tobytes()[6:]) + plain[end:]
    assert decode(data).size == read_header(data)[:2] == (48, 64)


def test_header_of_a_png_is_read_without_its_pixels() -> None:
    """Preparing a dataset reads every header: a PNG's pixels must not be decoded for it."""
    plain = encoded(photo(), "PNG")
    start = plain.index(b"IDAT") + 4
    broken = plain[:start] + b"\xff" * 20 + plain[start + 20 :]
    assert read_header(broken)[:5] == (64, 48, "RGB", "PNG", False)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(form: str) -> None:
    """And the header says that there is more than one."""
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue", "green")]
    options = {"WEBP": {"lossless": True}, "GIF": {"duration": 50}}.get(form, {})
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert decode(data).getpixel((5, 5)) == (255, 0, 0)
    assert read_header(data).animated


def test_mpo_of_a_phone_is_a_jpeg_with_its_first_picture() -> None:
    """Two JPEGs in a file; reduced decode works as for any JPEG."""
    first, second = photo(640, 480, seed=1), photo(640, 480, seed=2)
    data = encoded(first, "MPO", save_all=True, append_images=[second], quality=95)
    assert read_header(data).format == "MPO"
    assert difference(decode(data), first) < 3.0
    assert decode(data, draft_px=224).size == (320, 240)


@pytest.mark.parametrize(
    ("size", "draft_px", "expected"),
    [
        ((640, 480), 224, (320, 240)),
        ((640, 480), 240, (320, 240)),
        ((640, 480), 241, (640, 480)),
        ((1801, 1201), 150, (226, 151)),
        ((101, 99), 12, (13, 13)),
        ((64, 48), 224, (64, 48)),
    ],
)
def test_reduced_decode_keeps_both_sides_at_least_as_long_as_asked(
    size: tuple[int, int], draft_px: int, expected: tuple[int, int]
) -> None:
    """The smallest of 1/1, 1/2, 1/4 and 1/8 that is still large enough."""
    data = encoded(photo(*size), "JPEG")
    assert decode(data, draft_px=draft_px).size == expected
    assert min(expected) >= min(draft_px, *size)


def test_reduced_decode_shows_the_same_picture() -> None:
    """After the resize to the network's size the two can hardly be told apart."""
    data = encoded(photo(1600, 1200), "JPEG", quality=92)
    full = decode(data).resize((224, 224), Image.Resampling.BILINEAR)
    reduced = decode(data, draft_px=224).resize((224, 224), Image.Resampling.BILINEAR)
    assert difference(full, reduced) < 1.5


def test_reduced_decode_of_real_photos_is_close(shared: object) -> None:
    """The same on phone photos."""
    from pathlib import Path

    files = sorted(Path(str(shared)).glob("data/trashnet5/*/*"))[::60]
    assert len(files) == 10
    for file in files:
        full = decode(file.read_bytes()).resize((112, 112), Image.Resampling.BILINEAR)
        reduced = decode(file.read_bytes(), draft_px=112).resize((112, 112), Image.Resampling.BILINEAR)
        assert difference(full, reduced) < 2.0


def test_reduced_decode_of_a_turned_photo_is_upright() -> None:
    """Both at once: the scale is chosen before, the turn is made after."""
    upright = photo(480, 640)
    data = with_orientation(upright.transpose(Image.Transpose.ROTATE_90), 6, "JPEG", quality=95)
    decoded = decode(data, draft_px=224)
    assert decoded.size == (240, 320)
    assert difference(decoded, upright.resize((240, 320), Image.Resampling.BOX)) < 3.0


def test_result_stands_on_its_own() -> None:
    """It can be used after the bytes are gone, and changing one result does not change another."""
    data = bytearray(encoded(photo(), "BMP"))
    one, other = decode(bytes(data)), decode(bytes(data))
    before = other.tobytes()
    one.putpixel((0, 0), (1, 2, 3))
    data[:] = b"\0" * len(data)
    assert other.tobytes() == before
    assert io.BytesIO(encoded(one, "PNG")).getvalue()
