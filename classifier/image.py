"""From the bytes of a picture to an upright RGB image."""

import errno
import io
import os
import stat
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from classifier.errors import BadImage, EmptyImage, NotAFile, OutOfReach, TooManyBytes, TooManyPixels, UnsupportedFormat

# Pillow's names; MPO (two JPEGs in a file, from phones) is found by its JPEG reader.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})

# Just under the 89 megapixels from which Pillow itself warns of a decompression bomb.
MAX_PIXELS = 89_000_000
MAX_BYTES = 256 * 1024 * 1024
_CHUNK_BYTES = 64 * 1024

# What a file system or this machine says when it may answer differently later: it says nothing of the picture.
_OUT_OF_REACH = frozenset(
    {
        errno.EIO,
        errno.ESTALE,
        errno.ENOTCONN,
        errno.ETIMEDOUT,
        errno.ECONNRESET,
        errno.ECONNREFUSED,
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EBUSY,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
    }
)

_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {  # EXIF 2.32, table 6: what undoes each orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = frozenset({5, 6, 7, 8})


class Header(NamedTuple):
    """What a picture says of itself before its pixels are decoded."""

    width_px: int  # as displayed: EXIF orientation applied
    height_px: int
    mode: str  # Pillow's mode: "RGB", "CMYK", "I;16", ...
    format: str  # "JPEG", "PNG", ...
    animated: bool


def read_file(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a regular file, without ever blocking on what is not one.

    Args:
        path: a local path; a symlink is followed.
        max_bytes: the largest file that is read.

    Raises:
        NotAFile: a folder, FIFO, socket or device.
        TooManyBytes: the file is larger than `max_bytes`.
        OutOfReach: its file system does not give it now, which says nothing of the picture.
        BadImage: it cannot be opened or read.
    """
    try:
        # O_NONBLOCK: a FIFO named x.jpg would otherwise block open() until somebody writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _unread(path, "opened", error) from error
    except ValueError as error:  # a null byte in the name
        raise BadImage(f"cannot be opened: {error}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotAFile("a folder, not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file")
        data = _read_all(descriptor, status.st_size, max_bytes)
    except OSError as error:
        raise _unread(path, "read", error) from error
    finally:
        os.close(descriptor)
    if len(data) > max_bytes:
        raise TooManyBytes(f"{max(status.st_size, len(data)):,} bytes; at most {max_bytes:,} are read")
    return data


def _unread(path: str | os.PathLike[str], what: str, error: OSError) -> BadImage:
    if error.errno in _OUT_OF_REACH:
        return OutOfReach(f"{os.fspath(path)} cannot be {what}: {error.strerror}")
    return BadImage(f"cannot be {what}: {error.strerror}")


def _read_all(descriptor: int, stated_bytes: int, max_bytes: int) -> bytes:
    """Read a file to its end, or one byte beyond `max_bytes`: it may grow meanwhile, and those of /proc state 0 bytes.

    No more is asked for than the file states: Python takes memory for all that is asked for before it reads, and to
    take and give back 256 MiB costs a process with Ray's threads as long as to decode a small picture.
    """
    parts = [os.read(descriptor, min(stated_bytes, max_bytes) + 1)]
    left = max_bytes + 1 - len(parts[0])
    while left > 0 and (more := os.read(descriptor, min(_CHUNK_BYTES, left))):
        parts.append(more)
        left -= len(more)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Read a picture's size, mode and format; its pixels are not decoded.

    Raises:
        BadImage: as `decode`, but for faults that only the pixels show.
    """
    with _open(data, max_pixels) as image:
        width_px, height_px = image.size
        if _states_orientation(image, data) and _orientation(image) in _SIDEWAYS:
            width_px, height_px = height_px, width_px
        return Header(width_px, height_px, image.mode, str(image.format), _is_animated(image))


def decode(data: bytes, *, draft_px: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture to an upright RGB image.

    Upright by EXIF. Transparency is laid over white, 16-bit and float samples are scaled to 8 bits, of an animation the
    first frame is taken.

    Args:
        data: the bytes of a picture in one of `FORMATS`; the content decides, never a name.
        draft_px: a JPEG is decoded at the smallest DCT scale at which both sides are still at least this long
            (2 to 2.6 times faster on a 2-megapixel photo). None: at full size.
        max_pixels: the largest declared size that is decoded.

    Returns:
        An RGB image. Its size is the picture's own, but for a JPEG with `draft_px`.

    Raises:
        BadImage: or one of its children; nothing else, whatever the bytes are.
    """
    with _open(data, max_pixels) as image:
        try:
            if draft_px is not None and image.format in ("JPEG", "MPO"):
                image.draft(None, (draft_px, draft_px))
            image.load()
            # After load(): a PNG's EXIF may stand behind its pixels, and a TIFF is turned upright by load() itself.
            upright = _UPRIGHT.get(_orientation(image))
            rgb = _to_rgb(image)
            turned = rgb if upright is None else rgb.transpose(upright)
            turned.info.clear()  # whoever reads EXIF from it would turn it again
            return turned
        except MemoryError as error:
            raise TooManyPixels(f"{image.width} x {image.height} pixels do not fit in memory") from error
        except Exception as error:  # Pillow raises far more than OSError on broken files: TypeError, IndexError, ...
            raise BadImage(f"cannot be decoded: {_sentence(error)}") from error


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise EmptyImage("0 bytes")
    _check_size(*_webp_canvas(data), max_pixels)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnsupportedFormat(f"not a picture in a known format ({', '.join(FORMATS)})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixels(f"more than {max_pixels:,} pixels") from error
    except Exception as error:  # as in decode
        raise BadImage(f"cannot be opened: {_sentence(error)}") from error
    width_px, height_px = image.size
    _check_size(width_px, height_px, max_pixels)
    if width_px * height_px == 0:
        raise EmptyImage(f"{width_px} x {height_px} pixels")
    return image


def _webp_canvas(data: bytes) -> tuple[int, int]:
    """The size that an extended WebP declares: Pillow's reader takes memory for two such canvases as it opens one."""
    if data[:4] != b"RIFF" or data[8:16] != b"WEBPVP8X":
        return 0, 0
    return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")


def _check_size(width_px: int, height_px: int, max_pixels: int) -> None:
    if width_px * height_px > max_pixels:
        raise TooManyPixels(f"{width_px} x {height_px} pixels; at most {max_pixels:,} are decoded")


def _states_orientation(image: Image.Image, data: bytes) -> bool:
    """Whether the picture's EXIF needs reading before its pixels are decoded."""
    if image.format == "TIFF":
        return False  # its size is the upright one already
    # Pillow decodes a whole PNG to find EXIF behind the pixels; nearly all have none.
    return image.format != "PNG" or any(mark in data for mark in (b"eXIf", b"Raw profile type exif", b"adobe.xmp"))


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:  # broken EXIF in a picture whose pixels are fine: it stands as it is
        return 1
    return value if isinstance(value, int) else 1


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a broken second frame: the first one may still be fine
        return False


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy() if image.readonly else image
    if image.mode.startswith("I;16"):
        # Pillow's own convert() clips 16 bits at 255, which turns nearly every such picture white.
        return _from_grey((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "I":
        return _from_grey((np.clip(np.asarray(image), 0, 65_535) >> 8).astype(np.uint8))
    if image.mode == "F":
        return _from_float(np.array(image))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")


def _from_float(samples: np.ndarray) -> Image.Image:
    """Grey float samples carry no range; 0..1 and 0..255 are the two in use. In place: they may be 89 megapixels."""
    np.nan_to_num(samples, copy=False)
    if samples.max(initial=0.0) <= 1.0:
        samples *= 255.0
    np.clip(np.rint(samples, out=samples), 0, 255, out=samples)
    return _from_grey(samples.astype(np.uint8))


def _from_grey(samples: np.ndarray) -> Image.Image:
    return Image.fromarray(samples).convert("RGB")


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
