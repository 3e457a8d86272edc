"""YAML + command line -> one frozen pydantic object; anything wrong is one line that names the key."""

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from classifier.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

CONFIGS_DIR = Path(__file__).resolve().parent.parent / "configs"

# Settings of different commands, or of different programs, that mean the same: one is typed where another is meant.
_SYNONYMS = ({"model", "md", "ds"}, {"trainer", "device"}, {"lr", "learning_rate"})


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
    from hydra import compose as hydra_compose
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    settings = OmegaConf.create(base)
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key, value = override.key_or_group, override.value()
        is_group = (CONFIGS_DIR / key / f"{value}.yaml").is_file()
        OmegaConf.update(settings, key, hydra_compose(f"{key}/{value}")[key] if is_group else value)
    return settings


def validate(schema: type[SectionT], plain: Any) -> SectionT:
    """Check a plain dictionary against a schema.

    Raises:
        ConfigError: the first thing that is wrong with it, in one line.
    """
    try:
        return schema.model_validate(plain)
    except ValidationError as error:
        raise ConfigError(_pydantic_sentence(error, schema)) from error


def leaf_keys(schema: type[BaseModel], prefix: str = "") -> Iterable[str]:
    """Every dotted key that can be set, in the order of the schema."""
    for field, info in schema.model_fields.items():
        section = _section_of(info.annotation)
        if section is None:
            yield prefix + field
        else:
            yield from leaf_keys(section, f"{prefix}{field}.")


def help_rows(schema: type[BaseModel], plain: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str, str]]:
    """(key, default, what it does) for every key, from the schema's descriptions and choices and the YAML's values."""
    for field, info in schema.model_fields.items():
        section = _section_of(info.annotation)
        value = plain.get(field) if isinstance(plain, dict) else None
        if section is None:
            yield prefix + field, "" if value is None else str(value), _meaning(info)
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


def _meaning(info: FieldInfo) -> str:
    choices = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
    one_of = f"one of {', '.join(map(str, choices))}" if choices else ""
    return "; ".join(part for part in (info.description, one_of) if part)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _field(schema: type[BaseModel], key: str) -> FieldInfo | None:
    """The field that a dotted key leads to, a section or a value; None where there is none."""
    *sections, name = key.split(".")
    for section in sections:
        info = schema.model_fields.get(section)
        inner = _section_of(info.annotation) if info else None
        if inner is None:
            return None
        schema = inner
    return schema.model_fields.get(name)


def _kinds(schema: type[BaseModel], key: str) -> set[Any]:
    """The types that the value of a dotted key may have, None left out; empty where there is no such value."""
    info = _field(schema, key)
    if info is None:
        return set()
    return set(get_args(info.annotation)) - {type(None)} or {info.annotation}


def _quoted(override: str, schema: type[BaseModel], keys: list[str]) -> str:
    """Check an override's form and key, and quote free text, so that `file=photo (1).jpg` is taken as it stands."""
    if "=" not in override[1:]:
        example = f"{next(iter(schema.model_fields))}=EXAMS"
        raise ConfigError(
            f"{override}: expected key=value, for example {example} (no spaces, no dashes); --help lists the keys"
        )
    if override.startswith("--"):
        raise ConfigError(f"{override}: settings are written without dashes: {override.lstrip('-')}")
    key, _, value = override.partition("=")
    bare = key.lstrip("+~")
    if bare in schema.model_fields and (CONFIGS_DIR / bare).is_dir():
        options = sorted(file.stem for file in (CONFIGS_DIR / bare).glob("*.yaml"))
        if value not in options:
            name = f"{bare}.{bare}_name"
            hint = f"; for a {bare} by its name or folder: {name}={value}" if value and name in keys else ""
            raise ConfigError(f"{bare}={value}: expected one of {', '.join(options)} (files in configs/{bare}/){hint}")
        return override
    known = bare in keys or any(bare.startswith(f"{free}.") or free.startswith(f"{bare}.") for free in keys)
    if not known:
        raise ConfigError(_unknown(bare, keys))
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
    """Say that there is no such setting, and which one may be meant.

    One of that name in a section (`lr` for `model.lr`), one that means the same, one whose name holds the word
    (`epochs` for `trainer.max_epochs`), one that is spelled almost so; in this order.
    """
    word = key.rpartition(".")[2]
    same = {other for synonyms in _SYNONYMS if word in synonyms for other in synonyms}
    sections = sorted({known.rpartition(".")[0] for known in keys} - {""})
    name_of = {known: known.rpartition(".")[2] for known in (*keys, *sections)}
    ways = (
        [known for known, name in name_of.items() if name == word],
        [known for known in keys if name_of[known] in same],
        [known for known, name in name_of.items() if len(word) > 2 and word in name],
    )
    nearest = difflib.get_close_matches(key, next(filter(None, ways), []), n=1, cutoff=0)
    nearest = nearest or difflib.get_close_matches(key, name_of, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else "--help lists the keys"
    return f"{key}: no such setting; {hint}"


def _hydra_sentence(error: Exception) -> str:
    text = re.sub(r"\s+", " ", str(error)).strip()
    return f"the settings cannot be read: {text[:300]}"


def _pydantic_sentence(error: ValidationError, schema: type[BaseModel]) -> str:
    # A mistyped key is reported twice, as unknown and as missing; only the first helps.
    first = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    key = _key_of(first)
    keys = list(leaf_keys(schema))
    match first["type"]:
        case "extra_forbidden":
            return _unknown(key, keys)
        case "missing":
            return f"{key}: not set, and it has no default; --help says what it means"
        case "model_type" if key:
            off = "; null switches it off" if _takes_null(schema, key) else ""
            below = next(known for known in keys if known.startswith(f"{key}."))
            message = f"expected settings below it, such as {below}{off}"
        case _:
            # what a value may be instead is told one by one: `int | Literal["auto"]`
            messages = [fault["msg"].removeprefix("Value error, ") for fault in error.errors() if _key_of(fault) == key]
            message = " or ".join([messages[0], *(each.removeprefix("Input should be ") for each in messages[1:])])
            message = message[:1].lower() + message[1:]
    if not key:
        return message
    if isinstance(first["input"], dict):  # of a section: what is wrong with it says which values are meant
        return f"{key}: {message}"
    return f"{key}={'null' if first['input'] is None else first['input']}: {message}"


def _takes_null(schema: type[BaseModel], key: str) -> bool:
    info = _field(schema, key)
    return info is not None and type(None) in get_args(info.annotation)


def _key_of(fault: "ErrorDetails") -> str:
    return ".".join(str(part) for part in fault["loc"] if not _is_union_tag(part))


def _is_union_tag(part: Any) -> bool:
    """pydantic names the branch of a union (`int`, `literal['auto']`) in the path; it is not a key."""
    return isinstance(part, str) and (part in {"int", "float", "str", "bool", "constrained-int"} or "[" in part)
