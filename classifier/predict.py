"""Pixels to probabilities, probabilities to the top few labels.

Axis letters: B pictures, C classes, H and W pixels. Importing this module imports neither torch nor transformers: a
process that answers with ONNX Runtime starts in a tenth of the time.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

from classifier.device import has_gpu_driver
from classifier.errors import BadModelFolder, ConfigError
from classifier.model_folder import ONNX, Manifest, check_file, load_model, read_manifest
from classifier.preprocess import PreprocessSpec

Device = Literal["auto", "cpu", "gpu"]
BackendName = Literal["auto", "torch", "onnx"]

# Within this of torch's speed ONNX Runtime is taken: it starts seconds sooner and needs some 300 MB less.
_ONNX_FROM_SPEEDUP = 0.9


class Prediction(NamedTuple):
    """One label of an answer."""

    label: str
    code: int
    probability: float  # 0..1


class Backend(Protocol):
    """What computes: `torch_backend.TorchBackend` or `onnx_backend.OnnxBackend`."""

    name: str
    device: str

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:  # uint8 [B,3,H,W] -> float32 [B,C]
        """The probability of every class for every picture; B is at least 1."""
        ...


class Predictor:
    """A model folder, ready to answer. Used by test scoring, by the endpoint and by the folder job alike."""

    def __init__(self, manifest: Manifest, backend: Backend) -> None:
        self.manifest = manifest
        self._backend = backend

    @classmethod
    def load(
        cls, folder: Path, *, device: Device = "auto", backend: BackendName = "auto", threads: int | None = None
    ) -> "Predictor":
        """Load a model folder, checked against its digests.

        Args:
            folder: as training leaves it.
            device: `auto` is a GPU where there is one.
            backend: `auto` is torch on a GPU; on a CPU it is ONNX Runtime when the folder holds `model.onnx` and that
                was not measured to be slower when it was written, torch otherwise.
            threads: how many threads compute on a CPU; None: one for each core that this process may use.

        Raises:
            BadModelFolder: it cannot be used, or has no `model.onnx` and `backend` is onnx.
            ClusterError: `device` is gpu, and there is none.
            ConfigError: `backend` is onnx and `device` is gpu.
        """
        if backend == "onnx" and device == "gpu":
            raise ConfigError("backend=onnx runs on CPUs only; set device=cpu, or backend=torch")
        on_gpu = device == "gpu" or (device == "auto" and backend != "onnx" and gpu_is_here())
        manifest = read_manifest(folder)
        if uses_onnx(manifest, backend=backend, on_gpu=on_gpu):
            return cls(manifest, _onnx_backend(folder, manifest, threads))
        from classifier.torch_backend import TorchBackend

        model = load_model(folder)
        return cls(model.manifest, TorchBackend(model.network, on_gpu=on_gpu, threads=threads))

    @property
    def spec(self) -> PreprocessSpec:
        """The model's own preprocessing."""
        return self.manifest.preprocess

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in code order."""
        return self.manifest.labels

    @property
    def backend(self) -> str:
        """What computes: `torch` or `onnx`."""
        return self._backend.name

    @property
    def device(self) -> str:
        """Where it computes: `cpu` or `cuda`."""
        return self._backend.device

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:  # uint8 [B,3,H,W] -> float32 [B,C]
        """The probability of every class for every picture; each row sums to 1."""
        if len(pixels) == 0:
            return np.zeros((0, len(self.labels)), dtype=np.float32)
        return self._backend.probabilities(pixels)

    def warm_up(self, *, batch_size: int = 1) -> None:
        """Answer a grey picture, so that the first real one does not pay for lazy initialisation."""
        self.probabilities(np.full((batch_size, 3, self.spec.height_px, self.spec.width_px), 127, dtype=np.uint8))


def top(probabilities: np.ndarray, *, labels: Sequence[str], k: int = 3) -> list[Prediction]:
    """The k most probable labels of one picture, best first; all of them when there are fewer than k.

    Args:
        probabilities: float [C].
        labels: class names in code order, C of them.
        k: how many.

    Ties go to the lower code, so an answer never depends on the sort.
    """
    codes = np.argsort(-probabilities, kind="stable")[:k]
    return [Prediction(labels[code], int(code), float(probabilities[code])) for code in codes]


def uses_onnx(manifest: Manifest, *, backend: BackendName, on_gpu: bool) -> bool:
    """Whether ONNX Runtime answers for a model."""
    return backend == "onnx" or (backend == "auto" and not on_gpu and _prefers_onnx(manifest))


def _prefers_onnx(manifest: Manifest) -> bool:
    """By the measurement of the CPU that wrote the folder: convolutions gain 4 to 8 times, attention nothing."""
    report = manifest.onnx
    return report is not None and report.kept and (report.speedup or 0.0) >= _ONNX_FROM_SPEEDUP


def _onnx_backend(folder: Path, manifest: Manifest, threads: int | None) -> Backend:
    from classifier.onnx_backend import OnnxBackend

    if ONNX not in manifest.files:
        why = manifest.onnx.reason if manifest.onnx else "training did not write one"
        raise BadModelFolder(f"{folder} has no {ONNX} ({why}); set backend=torch or backend=auto")
    check_file(folder, ONNX, manifest)
    return OnnxBackend((folder / ONNX).read_bytes(), threads=threads)


def gpu_is_here() -> bool:
    """Whether torch sees a GPU; torch is asked, which takes seconds, only where there is a driver at all."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return False  # Ray says so to whoever did not ask for one
    if not has_gpu_driver():
        return False
    import torch

    return torch.cuda.is_available()
