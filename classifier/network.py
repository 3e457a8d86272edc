"""The network: uint8 pixels in, logits out. Built from a Hugging Face model or config; normalisation lies inside it.

Axis letters: B pictures, C classes, H and W pixels.
"""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from classifier.preprocess import PreprocessSpec
from classifier.source import explained, local_or_hub

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)

# PyTorch's own default is 0.1. TensorFlow's momentum is the share that is *kept*, 0.99 and above.
_BATCH_NORM_MOMENTUM = 0.05


class Network(nn.Module):
    """A Hugging Face image classifier that takes raw pixels.

    Rescaling and normalising are buffers, so nothing can be normalised twice or not at all, and the float work happens on
    the device that the network is on.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, backbone: "PreTrainedModel", spec: PreprocessSpec) -> None:
        super().__init__()
        self.backbone = backbone
        _fold_padding(backbone)
        # (pixels * rescale - mean) / std as pixels * scale + shift, which is one pass over the memory instead of several
        mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
        self.register_buffer("scale", (spec.rescale_factor / std).float(), persistent=False)
        self.register_buffer("shift", (-mean / std).float(), persistent=False)

    def normalise(self, pixels: Tensor) -> Tensor:  # uint8 or float [B,3,H,W] in 0..255 -> float32 [B,3,H,W]
        """Rescale and normalise as the model's own processor would; the result lies in channels_last."""
        # channels_last: convolutions on CPUs and on tensor cores are faster in it
        floats = pixels.to(dtype=torch.float32, memory_format=torch.channels_last)
        return torch.addcmul(self.shift, floats, self.scale)

    def forward(self, pixels: Tensor) -> Tensor:  # uint8 or float [B,3,H,W] in 0..255 -> float32 [B,C]
        """The logits of every class for every picture."""
        logits: Tensor = self.backbone(pixel_values=self.normalise(pixels)).logits
        return logits.float()


def load_network(
    name: str, *, labels: Sequence[str], spec: PreprocessSpec, config: dict[str, Any] | None = None
) -> Network:
    """Build a network with a new head for `labels`, in training mode.

    Args:
        name: a model of the Hugging Face hub, or a folder in its form. Not used with `config`.
        labels: class names; their order gives the codes.
        spec: the model's preprocessing, from `processor.load_preprocess`.
        config: a Hugging Face config (`model_type` and its fields): random weights, nothing to download.

    Raises:
        UnknownModel: it cannot be found or loaded, or is no image classifier.
    """
    from transformers import AutoConfig, AutoModelForImageClassification

    id2label = dict(enumerate(labels))
    head = {"id2label": id2label, "label2id": {label: code for code, label in id2label.items()}}
    with explained(name, config):
        if config is not None:
            fields = {key: value for key, value in config.items() if key != "model_type"}
            backbone = AutoModelForImageClassification.from_config(
                AutoConfig.for_model(config["model_type"], **fields, **head)
            )
        else:
            # float32: a checkpoint saved in half precision would otherwise be trained in it
            backbone = AutoModelForImageClassification.from_pretrained(
                local_or_hub(name), ignore_mismatched_sizes=True, dtype=torch.float32, trust_remote_code=False, **head
            )
    backbone.config.problem_type = "single_label_classification"
    _repair_batch_norm(backbone)
    _repair_dropout(backbone)
    # from_pretrained returns eval mode, and Lightning leaves a module in the mode that it finds
    network = Network(backbone, spec).train()
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]  # not in torch's stubs


def read_backbone(config_file: Path, weights_file: Path) -> "PreTrainedModel":
    """Read a saved image classifier from two files and nothing else.

    `from_pretrained` of a folder would also follow what else lies in it: an adapter_config.json replaces the weights.

    Raises:
        ValueError: weights are missing or of another shape; transformers and safetensors raise more than that on files
            that are damaged, or not an image classifier's.
    """
    from safetensors.torch import load_file
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoConfig

    config = AutoConfig.from_pretrained(str(config_file), local_files_only=True, trust_remote_code=False)
    found = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    classes = {kind.__name__: kind for kind in (found if isinstance(found, tuple) else (found,))}
    saved_as = [name for name in config.architectures or () if name in classes]
    kind = classes[saved_as[0]] if saved_as else next(iter(classes.values()))
    backbone: PreTrainedModel
    backbone, loading = kind.from_pretrained(
        None, config=config, state_dict=load_file(weights_file), output_loading_info=True, dtype=torch.float32
    )
    wrong = sorted(str(key) for key in (*loading["missing_keys"], *loading["mismatched_keys"]))
    if wrong:
        raise ValueError(f"{weights_file.name} lacks {', '.join(wrong[:3])}")
    return backbone


def _fold_padding(backbone: nn.Module) -> None:
    """Let convolutions of stride 1 pad by themselves, where MobileNet copies their whole input to do it as TensorFlow does.

    The zeros are the same on every side, so the answers are too; a copy is a tenth of a training step. With a larger
    stride TensorFlow pads one side more than the other, which a convolution cannot.
    """
    for layer in backbone.modules():
        convolution, config = getattr(layer, "convolution", None), getattr(layer, "config", None)
        if not isinstance(convolution, nn.Conv2d) or not getattr(config, "tf_padding", False):
            continue
        (height, width), simple = convolution.kernel_size, (1, 1)
        if convolution.stride == simple and convolution.dilation == simple and height % 2 == 1 and width % 2 == 1:
            convolution.padding = (height // 2, width // 2)
            own: Any = copy.copy(config)  # the saved config still says how the model is to be read
            own.tf_padding = False
            layer.config = own


def _repair_batch_norm(backbone: nn.Module) -> None:
    """transformers hands TensorFlow's momentum to PyTorch, where it means the opposite: 0.997 makes the running
    statistics those of the last batch, and validation accuracy falls by up to 20 points while the loss improves."""
    for module in backbone.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum and module.momentum > 0.5:
            _log.info("BatchNorm momentum %s is TensorFlow's; set to %s", module.momentum, _BATCH_NORM_MOMENTUM)
            module.momentum = _BATCH_NORM_MOMENTUM


def _repair_dropout(backbone: nn.Module) -> None:
    """The same mistake with TensorFlow's keep probability: MobileNet's configs say 0.999, which drops nearly all."""
    for module in backbone.modules():
        if isinstance(module, nn.Dropout) and module.p > 0.5:
            _log.info("dropout %s is TensorFlow's keep probability; set to %s", module.p, 1 - module.p)
            module.p = round(1 - module.p, 6)
