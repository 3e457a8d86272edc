"""The Lightning module: loss, exact metrics over all workers, optimizer."""

import math
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn
from torch.nn import functional

from classifier.network import Network
from training.augment import augment
from training.batches import Batch
from training.config import TrainConfig


class ClassifierModule(lightning.LightningModule):
    """Trains a `Network`.

    Metrics are sums over pictures, added up over workers once an epoch: exact, whatever the number of workers, and no
    step waits for the device to report a number.
    """

    def __init__(self, network: Network, config: TrainConfig, *, steps_per_epoch: int) -> None:
        super().__init__()
        self.network = network
        self._config = config
        self._steps_per_epoch = steps_per_epoch
        self._sums: dict[str, Tensor] = {}  # stage -> loss, correct, pictures of the epoch so far

    def forward(self, pixels: Tensor) -> Tensor:  # uint8 or float [B,3,H,W] in 0..255 -> float32 [B,C]
        """Logits."""
        logits: Tensor = self.network(pixels)
        return logits

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """The step's loss: divided so that the mean over workers is the mean over the step's pictures."""
        logits = self(augment(batch, self._config.augment))
        losses = functional.cross_entropy(
            logits, batch.labels, reduction="none", label_smoothing=self._config.model.label_smoothing
        )
        self._add("train", losses.detach(), logits.detach(), batch)
        return (losses * batch.weights).sum() / batch.share

    def validation_step(self, batch: Batch, _: int) -> None:
        """Adds the batch to the epoch's sums."""
        logits = self(batch.pixels)
        self._add("val", functional.cross_entropy(logits, batch.labels, reduction="none"), logits, batch)

    def configure_optimizers(self) -> Any:
        """AdamW; the learning rate rises over the warm-up, then stays or falls as a cosine."""
        model = self._config.model
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        groups = [
            {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": model.weight_decay},
            {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=model.lr, fused=True)
        warmup = round(model.warmup_epochs * self._steps_per_epoch)
        total = self._config.trainer.max_epochs * self._steps_per_epoch

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            if model.schedule == "constant":
                return 1.0
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Limit the norm of the gradients. Lightning's own way refuses a fused optimizer in mixed precision, for the sake
        of a loss scaling that bf16 does not need."""
        limit = self._config.trainer.gradient_clip
        if limit is not None:
            nn.utils.clip_grad_norm_(
                [parameter for group in optimizer.param_groups for parameter in group["params"]], limit
            )

    def on_validation_epoch_start(self) -> None:
        """Evaluate one network: each worker's BatchNorm has seen other pictures, so their statistics are averaged."""
        if self.trainer.world_size > 1:
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                    for statistic in (module.running_mean, module.running_var):
                        assert statistic is not None
                        torch.distributed.all_reduce(statistic)
                        statistic.div_(self.trainer.world_size)

    def take_epoch_metrics(self) -> dict[str, float]:
        """`train_loss`, `val_loss` and `val_acc` of the epoch that just ended, over all workers' pictures.

        The sums start anew with this: after a resume Lightning does not call the hooks at an epoch's start.
        """
        sums = torch.stack([self._sums.pop("train"), self._sums.pop("val")]).double()
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(sums)
        (train_loss, _, trained), (val_loss, correct, validated) = sums.tolist()
        return {
            "train_loss": train_loss / max(1.0, trained),
            "val_loss": val_loss / max(1.0, validated),
            "val_acc": correct / max(1.0, validated),
        }

    def _add(self, stage: str, losses: Tensor, logits: Tensor, batch: Batch) -> None:
        correct = (logits.argmax(1) == batch.labels).float() * batch.weights
        sums = torch.stack([(losses * batch.weights).sum(), correct.sum(), batch.weights.sum()])
        self._sums[stage] = self._sums[stage] + sums if stage in self._sums else sums
