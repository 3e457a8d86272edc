"""Pixels to probabilities, probabilities to the top few labels.

Axis letters: B pictures, C classes, H and W pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from classifier.errors import ClusterError
from classifier.model_folder import Manifest, ModelFolder, load_model
from classifier.preprocess import PreprocessSpec

Device = Literal["auto", "cpu", "gpu"]


class Prediction(NamedTuple):
    """One label of an answer."""

    label: str
    code: int
    probability: float  # 0..1


class Predictor:
    """A model folder, ready to answer. Used by the endpoint and by the folder job alike.

    Not safe for concurrent calls from several threads when `device` is a GPU: callers batch instead.
    """

    def __init__(self, model: ModelFolder, *, device: Device = "auto") -> None:
        self.manifest: Manifest = model.manifest
        self.device = _torch_device(device)
        network = model.network.to(self.device).eval()
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs

    @classmethod
    def load(cls, folder: Path, *, device: Device = "auto") -> "Predictor":
        """Load a model folder, checked against its digests.

        Raises:
            BadModelFolder: it cannot be used.
            ClusterError: `device` is gpu, and there is none.
        """
        return cls(load_model(folder), device=device)

    @property
    def spec(self) -> PreprocessSpec:
        """The model's own preprocessing."""
        return self.manifest.preprocess

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in code order."""
        return self.manifest.labels

    @torch.inference_mode()
    def probabilities(self, pixels: np.ndarray) -> np.ndarray:  # uint8 [B,3,H,W] -> float32 [B,C]
        """The probability of every class for every picture; each row sums to 1."""
        batch = torch.from_numpy(pixels).to(self.device)
        return torch.softmax(self._network(batch), dim=1).cpu().numpy()

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


def _torch_device(device: Device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "gpu" and not torch.cuda.is_available():
        raise ClusterError("device=gpu, but PyTorch sees no GPU here; set device=cpu or device=auto")
    return torch.device("cuda" if device == "gpu" else "cpu")
