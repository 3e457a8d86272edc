"""Whatever the bytes are: a picture, or a BadImage that says why; never a crash, a hang or all of the memory."""

import contextlib
import errno
import os
import pickle
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from PIL import Image

from classifier import errors
from classifier.errors import BadImage, EmptyImage, NotAFile, OutOfReach, TooManyBytes, TooManyPixels, UnsupportedFormat
from classifier.image import FORMATS, MAX_PIXELS, decode, read_file, read_header
from tests.classifier.pictures import encoded, photo, with_orientation

MUTATIONS = 400


def peak_growth_kb(call: Callable[[], object]) -> int:
    """How far the process's memory rises above where it was, at its peak, while a call runs."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident_kb("VmRSS")
    with contextlib.suppress(BadImage):
        call()
    return resident_kb("VmHWM") - before


def resident_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def test_no_bytes_is_an_empty_image() -> None:
    """A file of 0 bytes is common after a full disk."""
    for read in (decode, read_header):
        with pytest.raises(EmptyImage, match="0 bytes"):
            read(b"")


@pytest.mark.parametrize("data", [b"hello, I am text\n" * 50, b"\xff\xd8", b"%PDF-1.7\n", b"<svg/>", b"\0" * 4096])
def test_content_decides_and_not_the_name(data: bytes) -> None:
    """A text file named x.jpg is named as what it is not."""
    with pytest.raises(UnsupportedFormat, match="JPEG, PNG, WEBP, BMP, GIF, TIFF"):
        decode(data)


@pytest.mark.parametrize("form", ["ICO", "PPM", "PCX", "TGA", "PDF", "EPS"])
def test_formats_that_are_not_promised_are_refused(form: str) -> None:
    """Pillow reads many more, EPS by running Ghostscript: none is reached."""
    with pytest.raises(UnsupportedFormat):
        decode(encoded(photo(), form))
    assert form not in FORMATS


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
def test_truncated_files_are_bad_images(form: str, share: float) -> None:
    """Half a picture is not taken for a whole one."""
    data = encoded(photo(200, 160), form)
    with pytest.raises(BadImage):
        decode(data[: int(len(data) * share)])


def png_that_declares(width_px: int, height_px: int) -> bytes:
    """A PNG of a few bytes whose header states any size."""
    header = struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side_px", [9_500, 13_000, 60_000, 2**31 - 1])
def test_a_declared_size_beyond_the_limit_is_refused_before_any_memory_is_taken(side_px: int) -> None:
    """A few hundred bytes can ask for gigabytes."""
    data = png_that_declares(side_px, side_px)
    for read in (decode, read_header):
        with pytest.raises(TooManyPixels, match="pixels"):
            read(data)
    assert peak_growth_kb(lambda: decode(data)) < 20_000


def test_an_animated_webp_that_declares_a_huge_canvas_is_refused_before_it_is_opened() -> None:
    """Its reader would take two canvases of 4 bytes a pixel, and seconds to clear them."""
    frames = [photo(24, 18, seed=seed) for seed in (1, 2)]
    data = bytearray(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    assert data[12:16] == b"VP8X"
    data[24:30] = b"\xff\x3f\x00" * 2  # 16,384 x 16,384
    for read in (decode, read_header):
        with pytest.raises(TooManyPixels, match="16384 x 16384"):
            read(bytes(data))
    assert peak_growth_kb(lambda: decode(bytes(data))) < 20_000


def test_the_limit_can_be_lowered() -> None:
    """`max_pixels` is the caller's: a server sets less than a training run."""
    data = encoded(photo(100, 50), "PNG")
    assert decode(data, max_pixels=5_000).size == (100, 50)
    with pytest.raises(TooManyPixels, match="100 x 50 pixels; at most 4,999"):
        decode(data, max_pixels=4_999)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "I;16", "F", "CMYK"])
def test_decode_takes_no_more_than_a_few_times_the_pixels(mode: str) -> None:
    """Pillow keeps 4 bytes a pixel; every mode stays under four such pictures at its peak."""
    width_px, height_px = 3000, 2000
    if mode in ("I;16", "F"):
        image = Image.fromarray(np.zeros((height_px, width_px), dtype=np.uint16 if mode == "I;16" else np.float32))
        data = encoded(image, "TIFF")
    elif mode == "P":
        data = encoded(Image.new("P", (width_px, height_px)), "PNG", transparency=0)
    else:
        data = encoded(Image.new(mode, (width_px, height_px)), "JPEG" if mode == "CMYK" else "PNG")
    assert peak_growth_kb(lambda: decode(data)) * 1024 < 4 * 4 * width_px * height_px


def tiff_with(**tags: int) -> bytes:
    """An uncompressed TIFF with some tags set to other values."""
    numbers = {"ImageWidth": 256, "ImageLength": 257, "RowsPerStrip": 278, "StripByteCounts": 279}
    data = bytearray(encoded(photo(), "TIFF", compression="tiff_lzw"))
    offset = struct.unpack("<I", data[4:8])[0]
    for entry in range(struct.unpack("<H", data[offset : offset + 2])[0]):
        start = offset + 2 + 12 * entry
        tag, _, count = struct.unpack("<HHI", data[start : start + 8])
        for name, value in tags.items():
            if numbers[name] == tag and count == 1:
                data[start + 2 : start + 12] = struct.pack("<HII", 4, 1, value)
    return bytes(data)


@pytest.mark.parametrize(
    "tags", [{"RowsPerStrip": 2**31 - 1}, {"StripByteCounts": 2**31 - 1}, {"ImageLength": 1_000_000}]
)
def test_a_tiff_that_lies_about_its_strips_takes_little_memory(tags: dict[str, int]) -> None:
    """libtiff sizes its buffers by what the file says."""
    data = tiff_with(**tags)
    assert peak_growth_kb(lambda: decode(data)) < 100_000


def seeds() -> list[bytes]:
    """Small valid files of every format, the odd modes among them."""
    small = photo(24, 18)
    frames = [photo(24, 18, seed=seed) for seed in (1, 2)]
    grey16 = Image.fromarray(np.asarray(small.convert("L"), dtype=np.uint16) * 257)
    return [
        encoded(small, "JPEG"),
        encoded(small, "JPEG", progressive=True),
        encoded(small.convert("CMYK"), "JPEG"),
        with_orientation(small, 6, "JPEG"),
        encoded(small, "MPO", save_all=True, append_images=frames),
        encoded(small, "PNG"),
        encoded(grey16, "PNG"),
        encoded(small.quantize(8), "PNG", transparency=3),
        encoded(small.convert("RGBA"), "PNG", save_all=True, append_images=frames),
        with_orientation(small, 8, "PNG"),
        encoded(small, "WEBP"),
        encoded(small, "WEBP", save_all=True, append_images=frames),
        encoded(small, "BMP"),
        encoded(small.quantize(8), "BMP"),
        encoded(small, "GIF"),
        encoded(small, "GIF", save_all=True, append_images=frames),
        encoded(small, "TIFF"),
        encoded(small, "TIFF", compression="tiff_lzw"),
        encoded(small, "TIFF", compression="jpeg"),
        encoded(grey16, "TIFF"),
    ]


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, cut out, doubled or cut off."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        where = chance.randrange(len(changed)) if chance.random() < 0.5 else chance.randrange(min(64, len(changed)))
        match chance.randrange(5):
            case 0:
                changed[where] = chance.randrange(256)
            case 1:
                changed[where] = chance.choice((0, 1, 127, 128, 255))
            case 2:
                del changed[where : where + chance.randint(1, 8)]
            case 3:
                changed[where:where] = changed[where : where + chance.randint(1, 16)]
            case _:
                del changed[max(where, 8) :]
        changed = changed or bytearray(b"\0")
    return bytes(changed)


@pytest.mark.filterwarnings("ignore")
def test_of_damaged_files_only_bad_image_comes_out() -> None:
    """Pillow raises TypeError, IndexError, struct.error and more on such files; a run must not end by one."""
    chance = random.Random(20_261_122)
    originals = seeds()
    good = bad = 0
    for number in range(MUTATIONS):
        data = mutated(originals[number % len(originals)], chance)
        for read in (lambda data: decode(data, draft_px=8), decode, read_header):
            try:
                read(data)
                good += 1
            except BadImage as error:
                assert "\n" not in str(error)
                bad += 1
    assert good > MUTATIONS / 10
    assert bad > MUTATIONS / 10


def test_a_fifo_does_not_block(tmp_path: Path) -> None:
    """Opening one waits for a writer for ever, unless it is asked not to."""
    os.mkfifo(tmp_path / "x.jpg")
    with pytest.raises(NotAFile):
        read_file(tmp_path / "x.jpg")


def test_a_folder_named_like_a_picture_is_not_a_file(tmp_path: Path) -> None:
    """And no file descriptor is lost on it."""
    (tmp_path / "x.jpg").mkdir()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with pytest.raises(NotAFile, match="folder"):
            read_file(tmp_path / "x.jpg")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("name", ["nothing here.jpg", "a" * 300, "loop.jpg", "null\0byte.jpg"])
def test_what_cannot_be_opened_is_a_bad_image(tmp_path: Path, name: str) -> None:
    """A missing file, a name that is too long, a link to itself, a name no file can have."""
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    with pytest.raises(BadImage, match="cannot be opened: "):
        read_file(f"{tmp_path}/{name}")


def test_a_file_that_may_not_be_read_is_a_bad_image(tmp_path: Path) -> None:
    """One unreadable file must not end a run."""
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (tmp_path / "x.jpg").write_bytes(b"x")
    (tmp_path / "x.jpg").chmod(0)
    with pytest.raises(BadImage, match="Permission denied"):
        read_file(tmp_path / "x.jpg")


@pytest.mark.parametrize("call", ["open", "read"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EMFILE])
def test_a_file_system_that_does_not_answer_says_nothing_of_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    """A file server that restarts: set aside, its pictures would be missing for ever."""
    (tmp_path / "x.jpg").write_bytes(b"x")

    def fails(*_: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fails)

    with pytest.raises(OutOfReach, match=rf"x\.jpg cannot be .*: {os.strerror(code)}"):
        read_file(tmp_path / "x.jpg")


def test_files_are_read_whole_or_refused(tmp_path: Path) -> None:
    """At the limit, one byte above it, and a device that never ends."""
    file = tmp_path / 'quo"te\n-and newline.jpg'
    file.write_bytes(b"x" * 100)
    (tmp_path / "link.jpg").symlink_to(file)
    assert read_file(tmp_path / "link.jpg", max_bytes=100) == b"x" * 100
    with pytest.raises(TooManyBytes, match="100 bytes; at most 99"):
        read_file(file, max_bytes=99)
    with pytest.raises(NotAFile):
        read_file("/dev/zero")


def test_a_file_that_states_no_size_is_read_whole() -> None:
    """Those of /proc state 0 bytes; a limit below what is there is still seen."""
    content = Path("/proc/version").read_bytes()
    assert read_file("/proc/version") == content
    with pytest.raises(TooManyBytes):
        read_file("/proc/version", max_bytes=len(content) - 1)


def test_a_small_file_takes_little_memory_to_read(tmp_path: Path) -> None:
    """Python takes memory for as many bytes as are asked for: in a process with many threads that takes a while."""
    (tmp_path / "x.png").write_bytes(b"x" * 1000)
    tracemalloc.start()
    try:
        read_file(tmp_path / "x.png")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100_000


def test_errors_cross_processes_unchanged() -> None:
    """Ray pickles what a task raises; class, message and reason must arrive."""
    classes = [found for found in vars(errors).values() if isinstance(found, type)]
    assert len(classes) >= 13
    for kind in classes:
        copy = pickle.loads(pickle.dumps(kind("found 1, expected 2; do this")))
        assert type(copy) is kind
        assert str(copy) == "found 1, expected 2; do this"
    reasons = [kind.reason for kind in (BadImage, *BadImage.__subclasses__())]
    assert len(set(reasons)) == len(reasons) == 7


def test_the_limit_stays_below_pillows_own_warning() -> None:
    """So a user never sees Pillow's own words for it."""
    assert Image.MAX_IMAGE_PIXELS is not None
    assert MAX_PIXELS < Image.MAX_IMAGE_PIXELS
