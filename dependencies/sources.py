"""The sources of settings: YAML files, environment variables and `--set`. Errors name the setting and its source."""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, Secret, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import PydanticBaseSettingsSource

from dependencies.errors import SettingsError
from dependencies.section import AROUND
from dependencies.settings import Env, Settings

PREFIX = "BENEATH_"
FOLDER = "config"

Key = tuple[str, ...]
Leaves = Mapping[Key, FieldInfo]
Values = dict[Key, tuple[object, str]]


def load_settings(
    *,
    overrides: Sequence[str] = (),
    file: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
    folder: str | Path = FOLDER,
) -> Settings:
    """Read the settings: `folder`/.default.yaml, `folder`/.<env>.yaml, `file`, `environ`, `overrides`; later ones win.

    `folder` is relative to the working directory and may be missing; `file` may not. `overrides` are `key=value`
    texts. `environ` is the process's environment unless given.

    Raises:
        SettingsError: in one line: the setting, what is wrong, the source of its value, and what to do.
    """
    environ = os.environ if environ is None else environ
    leaves = dict(walk_leaves(Settings))
    flags, env = _read_overrides(overrides, leaves), _read_environment(environ, leaves)
    chosen = str((flags.get(("env",)) or env.get(("env",)) or (Settings().env, ""))[0]).strip(AROUND)
    paths = [Path(folder) / ".default.yaml"]
    paths += [Path(folder) / f".{name}.yaml" for name in get_args(Env) if name == chosen]
    files = [_read_yaml(path, leaves, optional=True) for path in paths]
    if file is not None:
        files.append(_read_yaml(Path(file), leaves))
    sources = tuple(_Source(values) for values in (flags, env, *reversed(files)))
    try:
        return Settings(_build_sources=(sources, {}))  # pyright: ignore[reportCallIssue]  # a parameter of BaseSettings
    except ValidationError as error:
        raise SettingsError(_explain(error, leaves, sources)) from None


def walk_leaves(model: type[BaseModel], above: Key = ()) -> Iterator[tuple[Key, FieldInfo]]:
    """Yield the path and the field of every setting that is not a section."""
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from walk_leaves(section, (*above, name))
        else:
            yield (*above, name), field


def variable(path: Key) -> str:
    """Return the environment variable of a setting."""
    return PREFIX + "_".join(path).upper()


def nearest(name: str, known: Sequence[str], *, prefix: str = "") -> str:
    """Return `; did you mean X?` for the known name closest to `name`, with `prefix` before X; "" if none is close."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


class _Source(PydanticBaseSettingsSource):
    """The values of one source, each with the text that names its place there."""

    def __init__(self, values: Values) -> None:
        super().__init__(Settings)
        self._values = values

    def __call__(self) -> dict[str, Any]:
        nested: dict[str, Any] = {}
        for key, (value, _) in self._values.items():
            section = nested
            for name in key[:-1]:
                section = section.setdefault(name, {})
            section[key[-1]] = value
        return nested

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def origin(self, key: Key) -> str | None:
        """Return the place of the value of `key`; None if this source does not set it."""
        return self._values[key][1] if key in self._values else None


def _read_environment(environ: Mapping[str, str], leaves: Leaves) -> Values:
    keys: dict[str, Key] = {}
    for key in leaves:
        other = keys.setdefault(variable(key), key)
        if other != key:
            both = f"{'.'.join(other)} and {'.'.join(key)}"
            raise SettingsError(f"settings {both} have the same variable {variable(key)}; rename one of them")
    values: Values = {}
    for name in sorted(environ):
        if not name.upper().startswith(PREFIX):
            continue
        if name not in keys:
            # Compared without the prefix, by which every variable would resemble every other.
            known = [each.removeprefix(PREFIX) for each in keys]
            guess = nearest(name.upper().strip().removeprefix(PREFIX), known, prefix=PREFIX)
            guess = guess or f"; remove it, or find its name with {_LIST_ALL}"
            raise SettingsError(f"unknown environment variable {name}{guess}")
        origin = f"environment variable {name}"
        values[keys[name]] = (_parse(environ[name], keys[name], leaves, origin), origin)
    return values


def _read_overrides(overrides: Sequence[str], leaves: Leaves) -> Values:
    values: Values = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        key = tuple(name.strip().split("."))
        if not equals:
            raise SettingsError(f"--set expects KEY=VALUE, such as --set log.level=debug, not {text!r}")
        if key not in leaves:
            raise SettingsError(_unknown(key, leaves, "--set"))
        values[key] = (_parse(value, key, leaves, "--set"), "--set")
    return values


def _parse(text: str, key: Key, leaves: Leaves, origin: str) -> object:
    """Return the value that `text` stands for: a list or mapping is YAML; anything else is left to validation."""
    annotation = leaves[key].annotation
    members = get_args(annotation)
    if type(None) in members and text.strip(AROUND) in {"", "null"}:
        return None
    if not any(get_origin(each) in _CONTAINERS or each in _CONTAINERS for each in (annotation, *members)):
        return text
    try:
        return yaml.safe_load(text.strip(AROUND))
    except yaml.YAMLError as error:
        reason = _problem(error)
    except _UNREADABLE as error:
        reason = _unreadable(error)
    raise SettingsError(f"{'.'.join(key)}: not valid YAML: {reason}; write a list as [first, second] ({origin})")


_CONTAINERS = frozenset({list, tuple, set, frozenset, dict})


def _read_yaml(path: Path, leaves: Leaves, *, optional: bool = False) -> Values:
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8-sig"))
        root = loader.get_single_node()
        return dict(_walk_yaml(loader, root, (), str(path), leaves)) if root is not None else {}
    except OSError as error:
        if optional and isinstance(error, FileNotFoundError | NotADirectoryError):
            return {}
        remedy = "give the path of a file that this user can read"
        raise SettingsError(f"cannot read the settings file {path}: {error.strerror}; {remedy}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"cannot read the settings file {path}: not UTF-8 text; save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise SettingsError(f"{path}{line}: not valid YAML: {_problem(error)}; compare it with {_LIST_ALL}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not valid YAML: {_problem(error)}; compare it with {_LIST_ALL}") from None
    except _UNREADABLE as error:
        raise SettingsError(f"{path}: not valid YAML: {_unreadable(error)}; compare it with {_LIST_ALL}") from None


def _walk_yaml(
    loader: yaml.SafeLoader, node: yaml.Node, above: Key, path: str, leaves: Leaves
) -> Iterator[tuple[Key, tuple[object, str]]]:
    where = f"{path}, line {node.start_mark.line + 1}"
    if not isinstance(node, yaml.MappingNode):
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
            return
        section = f"{'.'.join(above)} is a section" if above else "the file is a mapping"
        raise SettingsError(f"{where}: {section} of settings, not a value; write each setting as `name: value`")
    seen = set()
    loader.flatten_mapping(node)
    for name, value in node.value:
        key = (*above, str(loader.construct_object(name)))
        where = f"{path}, line {name.start_mark.line + 1}"
        if key in seen:
            raise SettingsError(f"{where}: {'.'.join(key)} is set twice in this file; remove one of the two")
        seen.add(key)
        if key == ("env",):
            raise SettingsError(f"{where}: env selects the settings file, so no file can set it; use {variable(key)}")
        if key in leaves:
            yield key, (_construct(loader, value, f"{where}: {'.'.join(key)}", secret=_is_secret(leaves[key])), where)
        elif any(leaf[: len(key)] == key for leaf in leaves):
            yield from _walk_yaml(loader, value, key, path, leaves)
        else:
            raise SettingsError(f"{where}: {_unknown(key, leaves)}")


def _construct(loader: yaml.SafeLoader, node: yaml.Node, what: str, *, secret: bool) -> object:
    try:
        return loader.construct_object(node, deep=True)
    except yaml.YAMLError:
        raise
    except ValueError as error:
        reason = "" if secret else f": {error}"
        raise SettingsError(f"{what} is not a valid date or number; put text in quotation marks{reason}") from None


def _unknown(key: Key, leaves: Leaves, origin: str | None = None) -> str:
    """Return the error for a key that is not a setting: its place, and the nearest setting or the section's first."""
    name, place = ".".join(key), f" ({origin})" if origin else ""
    below = [".".join(leaf) for leaf in leaves if leaf[: len(key)] == key]
    if below:
        return f"{name} is a section, not a setting{place}; set one of its settings, such as {below[0]}"
    known = {".".join(leaf[:depth]) for leaf in leaves for depth in range(1, len(leaf) + 1)}
    guess = nearest(name, sorted(known)) or f"; remove it, or find its name with {_LIST_ALL}"
    return f"unknown setting {name}{place}{guess}"


_LIST_ALL = "`beneath config generate -`"
"""The command that prints every setting with its variable."""

_UNREADABLE = (ValueError, RecursionError)
"""The errors that the YAML library raises, besides its own, for an invalid date or number and for deep nesting."""


def _unreadable(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _problem(error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return " ".join(str(problem).split())


def _explain(error: ValidationError, leaves: Leaves, sources: Sequence[_Source]) -> str:
    first = error.errors(include_url=False)[0]
    key = tuple(str(part) for part in first["loc"])
    leaf = next((each for each in leaves if key[: len(each)] == each), None)
    message = first["msg"].removeprefix("Value error, ")
    secret = leaf is not None and _is_secret(leaves[leaf])
    ours = first["type"] == "value_error"  # our own messages quote the value where it is no secret
    got = f", not {first['input']!r}" if leaf and not secret and not ours else ""
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    named = [leaf or key, *(each for each in leaves if ".".join(each) in message)]
    origins = dict.fromkeys(found for each in named if (found := _origin(each, sources)) is not None)
    place = f" ({', '.join(origins)})" if origins else ""
    return f"{'.'.join(key)}: {message[:1].lower()}{message[1:]}{got}{place}{more}"


def _origin(key: Key, sources: Sequence[_Source]) -> str | None:
    return next((found for source in sources if (found := source.origin(key)) is not None), None)


def _is_secret(field: FieldInfo) -> bool:
    return any(
        isinstance(each, type) and issubclass(each, Secret | SecretStr)
        for each in (field.annotation, *get_args(field.annotation))
    )
