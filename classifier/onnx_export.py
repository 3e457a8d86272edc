"""A finished model folder, written for ONNX Runtime as well: `model.onnx`, kept only when it gives the same answers."""

import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from classifier.model_folder import ONNX, Manifest, OnnxReport, load_model, read_manifest, sha256, write_manifest
from classifier.onnx_backend import OnnxBackend

if TYPE_CHECKING:
    from classifier.network import Network
    from classifier.torch_backend import TorchBackend

_log = logging.getLogger(__name__)

MAX_DIFFERENCE = 1e-4
_OPSET = 17  # the first with LayerNormalization, which every transformer needs
_CHUNK = 8


def export_onnx(folder: Path, pixels: np.ndarray) -> Manifest:
    """Add `model.onnx` to a finished model folder, if its answers agree with torch's.

    Call it once, after `write_model`: the folder is complete without it, and stays so whatever happens here.
    Normalisation and softmax lie inside the graph: uint8 `pixels` [B,3,H,W] in, float32 `probabilities` [B,C] out.

    Args:
        folder: a model folder, as `write_model` leaves it.
        pixels: uint8 [N,3,H,W], up to 32 real pictures, as `load_pixels` gives them: answers are compared on them.

    Returns:
        The folder's manifest as it stands now; its `onnx` says whether the file was kept, and why not.

    Raises:
        BadModelFolder: the folder itself cannot be loaded.
    """
    from classifier.torch_backend import TorchBackend

    model = load_model(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch:
        file = Path(scratch) / ONNX
        try:
            _write_graph(model.network, pixels, file)
            report = _compare(TorchBackend(model.network, on_gpu=False), file, pixels)
        except Exception as error:  # a network that the exporter cannot trace: torch answers for it
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            report = OnnxReport(kept=False, reason=reason, pictures=0, max_difference=None, speedup=None)
        files = {name: digest for name, digest in read_manifest(folder).files.items() if name != ONNX}
        if report.kept:
            files[ONNX] = sha256(file)
            file.replace(folder / ONNX)
        else:
            _log.warning("no %s: %s", ONNX, report.reason)
            (folder / ONNX).unlink(missing_ok=True)
    manifest = model.manifest.model_copy(update={"files": files, "onnx": report})
    write_manifest(folder, manifest)
    return manifest


def _write_graph(network: "Network", pixels: np.ndarray, file: Path) -> None:
    import torch

    class _Probabilities(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.softmax(self.network(pixels), dim=1)

    example = torch.from_numpy(np.repeat(pixels[:1], 2, axis=0))
    batch = {0: "batch"}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of tracing: what they warn of is what `_compare` looks at
        # The tracing exporter: the newer one needs one more package and seconds instead of tenths of them.
        torch.onnx.export(
            _Probabilities().eval(),
            (example,),
            str(file),
            dynamo=False,
            opset_version=_OPSET,
            input_names=["pixels"],
            output_names=["probabilities"],
            dynamic_axes={"pixels": batch, "probabilities": batch},
        )


def _compare(torch_backend: "TorchBackend", file: Path, pixels: np.ndarray) -> OnnxReport:
    """Compare answers in batches of a size that the graph was not traced with, and measure both while at it."""
    import torch

    onnx_backend = OnnxBackend(file.read_bytes(), threads=torch.get_num_threads())
    chunks = np.array_split(pixels, -(-len(pixels) // _CHUNK))
    differences, ratios = [], []
    for chunk in (chunks[0][:1], chunks[0], *chunks):  # the first two are not timed: both engines prepare in them
        started = time.perf_counter()
        expected = torch_backend.probabilities(chunk)
        between = time.perf_counter()
        found = onnx_backend.probabilities(chunk)
        ended = time.perf_counter()
        differences.append(float(np.abs(found - expected).max()))
        ratios.append((between - started) / (ended - between))
    difference = max(differences) if np.isfinite(differences).all() else float("inf")
    kept = difference <= MAX_DIFFERENCE
    return OnnxReport(
        kept=kept,
        reason="" if kept else f"a probability differs by {difference:.1e}, more than {MAX_DIFFERENCE:.0e}",
        pictures=len(pixels),
        max_difference=difference if np.isfinite(difference) else None,
        speedup=round(statistics.median(ratios[2:]), 3),
    )
