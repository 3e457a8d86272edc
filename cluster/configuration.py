"""YAML + command line -> one frozen pydantic object; anything wrong is one line that names the key."""

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from classifier.errors import ConfigError

CONFIGS_DIR = Path(__file__).resolve().parent.parent / "configs"


class Section(BaseModel):
    """A part of a configuration: frozen, no defaults (they live in the YAML), nothing unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)


SectionT = TypeVar("SectionT", bound=Section)


def compose(
    schema: type[SectionT], *, name: str, overrides: Sequence[str], base: dict[str, Any] | None = None
) -> SectionT:
    """Compose `configs/NAME.yaml` with the command line's `key=value` pairs, and validate the whole.

    Args:
        schema: the frozen model that the result is checked against.
        name: file name in `configs/`, without suffix.
        overrides: the command line, e.g. `["ds=EXAMS", "model.lr=1e-3", "trainer=cpu"]`.
        base: start from these settings instead of `configs/NAME.yaml`.

    Raises:
        ConfigError: an unknown key, a wrong value, or something that is not `key=value`.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    keys = list(leaf_keys(schema))
    try:
        with initialize_config_dir(config_dir=str(CONFIGS_DIR), version_base="1.3"):
            quoted = [_quoted(override, schema, keys) for override in overrides]
            composed = hydra_compose(name, overrides=quoted) if base is None else _overridden(base, quoted)
            plain = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(_hydra_sentence(error)) from error
    return validate(schema, plain)


def _overridden(base: dict[str, Any], overrides: Sequence[str]) -> Any:
    """Overrides on top of plain settings; a group (`trainer=cpu`) replaces its section by the group's file."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    settings = OmegaConf.create(base)
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key, value = override.key_or_group, override.value()
        group = CONFIGS_DIR / key / f"{value}.yaml"
        OmegaConf.update(settings, key, OmegaConf.load(group) if group.is_file() else value)
    return settings


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


def help_text(schema: type[BaseModel], *, name: str, about: str) -> str:
    """What `--help` prints: what the command does, and every key with its default and what it means.

    Args:
        schema: the command's configuration.
        name: its file in `configs/`, without suffix.
        about: usage and examples, some lines.
    """
    rows = list(help_rows(schema, defaults(name)))
    key_width = max(len(key) for key, _, _ in rows)
    value_width = min(24, max(len(value) for _, value, _ in rows))
    lines = [f"  {key:<{key_width}}  {value:<{value_width}}  {meaning}".rstrip() for key, value, meaning in rows]
    return "\n".join([about.strip(), "", f"Settings (key=value; defaults from configs/{name}.yaml):", *lines])


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


def _kinds(schema: type[BaseModel], key: str) -> set[Any]:
    """The types that the value of a dotted key may have, None left out; empty where a part of the key is no section."""
    *sections, field = key.split(".")
    for section in sections:
        info = schema.model_fields.get(section)
        inner = _section_of(info.annotation) if info else None
        if inner is None:
            return set()
        schema = inner
    info = schema.model_fields.get(field)
    if info is None:
        return set()
    return set(get_args(info.annotation)) - {type(None)} or {info.annotation}


def _quoted(override: str, schema: type[BaseModel], keys: list[str]) -> str:
    """Check an override's form and key, and quote free text, so that `file=photo (1).jpg` is taken as it stands."""
    if "=" not in override[1:]:
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
    kinds = _kinds(schema, bare)
    if any(get_origin(kind) is dict for kind in kinds) and key == bare:
        return f"++{override}"  # free-form: its own keys are nobody's to know
    if kinds and kinds <= {str, Path} and value not in ("null", "") and value[:1] not in "'\"":
        return f"{key}='{_escaped(value)}'"
    return override


def _escaped(text: str) -> str:
    """Text that comes out of Hydra's quotes, and of OmegaConf's `${...}`, as it went in.

    Source: https://hydra.cc/docs/advanced/override_grammar/basic (a backslash counts before a quote only).
    """
    text = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", text)
    return re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)


def _unknown(key: str, keys: list[str]) -> str:
    nearest = [known for known in keys if known.endswith(f".{key}")][:1]  # `lr` for `model.lr`
    nearest = nearest or difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else "--help lists the keys"
    return f"{key}: no such setting; {hint}"


def _hydra_sentence(error: Exception) -> str:
    text = re.sub(r"\s+", " ", str(error)).strip()
    return f"the settings cannot be read: {text[:300]}"


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
