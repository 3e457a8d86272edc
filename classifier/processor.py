"""A model's own preprocessing, found by asking its Hugging Face image processor.

Asking imports PyTorch and takes seconds, so the answer is kept: it follows from the model's files and from the versions
of the code that is asked.
"""

import contextlib
import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from classifier import preprocess
from classifier.errors import UnknownModel
from classifier.preprocess import PreprocessSpec
from classifier.source import explained, find_file, local_or_hub

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

# What the answer depends on: of a model's files, of the packages, of this project.
_FILES = ("config.json", "preprocessor_config.json", "processor_config.json")
_PACKAGES = ("transformers", "pillow", "numpy")
_CODE = (Path(__file__), Path(preprocess.__file__))


def load_preprocess(
    name: str,
    *,
    size_px: int | None,
    max_pixels: int,
    config: dict[str, Any] | None = None,
    remember_in: Path | None = None,
) -> PreprocessSpec:
    """Find a model's own preprocessing.

    Args:
        name: as for `load_network`.
        size_px: resize every picture to this square instead; needed with `config`, and where a model states no size.
        max_pixels: the largest picture that is decoded.
        config: as for `load_network`.
        remember_in: a folder where answers are kept, and looked up.

    Raises:
        UnknownModel: the model cannot be found, or states no image size while `size_px` is None.
    """
    key = _key(name, config, [size_px, max_pixels]) if remember_in is not None else None
    if remember_in is None or key is None:
        return _find(name, size_px=size_px, max_pixels=max_pixels, config=config)
    file = remember_in / f"preprocess-{key}.json"
    try:
        return PreprocessSpec.model_validate_json(file.read_text())
    except (OSError, ValidationError):
        found = _find(name, size_px=size_px, max_pixels=max_pixels, config=config)
    _remember(file, found)
    return found


def _key(name: str, config: dict[str, Any] | None, settings: list[Any]) -> str | None:
    """None: the model is not on this machine yet, so nothing can be known of its files."""
    digest = hashlib.sha256(json.dumps([config, settings, [version(package) for package in _PACKAGES]]).encode())
    files = list(_CODE)
    if config is None:
        own = [find_file(name, file) for file in _FILES]
        if own[0] is None:
            return None
        files += [file for file in own if file is not None]
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:32]


def _remember(file: Path, spec: PreprocessSpec) -> None:
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(spec.model_dump_json())
        scratch.replace(file)
    except OSError:  # it is asked again next time
        with contextlib.suppress(OSError):
            scratch.unlink()


def _find(name: str, *, size_px: int | None, max_pixels: int, config: dict[str, Any] | None) -> PreprocessSpec:
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoConfig, ViTImageProcessorPil

    with explained(name, config):
        if config is not None:
            processor = None
            stated = AutoConfig.for_model(config["model_type"])
            size_px = size_px or config.get("image_size")
        else:
            place = local_or_hub(name)
            processor = _own_processor(place)
            stated = AutoConfig.from_pretrained(place, trust_remote_code=False)
            if processor is None and size_px is None:
                size_px = getattr(stated, "image_size", None)
        if type(stated) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
            raise ValueError(f"a network of the type {stated.model_type} has no form that classifies images")
    if processor is None and not isinstance(size_px, int):
        raise UnknownModel(f"{name} states no image size; set model.size_px, for example model.size_px=224")
    if isinstance(size_px, int):
        # A square, from the processor's own mean and std where it has them.
        kept = {
            key: getattr(processor, key) for key in ("image_mean", "image_std", "resample") if processor is not None
        }
        processor = ViTImageProcessorPil(size={"height": size_px, "width": size_px}, **kept)
    assert processor is not None
    return PreprocessSpec.from_processor(processor, max_pixels=max_pixels)


def _own_processor(place: str) -> "BaseImageProcessor | None":
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(place, backend="pil", trust_remote_code=False)
    except (OSError, ValueError):  # no preprocessor_config.json, or one of a kind that has no Pillow form
        return None
