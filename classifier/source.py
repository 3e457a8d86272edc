"""Where a model comes from: a folder in Hugging Face form, or a name of the hub; and what went wrong when it cannot be had.

No PyTorch here: who only asks where a model is need not wait for it.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from classifier.errors import UnknownModel

_HUB = "huggingface.co"
_HUB_TIMEOUT_S = 5.0


def local_or_hub(name: str) -> str:
    """A folder's absolute path, or the name itself when the hub or its cache can give it.

    Raises:
        UnknownModel: the name is neither a folder nor cached, and the hub does not answer.
    """
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser().resolve())
    if _is_path(name):
        raise UnknownModel(
            f"model.model_name={name}: no such folder; expected a folder with config.json, or a hub name"
        )
    if find_file(name, "config.json") is None and not _hub_answers():
        raise UnknownModel(
            f"{name} is neither a folder nor in the local cache, and {_HUB} cannot be reached; connect, or set "
            "model.model_name=FOLDER to a downloaded model (config.json, model.safetensors, preprocessor_config.json)"
        )
    return name


def find_file(name: str, file: str) -> Path | None:
    """A file of a model, when it is on this machine already."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder / file if (folder / file).is_file() else None
    if _is_path(name):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file)
    return Path(found) if isinstance(found, str) else None


def _is_path(name: str) -> bool:
    """Whether it can only be a folder: names of the hub are `name` or `owner/name`."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def _hub_answers() -> bool:
    """Asked once, shortly: the hub's own client retries for 25 s before it gives up."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    if any(os.environ.get(key) for key in ("HF_ENDPOINT", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # reached another way than by a direct connection: let the client find out
    try:
        with socket.create_connection((_HUB, 443), timeout=_HUB_TIMEOUT_S):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def explained(name: str, config: dict[str, Any] | None) -> Iterator[None]:
    """Turn what transformers and the hub raise into one line that says what to do: an `UnknownModel`."""
    what = f"model.model_name={name}" if config is None else f"model.config with model_type={config.get('model_type')}"
    try:
        yield
    except UnknownModel:
        raise
    except Exception as error:  # transformers and the hub raise OSError, ValueError, KeyError, RuntimeError, ...
        first_line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UnknownModel(
            f"{what} cannot be loaded as an image classifier: {first_line.strip()[:300]}; expected a model of the "
            "hub's Image Classification or Image Feature Extraction category, or a folder in its form"
        ) from error
