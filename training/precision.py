"""In which numbers a network is trained."""

from typing import Literal

import torch
from torch import Tensor, nn

# oneDNN computes these convolutions' gradients in bf16 by plain loops, where it has vector code for 32-bit floats.
_LARGEST_KERNEL = 3


def lightning_precision(asked: Literal["auto", 32, "bf16"], *, on_gpu: bool) -> Literal["bf16-mixed", "32-true"]:
    """Lightning's name for it. Weights, averages, loss and statistics are 32-bit floats in either."""
    if asked == "auto":
        # Emulated, it is slower: this asks for AMX or AVX-512 BF16, or for tensor cores that take it.
        cpu = torch.cpu.get_capabilities()
        computes = (
            torch.cuda.is_bf16_supported(including_emulation=False)
            if on_gpu
            else (cpu.get("amx_bf16", False) or cpu.get("avx512_bf16", False))
        )
        asked = "bf16" if computes else 32
    return "bf16-mixed" if asked == "bf16" else "32-true"


def keep_depthwise_in_float32(network: nn.Module) -> None:
    """Keep depthwise convolutions out of bf16 where a CPU is slower in it: with a stride, or a kernel of over 3 pixels.

    Their gradient takes 3 to 30 times as long in bf16: a fifth of a training step of MobileNet V2. Nothing else changes;
    the names of the weights do not either.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_slow(module):
            module.__class__ = _Float32Conv2d


class _Float32Conv2d(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002  torch's name
        with torch.autocast(input.device.type, enabled=False):
            output: Tensor = super()._conv_forward(input.float(), weight, bias)
        return output


def _is_slow(module: nn.Conv2d) -> bool:
    depthwise = module.groups == module.in_channels > 1
    return depthwise and (max(module.stride) > 1 or max(module.kernel_size) > _LARGEST_KERNEL)
