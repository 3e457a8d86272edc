"""The model folder: a Hugging Face model repository, and beside it `classifier.json`, which holds what only we know.

It loads with no network, no pickle and no training code, and can be moved, renamed and copied. Importing this module
imports neither torch nor transformers: a process that answers with ONNX Runtime starts without them.
"""

import hashlib
import json
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from classifier.errors import BadModelFolder
from classifier.preprocess import PreprocessSpec

if TYPE_CHECKING:
    from classifier.network import Network

MANIFEST = "classifier.json"
WEIGHTS = "model.safetensors"
ONNX = "model.onnx"
_COVERED = ("config.json", WEIGHTS, "preprocessor_config.json")


class OnnxReport(BaseModel):
    """What came of writing the network for ONNX Runtime as well; see `onnx_export`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kept: bool
    """Whether `model.onnx` is part of the folder."""
    reason: str
    """Why it is not; empty when it is."""
    pictures: int
    """How many pictures its answers were compared on."""
    max_difference: float | None
    """The largest difference of a probability from torch's."""
    speedup: float | None
    """Pictures/s of ONNX Runtime over those of torch, on the CPU that wrote the folder."""


class Manifest(BaseModel):
    """`classifier.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    name: str
    """What the model calls itself in answers, e.g. `EXAMS/default/2026-11-22/14-03-55`; a renamed folder keeps it."""
    labels: tuple[str, ...] = Field(min_length=2)
    """Class names; a class's code is its place here."""
    preprocess: PreprocessSpec
    files: dict[str, str]
    """File name -> `sha256:...`, for every file that an answer depends on."""
    dataset: dict[str, Any]
    """`name` and `fingerprint` of what it was trained on, and the `counts` of its splits."""
    metrics: dict[str, Any]
    """`accuracy` and `macro_f1` on the test split, `val_acc` and `best_epoch`; empty when it was not tested."""
    created: str
    versions: dict[str, str]
    onnx: OnnxReport | None = None
    """None: never tried."""

    @property
    def digest(self) -> str:
        """`sha256:...` over everything that an answer depends on: weights, config, preprocessing, labels."""
        parts = {"files": self.files, "labels": self.labels, "preprocess": self.preprocess.model_dump(mode="json")}
        return "sha256:" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class ModelFolder:
    """A loaded model folder, checked against its digests."""

    path: Path
    manifest: Manifest
    network: "Network"  # eval mode, on the CPU


def write_model(
    folder: Path,
    network: "Network",
    *,
    name: str,
    labels: tuple[str, ...],
    spec: PreprocessSpec,
    dataset: dict[str, Any],
    metrics: dict[str, Any],
    created: str,
) -> Manifest:
    """Write weights, config, preprocessing and manifest into a folder that may hold other things.

    Every file is whole or absent; `classifier.json` comes last, so a folder that has it is complete.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch:
        network.backbone.save_pretrained(scratch)
        written = Path(scratch) / "preprocessor_config.json"
        written.write_text(json.dumps(spec.processor, indent=2) + "\n")
        # safetensors lets nobody but the owner read, whatever the umask: a shared model could not be loaded
        (Path(scratch) / WEIGHTS).chmod(stat.S_IMODE(written.stat().st_mode))
        manifest = Manifest(
            name=name,
            labels=labels,
            preprocess=spec,
            files={file: sha256(Path(scratch) / file) for file in _COVERED},
            dataset=dataset,
            metrics=metrics,
            created=created,
            versions=_versions(),
        )
        for file in _COVERED:
            (Path(scratch) / file).replace(folder / file)
    write_manifest(folder, manifest)
    return manifest


def publish(staged: Path, folder: Path) -> None:
    """Move a complete model, as `write_model` and `export_onnx` leave it, into a folder that may hold an earlier one.

    `classifier.json` goes first and comes last: a folder that has it is complete.
    """
    files = read_manifest(staged).files
    (folder / MANIFEST).unlink(missing_ok=True)
    for file in files:
        (staged / file).replace(folder / file)
    if ONNX not in files:
        (folder / ONNX).unlink(missing_ok=True)
    (staged / MANIFEST).replace(folder / MANIFEST)


def read_manifest(folder: Path) -> Manifest:
    """Read and validate `classifier.json`; the weights are not touched.

    Raises:
        BadModelFolder: it is missing, or not of this schema.
    """
    file = folder / MANIFEST
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except FileNotFoundError as error:
        found = "no such folder" if not folder.is_dir() else f"no {MANIFEST} in it"
        raise BadModelFolder(
            f"{folder}: {found}; expected a model folder as training leaves it, e.g. models/EXAMS/default/DATE/TIME"
        ) from error
    except OSError as error:
        raise BadModelFolder(f"{file} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BadModelFolder(
            f"{file}: {place}: {first['msg']}; it was written by another version, or damaged"
        ) from error


def load_model(folder: Path) -> ModelFolder:
    """Load a model folder: no network access, no pickle, every file checked against its digest.

    Raises:
        BadModelFolder: a file is missing, changed since it was written, or cannot be loaded.
    """
    from classifier.network import Network, read_backbone

    folder = folder.resolve()
    manifest = read_manifest(folder)
    for file in dict.fromkeys((*_COVERED, *manifest.files)):
        check_file(folder, file, manifest)
    try:
        backbone = read_backbone(folder / "config.json", folder / WEIGHTS)
    except Exception as error:  # as in source.explained
        raise BadModelFolder(f"{folder} cannot be loaded: {type(error).__name__}: {str(error)[:300]}") from error
    of_config = tuple(backbone.config.id2label[code] for code in range(backbone.config.num_labels))
    if of_config != manifest.labels:
        raise BadModelFolder(
            f"{folder / MANIFEST}: labels: found {', '.join(manifest.labels)[:100]}; config.json, which the digests "
            f"cover, has {', '.join(of_config)[:100]}; copy the whole model folder again"
        )
    network = Network(backbone, manifest.preprocess).eval()
    return ModelFolder(path=folder, manifest=manifest, network=network)


def check_file(folder: Path, file: str, manifest: Manifest) -> None:
    """Check a file of a model folder against its digest.

    Raises:
        BadModelFolder: the manifest does not cover it, or it is missing, changed, or not in the folder itself.
    """
    expected = manifest.files.get(file)
    if expected is None:
        raise BadModelFolder(f"{folder / MANIFEST} states no digest of {file}; copy the whole model folder again")
    if Path(file).name != file:
        raise BadModelFolder(f"{folder / MANIFEST} names {file}, which lies outside the folder")
    try:
        if not stat.S_ISREG((folder / file).stat().st_mode):  # a FIFO would be waited on for ever
            raise BadModelFolder(f"{folder / file} is not a file; copy the whole model folder again")
        found = sha256(folder / file)
    except PermissionError as error:
        raise BadModelFolder(
            f"{folder / file} cannot be read: {error.strerror}; its owner lets others read it with: chmod a+r"
        ) from error
    except OSError as error:
        raise BadModelFolder(
            f"{folder / file} cannot be read: {error.strerror}; copy the whole model folder again"
        ) from error
    if found != expected:
        raise BadModelFolder(
            f"{folder / file} is not the file that was written with the model: its digest is {found[:19]}, "
            f"expected {expected[:19]}; copy the whole model folder again"
        )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace `classifier.json`; a reader sees the old one or the new one, never half of it."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch:
        written = Path(scratch) / MANIFEST
        written.write_text(manifest.model_dump_json(indent=2) + "\n")
        written.replace(folder / MANIFEST)


def find_model(model: str, *, models_dir: Path) -> Path:
    """Find the model folder that a user means.

    Args:
        model: a model folder; or `EXAMS` for the newest model of a dataset, `EXAMS/category` for the newest of a
            category, also as `models/EXAMS/category`.
        models_dir: where models are kept, `models`.

    Raises:
        BadModelFolder: none is there; says which datasets have one.
    """
    if not model.strip():
        raise BadModelFolder(
            f"no model named; set it to a model folder or to one of: {_datasets_with_models(models_dir)}"
        )
    what = "is neither a model folder nor a dataset with a model"
    try:
        folder = Path(model).expanduser()
        if (folder / MANIFEST).is_file():
            return folder.resolve()
        if found := _newest_below(folder, models_dir):
            return found.resolve()
        inside = next((parent for parent in folder.parents if (parent / MANIFEST).is_file()), None)
        if inside is not None and folder.exists():
            what = f"lies in the model folder {inside}: name that folder"
        elif folder.is_dir():
            what = "has no finished model in it"
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, of an unknown user, with a null byte
        what = f"cannot be a folder: {getattr(error, 'strerror', None) or error}"
    shown = model if len(model) <= 200 else f"{model[:200]}..."
    raise BadModelFolder(f"{shown!r} {what}; datasets with models in {models_dir}: {_datasets_with_models(models_dir)}")


def _newest_below(folder: Path, models_dir: Path) -> Path | None:
    """The newest model of a dataset, category or day, named with or without the models folder in front."""
    root = models_dir.resolve()
    for place in (root / folder, folder.resolve()):
        if ".." in folder.parts or not place.is_relative_to(root):
            continue
        depth = len(place.relative_to(root).parts)  # DATASET/CATEGORY/DATE/TIME
        if 1 <= depth <= 3:
            found = [file.parent for file in place.glob("*/" * (4 - depth) + MANIFEST)]
            if found:
                # DATE/TIME sort by name; the category in front of them must not count
                return max(found, key=lambda folder: folder.parts[-2:])
    return None


def _datasets_with_models(models_dir: Path) -> str:
    names = sorted({file.relative_to(models_dir).parts[0] for file in models_dir.glob(f"*/*/*/*/{MANIFEST}")})
    return ", ".join(names) or "none; train one first: python -m training.run ds=EXAMS"


def sha256(file: Path) -> str:
    """`sha256:...` of a file's content."""
    with file.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "pillow")}
