"""Folders of real pictures, and the folder job as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from cluster.terminal import run_command
from serving import batch

REPOSITORY = Path(__file__).resolve().parents[2]


def picture(path: Path, seed: int = 0, size_px: tuple[int, int] = (40, 30)) -> Path:
    """A small picture of smooth noise, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size_px)
    formats = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF"}
    with open(path, "wb") as file:  # Pillow does not take names that are not UTF-8
        image.save(file, format=formats[path.suffix.lower()])
    return path


def job(model: Path, source: Path | str, target: Path | str, *settings: str) -> int:
    """Run the folder job in this process; small folders do not need Ray. Returns the exit code."""
    return run_command(
        batch.run, [f"md={model}", f"predict.input_dir={source}", f"predict.output_dir={target}", *settings]
    )


def job_process(
    model: Path, source: Path, target: Path, *settings: str, address: str | None = None
) -> subprocess.Popen[str]:
    """Start the command as a user does, on the Ray at `address` if one is given."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY), "RAY_ADDRESS": address or ""}
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "serving.batch", f"md={model}"),
            *(f"predict.input_dir={source}", f"predict.output_dir={target}", *settings),
        ],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def records(target: Path) -> dict[str, dict]:
    """Every result file below a folder: relative path -> record."""
    found = {}
    for folder, _, names in os.walk(target):
        for name in names:
            file = Path(folder, name)
            if name.endswith(".json") and name != "summary.json":
                found[str(file.relative_to(target))] = json.loads(file.read_bytes())
    return found


def summary(target: Path) -> dict:
    return json.loads((target / "summary.json").read_text())
