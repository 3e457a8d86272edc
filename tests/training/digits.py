"""A tiny real dataset: some of scikit-learn's digits, written once for the session."""

from pathlib import Path

from PIL import Image

from training.digits import write_digits


def write_few_digits(folder: Path, *, classes: int, each: int) -> Path:
    """The first `each` pictures of the first `classes` digits, at `folder/<digit>/`."""
    everything = folder.parent / f".{folder.name}-all"
    write_digits(everything)
    for digit in range(classes):
        (folder / str(digit)).mkdir(parents=True)
        for file in sorted((everything / str(digit)).iterdir())[:each]:
            file.rename(folder / str(digit) / file.name)
    return folder


def write_picture(
    file: Path, colour: tuple[int, int, int] = (200, 30, 30), size_px: tuple[int, int] = (24, 16)
) -> Path:
    """A one-colour picture in whatever format the suffix asks for."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size_px, colour).save(file)
    return file
