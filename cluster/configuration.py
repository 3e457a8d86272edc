"""YAML + command line -> one frozen pydantic object; anything wrong is one line that names the key."""

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from classifier.errors import ConfigError

CONFIGS_DIR = Path(__file__).resolve().parent.parent / "configs"


class Section(BaseModel):
    """A part of a configuration: frozen, no defaults (they live in the YAML), nothing unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)


SectionT = TypeVar("SectionT", bound=Section)


def compose(schema: type[SectionT], *, name: str, overrides: Sequence[str]) -> SectionT:
    """Compose `configs/NAME.yaml` with the command line's `key=value` pairs, and validate the whole.

    Args:
        schema: the frozen model that the result is checked against.
        name: file name in `configs/`, without suffix.
        overrides: the command line, e.g. `["ds=EXAMS", "model.lr=1e-3", "trainer=cpu"]`.

    Raises:
        ConfigError: an unknown key, a wrong value, or something that is not `key=value`.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    keys = list(leaf_keys(schema))
    try:
        with initialize_config_dir(config_dir=str(CONFIGS_DIR), version_base="1.3"):
            composed = hydra_compose(name, overrides=[_quoted(override, schema, keys) for override in overrides])
            plain = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_hydra_sentence(error)) from error
    return validate(schema, plain)


def validate(schema: type[SectionT], plain: Any) -> SectionT:
    """Check a plain dictionary against a schema.

    Raises:
        ConfigError: the first thing that is wrong with it, in one line.
    """
    try:
        return schema.model_validate(plain)
    except ValidationError as error:
        raise ConfigError(_pydantic_sentence(error, list(leaf_keys(schema)))) from error


def leaf_keys(schema: type[BaseModel], prefix: str = "") -> Iterable[str]:
    """Every dotted key that can be set, in the order of the schema."""
    for field, info in schema.model_fields.items():
        section = _section_of(info.annotation)
        if section is None:
            yield prefix + field
        else:
            yield from leaf_keys(section, f"{prefix}{field}.")


def help_rows(schema: type[BaseModel], plain: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str, str]]:
    """(key, default, what it does) for every key, from the schema's descriptions and the YAML's values."""
    for field, info in schema.model_fields.items():
        section = _section_of(info.annotation)
        value = plain.get(field) if isinstance(plain, dict) else None
        if section is None:
            yield prefix + field, "" if value is None else str(value), info.description or ""
        else:
            yield from help_rows(section, value if isinstance(value, dict) else {}, f"{prefix}{field}.")


def defaults(name: str) -> dict[str, Any]:
    """The plain content of `configs/NAME.yaml` with its default groups, nothing overridden or validated."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(config_dir=str(CONFIGS_DIR), version_base="1.3"):
        plain = OmegaConf.to_container(hydra_compose(name), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _section_of(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _is_text(schema: type[BaseModel], key: str) -> bool:
    """Whether a dotted key holds free text, or a path."""
    *sections, field = key.split(".")
    for section in sections:
        info = schema.model_fields.get(section)
        inner = _section_of(info.annotation) if info else None
        if inner is None:
            return False
        schema = inner
    info = schema.model_fields.get(field)
    if info is None:
        return False
    kinds = set(get_args(info.annotation)) - {type(None)} or {info.annotation}
    return kinds <= {str, Path}


def _quoted(override: str, schema: type[BaseModel], keys: list[str]) -> str:
    """Check an override's form and key, and quote free text, so that `file=photo (1).jpg` needs no quoting in a shell."""
    if "=" not in override:
        raise ConfigError(f"{override}: expected key=value, for example ds=EXAMS; --help lists the keys")
    key, _, value = override.partition("=")
    bare = key.lstrip("+~")
    groups = {entry.name for entry in CONFIGS_DIR.iterdir() if entry.is_dir()}
    if bare in groups:
        options = sorted(file.stem for file in (CONFIGS_DIR / bare).glob("*.yaml"))
        if value not in options:
            raise ConfigError(f"{bare}={value}: expected one of {', '.join(options)} (files in configs/{bare}/)")
        return override
    known = bare in keys or any(bare.startswith(f"{free}.") or free.startswith(f"{bare}.") for free in keys)
    if not known:
        raise ConfigError(_unknown(bare, keys + sorted(groups)))
    if _is_text(schema, bare) and value not in ("null", "") and value[:1] not in "'\"":
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"{key}='{escaped}'"
    return override


def _unknown(key: str, keys: list[str]) -> str:
    nearest = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    if not nearest:  # `lr` for `model.lr`
        nearest = [known for known in keys if known.rpartition(".")[2] == key.rpartition(".")[2]][:1]
    hint = f"did you mean {nearest[0]}?" if nearest else "--help lists the keys"
    return f"{key}: no such setting; {hint}"


def _hydra_sentence(error: Exception) -> str:
    text = re.sub(r"\s+", " ", str(error)).strip()
    return f"the command line cannot be read: {text[:300]}"


def _pydantic_sentence(error: ValidationError, keys: list[str]) -> str:
    # A mistyped key is reported twice, as unknown and as missing; only the first helps.
    first = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"] if not _is_union_tag(part))
    match first["type"]:
        case "extra_forbidden":
            return _unknown(key, keys)
        case "missing":
            return f"{key}: not set, and it has no default; --help says what it means"
        case _:
            message = first["msg"].removeprefix("Value error, ")
            message = message[:1].lower() + message[1:]
            found = "null" if first["input"] is None else first["input"]
            return f"{key}={found}: {message}" if key else message


def _is_union_tag(part: Any) -> bool:
    """pydantic names the branch of a union (`int`, `literal['auto']`) in the path; it is not a key."""
    return isinstance(part, str) and (part in {"int", "float", "str", "bool", "constrained-int"} or "[" in part)
