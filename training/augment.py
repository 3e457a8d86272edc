"""Random changes to training pictures, on the device, a batch at a time.

What changes is drawn with the batch (`batches`): it depends on seed, epoch and step, not on the number of workers.
"""

import torch
from torch import Tensor
from torch.nn import functional

from training.batches import Batch
from training.config import AugmentConfig


def augment(batch: Batch, config: AugmentConfig) -> Tensor:  # -> uint8 or float32 [B,3,H,W] in 0..255
    """Flip and crop a batch as its draws say.

    Args:
        batch: with `flips` and `crops` on the pixels' device.
        config: which of them are on, and the smallest crop.

    Returns:
        pixels in 0..255; float when they were resampled.
    """
    pixels = batch.pixels
    if not config.flip and config.crop_scale_min == 1.0:
        return pixels
    mirror = torch.where(batch.flips, -1.0, 1.0) if config.flip else torch.ones(len(pixels), device=pixels.device)
    if config.crop_scale_min == 1.0:
        return torch.where(batch.flips[:, None, None, None], pixels.flip(3), pixels)
    area = config.crop_scale_min + (1 - config.crop_scale_min) * batch.crops[:, 0]
    side = area.sqrt()
    # the crop's centre, so that it stays inside the picture; coordinates run from -1 to 1
    shift = (1 - side)[:, None] * (2 * batch.crops[:, 1:] - 1)
    transform = torch.zeros(len(pixels), 2, 3, device=pixels.device)
    transform[:, 0, 0], transform[:, 1, 1] = side * mirror, side
    transform[:, :, 2] = shift
    grid = functional.affine_grid(transform, list(pixels.shape), align_corners=False)
    floats = pixels.to(torch.float32, memory_format=torch.channels_last)
    return functional.grid_sample(floats, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
