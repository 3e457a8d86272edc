"""Probabilities by PyTorch, on a CPU or a GPU."""

import numpy as np
import torch

from classifier.errors import ClusterError
from classifier.memory import keep_freed_memory
from classifier.network import Network


class TorchBackend:
    """A network in channels_last, ready to answer.

    Not safe for concurrent calls from several threads when the device is a GPU: callers batch instead.
    """

    name = "torch"

    def __init__(self, network: Network, *, on_gpu: bool, threads: int | None = None) -> None:
        if on_gpu and not torch.cuda.is_available():
            raise ClusterError("device=gpu, but PyTorch sees no GPU here; set device=cpu or device=auto")
        keep_freed_memory()
        if threads is not None:
            torch.set_num_threads(threads)  # of the whole process: torch has no other setting
        self.device = "cuda" if on_gpu else "cpu"
        network = network.to(self.device).eval()
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs

    @torch.inference_mode()
    def probabilities(self, pixels: np.ndarray) -> np.ndarray:  # uint8 [B,3,H,W] -> float32 [B,C]
        """The probability of every class for every picture."""
        batch = torch.from_numpy(pixels).to(self.device)
        answer: np.ndarray = torch.softmax(self._network(batch), dim=1).cpu().numpy()
        return answer
