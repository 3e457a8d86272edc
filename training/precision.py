"""In which numbers a network is trained."""

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# oneDNN computes these convolutions' gradients in bf16 by plain loops, where it has vector code for 32-bit floats.
_LARGEST_KERNEL = 3
_ATTENTION = "sdpa_in_float32"  # transformers' name for it, once it is told of


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


def keep_slow_in_float32(network: nn.Module) -> None:
    """Keep out of bf16 what a CPU is slower in. The names of the weights stay as they are.

    That is depthwise convolutions with a stride or a kernel of over 3 pixels, whose gradient takes 3 to 30 times as long in
    bf16 (a fifth of a training step of MobileNet V2), and, on CPUs without AMX, transformers' attention by PyTorch's fused
    function: it multiplies small blocks, and in bf16 oneDNN prepares each of these products anew, in memory that the
    threads wait for each other to get (a sixth of a training step of a ViT).
    """
    from transformers import PreTrainedModel

    has_amx = torch.cpu.get_capabilities().get("amx_bf16", False)
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_slow(module):
            module.__class__ = _Float32Conv2d
        elif isinstance(module, PreTrainedModel) and not has_amx and _attends_by_fused_function(module):
            _register_attention()
            module.set_attn_implementation(_ATTENTION)  # not written into the model's config.json


class _Float32Conv2d(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002  torch's name
        with torch.autocast(input.device.type, enabled=False):
            output: Tensor = super()._conv_forward(input.float(), weight, bias)
        return output


def _is_slow(module: nn.Conv2d) -> bool:
    depthwise = module.groups == module.in_channels > 1
    return depthwise and (max(module.stride) > 1 or max(module.kernel_size) > _LARGEST_KERNEL)


def _attends_by_fused_function(model: "PreTrainedModel") -> bool:
    """And can be told otherwise: a few models have an attention of their own."""
    can: bool = model._can_set_attn_implementation()
    return can and model.config._attn_implementation == "sdpa"


def _register_attention() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_ATTENTION, _attention)
    AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' attention by PyTorch's fused function, in 32-bit floats."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    tensors = (_float32(tensor) for tensor in (query, key, value, attention_mask))
    with torch.autocast(query.device.type, enabled=False):
        output, _ = sdpa_attention_forward(module, *tensors, **options)
    return output, None


def _float32(value: Any) -> Any:
    """A mask may be of truth values, or not there."""
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
