"""Backends of `Predictor` against plain transformers: `python -m benchmarks.inference --weights FOLDER [FOLDER ...]`.

Same weights, same pixels, same number of threads. In every round each contender answers the same batch for a while, one
after the other; ratios are those of a round.

    transformers     the Hugging Face network as it is loaded: float pixels in torch's default memory format
    torch            `Predictor` with backend=torch: uint8 pixels, channels_last
    onnx             `Predictor` with backend=onnx: uint8 pixels, ONNX Runtime

`start` is a process of its own, from its first line to its first answer.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import row, write

BATCHES = (1, 8, 32)
SECONDS = 0.2  # that each contender runs in a round, at least
START = (
    "import sys; from pathlib import Path; from classifier.predict import Predictor;"
    "Predictor.load(Path(sys.argv[1]), device='cpu', backend=sys.argv[2]).warm_up()"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights", type=Path, nargs="+", required=True, help="Hugging Face image classifiers' folders"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, len(os.sched_getaffinity(0))}))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="inference-bench-") as scratch:
        for weights in arguments.weights:
            model = Path(scratch) / weights.name
            _write_model(weights, model)
            for threads in arguments.threads:
                for batch in BATCHES:
                    write("inference", _forward(weights, model, threads, batch, arguments.rounds))
            write("inference", [_start(weights.name, model, arguments.rounds)])


def _write_model(weights: Path, model: Path) -> None:
    """A model folder of five classes with its `model.onnx`."""
    from classifier import image
    from classifier.model_folder import write_model
    from classifier.network import load_network
    from classifier.onnx_export import export_onnx
    from classifier.processor import load_preprocess

    labels = tuple("abcde")
    spec = load_preprocess(str(weights), size_px=None, max_pixels=image.MAX_PIXELS)
    network = load_network(str(weights), labels=labels, spec=spec)
    write_model(model, network, name=weights.name, labels=labels, spec=spec, dataset={}, metrics={}, created="")
    report = export_onnx(model, _pixels(32, spec.height_px, spec.width_px)).onnx
    assert report is not None
    assert report.kept, report.reason


def _forward(weights: Path, model: Path, threads: int, batch: int, rounds: int) -> list[dict[str, Any]]:
    import torch
    from transformers import AutoModelForImageClassification

    from classifier.predict import Predictor

    by_torch = Predictor.load(model, device="cpu", backend="torch", threads=threads)
    by_onnx = Predictor.load(model, device="cpu", backend="onnx", threads=threads)
    plain = AutoModelForImageClassification.from_pretrained(model).eval()
    spec = by_torch.spec
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    pixels = _pixels(batch, spec.height_px, spec.width_px)

    @torch.inference_mode()
    def transformers() -> Any:
        floats = (torch.from_numpy(pixels).float() * spec.rescale_factor - mean) / std
        return torch.softmax(plain(pixel_values=floats).logits, dim=1)

    contenders: dict[str, Callable[[], Any]] = {
        "transformers": transformers,
        "torch": lambda: by_torch.probabilities(pixels),
        "onnx": lambda: by_onnx.probabilities(pixels),
    }
    np.testing.assert_allclose(contenders["onnx"](), transformers().numpy(), atol=1e-4)
    rates = [{name: batch * _rate(call) for name, call in contenders.items()} for _ in range(rounds)]
    what = f"{weights.name}, {threads} thread{'s' * (threads > 1)}, batch {batch}, pictures/s"
    by_auto = Predictor.load(model, device="cpu").backend
    bars = {name: _bar(weights.name, name, by_auto) for name in ("torch", "onnx")}
    return [
        row(f"{what}, {name}", [(rate[name], rate["transformers"]) for rate in rates], peer="transformers", bar=bar)
        for name, bar in bars.items()
    ]


def _bar(model: str, backend: str, by_auto: str) -> str | None:
    """What the project promises: convolutions three times as fast; the backend that `auto` takes never slower."""
    if backend != by_auto:
        return None
    return ">= 3.0" if "mobilenet" in model else ">= 0.9"


def _rate(call: Callable[[], Any]) -> float:
    """Calls a second."""
    call()
    calls, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < SECONDS or not calls:
        call()
        calls += 1
    return calls / elapsed


def _start(name: str, model: Path, rounds: int) -> dict[str, Any]:
    def seconds(backend: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", START, str(model), backend], check=True, stderr=subprocess.DEVNULL)
        return time.perf_counter() - began

    pairs = [(seconds("onnx"), seconds("torch")) for _ in range(rounds)]
    return row(f"{name}, seconds to the first answer of a new process, onnx", pairs, peer="torch", bar="<= 0.33")


def _pixels(batch: int, height_px: int, width_px: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (batch, 3, height_px, width_px), dtype=np.uint8)


if __name__ == "__main__":
    main()
