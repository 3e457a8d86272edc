"""An average of the weights over the last steps: what is validated, kept and shipped.

The weights of a single step are noisy with small batches, and so is their accuracy: a run would stop on bad luck.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn

if TYPE_CHECKING:
    import lightning.pytorch as lightning


class WarmedUpAverage(WeightAveraging):
    """An exponential moving average whose memory grows with the run: at first a few steps, at last 1 / (1 - decay).

    Args:
        decay: 0..1, how much of the average stays in a step, once the run is long enough.
        device: where the network is trained. Lightning would take the device that the network is on when the trainer is
            set up, which is the CPU still, and copy the whole network there after every step.
    """

    _latest_update_step: int  # Lightning's own

    def __init__(self, *, decay: float, device: torch.device | str) -> None:
        super().__init__(device=device)
        self._decay = decay

    def on_train_batch_end(
        self, trainer: "lightning.Trainer", pl_module: "lightning.LightningModule", *_: Any, **__: Any
    ) -> None:
        """Move the average after every optimizer step. Lightning's own way asks the device for a count, and waits for it."""
        steps = trainer.global_step
        if steps <= self._latest_update_step:
            return
        averaged = self._average_model
        assert averaged is not None
        pairs = list(zip(_values(averaged.module), _values(pl_module), strict=True))
        # the first step's weights are all that there is
        decay = min(self._decay, steps / (9 + steps)) if self._latest_update_step else 0.0
        with torch.no_grad():
            averages, currents = _columns([pair for pair in pairs if pair[0].is_floating_point()])
            torch._foreach_lerp_(averages, currents, 1 - decay)
            averages, currents = _columns([pair for pair in pairs if not pair[0].is_floating_point()])
            if averages:  # counters, as BatchNorm has: taken as they are
                torch._foreach_copy_(averages, currents)
        self._latest_update_step = steps


def _values(module: nn.Module) -> Iterator[Tensor]:
    """Everything that is averaged."""
    yield from module.parameters()
    yield from module.buffers()


def _columns(pairs: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [average for average, _ in pairs], [current for _, current in pairs]
