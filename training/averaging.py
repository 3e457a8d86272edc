"""An average of the weights over the last steps: what is validated, kept and shipped.

The weights of a single step are noisy with small batches, and so is their accuracy: a run would stop on bad luck.
"""

from typing import TYPE_CHECKING

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

if TYPE_CHECKING:
    import lightning.pytorch as lightning


class WarmedUpAverage(WeightAveraging):
    """An exponential moving average whose memory grows with the run: at first a few steps, at last 1 / (1 - decay)."""

    def __init__(self, *, decay: float) -> None:
        super().__init__(multi_avg_fn=self._update)
        self._decay = decay
        self._steps = 0

    def setup(self, trainer: "lightning.Trainer", pl_module: "lightning.LightningModule", stage: str) -> None:
        """Make the average. Its count of steps stays in main memory: to look at it must not wait for the device."""
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """After every step; remembers which one it is."""
        if step_idx is None:
            return False
        self._steps = step_idx
        return True

    def _update(self, averages: list[Tensor], currents: list[Tensor], _: Tensor | int) -> None:
        """Move each average towards its current value. A counter (BatchNorm's) is taken as it is."""
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        if torch.is_floating_point(averages[0]):
            torch._foreach_lerp_(averages, currents, 1 - decay)
        else:
            torch._foreach_copy_(averages, currents)
