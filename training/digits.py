"""`python -m training.digits`: the 1,797 handwritten digits that scikit-learn ships, as a dataset of PNG files."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from cluster.terminal import EXIT_BAD_INPUT, EXIT_OK, Terminal, run_command


def write_digits(folder: Path) -> int:
    """Write the digits as 8 x 8 PNG files, `folder/<digit>/<number>.png`; returns how many.

    Source: scikit-learn's copy of the UCI "Optical Recognition of Handwritten Digits" test set.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        file = folder / str(digit) / f"{number:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        # samples are 0..16
        Image.fromarray(np.clip(pixels * 16, 0, 255).astype(np.uint8)).save(file)
    return len(digits.target)


def main(arguments: list[str], terminal: Terminal) -> int:
    """Write the digits where training looks for them, unless they are there."""
    folder = Path("data/raw_data/DIGITS")
    if arguments:
        terminal.say(f"python -m training.digits writes 1,797 pictures of digits to {folder}; it takes no settings.")
        return EXIT_OK if arguments[0] in ("-h", "--help") else EXIT_BAD_INPUT
    count = len(list(folder.glob("*/*.png"))) if folder.is_dir() else 0
    if count:
        terminal.say(f"{folder} is there already, with {count:,} pictures.")
    else:
        terminal.say(f"Wrote {write_digits(folder):,} pictures to {folder}.")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
