"""An average of the weights over the last steps: what is validated, kept and shipped.

The weights of a single step are noisy with small batches, and so is their accuracy: a run would stop on bad luck.
"""

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class WarmedUpAverage(WeightAveraging):
    """An exponential moving average whose memory grows with the run: at first a few steps, at last 1 / (1 - decay)."""

    def __init__(self, *, decay: float) -> None:
        def update(averages: list[Tensor], currents: list[Tensor], steps: Tensor | int) -> None:
            _update(averages, currents, decay=min(decay, (1 + int(steps)) / (10 + int(steps))))

        super().__init__(multi_avg_fn=update)


def _update(averages: list[Tensor], currents: list[Tensor], *, decay: float) -> None:
    """Move each average towards its current value. A counter (BatchNorm's) is taken as it is."""
    if torch.is_floating_point(averages[0]):
        torch._foreach_lerp_(averages, currents, 1 - decay)
    else:
        torch._foreach_copy_(averages, currents)
