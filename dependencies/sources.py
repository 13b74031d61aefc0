"""Where settings come from: YAML files, the environment, the command line; each value remembers its origin."""

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
from dependencies.settings import AROUND, Env, Settings

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
        SettingsError: with one line that names the key and where its value came from.
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
        return Settings(_build_sources=(sources, {}))
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


def nearest(name: str, known: Sequence[str]) -> str:
    """Return `; did you mean X?` for the known name closest to `name`, or nothing when none is close."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


class _Source(PydanticBaseSettingsSource):
    """Values already read, and where each came from."""

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
        """Say where the value of `key`, or of the first setting in that section, came from."""
        return next((origin for each, (_, origin) in self._values.items() if each[: len(key)] == key), None)


def _read_environment(environ: Mapping[str, str], leaves: Leaves) -> Values:
    keys: dict[str, Key] = {}
    for key in leaves:
        other = keys.setdefault(variable(key), key)
        if other != key:
            raise SettingsError(f"settings {'.'.join(other)} and {'.'.join(key)} share the variable {variable(key)}")
    values: Values = {}
    for name in sorted(environ):
        if not name.upper().startswith(PREFIX):
            continue
        if name not in keys:
            raise SettingsError(f"unknown environment variable {name}{nearest(name.upper().strip(), list(keys))}")
        origin = f"environment variable {name}"
        values[keys[name]] = (_parse(environ[name], leaves[keys[name]], origin), origin)
    return values


def _read_overrides(overrides: Sequence[str], leaves: Leaves) -> Values:
    values: Values = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        key = tuple(name.strip().split("."))
        if not equals:
            raise SettingsError(f"--set wants KEY=VALUE, as in --set log.level=debug, not {text!r}")
        if key not in leaves:
            known = [".".join(leaf) for leaf in leaves]
            raise SettingsError(f"unknown setting {name.strip()} (--set){nearest(name.strip(), known)}")
        values[key] = (_parse(value, leaves[key], "--set"), "--set")
    return values


def _parse(text: str, field: FieldInfo, origin: str) -> object:
    """Read a value from text: plain ones are left to validation, lists and mappings are YAML."""
    annotation = field.annotation
    members = get_args(annotation)
    if type(None) in members and text.strip(AROUND) in {"", "null"}:
        return None
    if not any(get_origin(each) in _CONTAINERS or each in _CONTAINERS for each in (annotation, *members)):
        return text
    try:
        return yaml.safe_load(text.strip(AROUND))
    except yaml.YAMLError as error:
        raise SettingsError(f"{origin} is not valid YAML: {_problem(error)}") from None
    except _UNREADABLE as error:
        raise SettingsError(f"{origin} cannot be read: {_unreadable(error)}") from None


_CONTAINERS = frozenset({list, tuple, set, frozenset, dict})


def _read_yaml(path: Path, leaves: Leaves, *, optional: bool = False) -> Values:
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8-sig"))
        root = loader.get_single_node()
        return dict(_walk_yaml(loader, root, (), str(path), leaves)) if root is not None else {}
    except OSError as error:
        if optional and isinstance(error, FileNotFoundError | NotADirectoryError):
            return {}
        raise SettingsError(f"cannot read the settings file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"cannot read the settings file {path}: it is not UTF-8 text") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise SettingsError(f"{path}{line}: not valid YAML: {_problem(error)}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not valid YAML: {_problem(error)}") from None
    except _UNREADABLE as error:
        raise SettingsError(f"cannot read the settings file {path}: {_unreadable(error)}") from None


def _walk_yaml(
    loader: yaml.SafeLoader, node: yaml.Node, above: Key, path: str, leaves: Leaves
) -> Iterator[tuple[Key, tuple[object, str]]]:
    where = f"{path}, line {node.start_mark.line + 1}"
    if not isinstance(node, yaml.MappingNode):
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
            return
        raise SettingsError(f"{where}: {'.'.join(above) or 'the file'} holds settings, `name: value` each, not a value")
    seen = set()
    loader.flatten_mapping(node)
    for name, value in node.value:
        key = (*above, str(loader.construct_object(name)))
        where = f"{path}, line {name.start_mark.line + 1}"
        if key in seen:
            raise SettingsError(f"{where}: {'.'.join(key)} is set twice")
        seen.add(key)
        if key == ("env",):
            raise SettingsError(f"{where}: env picks the settings file, so no file can set it; use {variable(key)}")
        if key in leaves:
            yield key, (_construct(loader, value, f"{where}: {'.'.join(key)}", secret=_is_secret(leaves[key])), where)
        elif any(leaf[: len(key)] == key for leaf in leaves):
            yield from _walk_yaml(loader, value, key, path, leaves)
        else:
            raise SettingsError(f"{where}: unknown setting {'.'.join(key)}{_nearest_key(key, leaves)}")


def _construct(loader: yaml.SafeLoader, node: yaml.Node, what: str, *, secret: bool) -> object:
    try:
        return loader.construct_object(node, deep=True)
    except yaml.YAMLError:
        raise
    except ValueError as error:
        reason = "" if secret else f": {error}"
        raise SettingsError(
            f"{what} reads like a date or a number but is none; put text in quotation marks{reason}"
        ) from None


def _nearest_key(key: Key, leaves: Leaves) -> str:
    known = {".".join(leaf[:depth]) for leaf in leaves for depth in range(1, len(leaf) + 1)}
    return nearest(".".join(key), sorted(known))


_UNREADABLE = (ValueError, RecursionError)
"""What the YAML library raises, beside its own errors, for a date or number that is none and for deep nesting."""


def _unreadable(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _problem(error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return " ".join(str(problem).split())


def _explain(error: ValidationError, leaves: Leaves, sources: Sequence[_Source]) -> str:
    first = error.errors(include_url=False)[0]
    key = tuple(str(part) for part in first["loc"])
    leaf = next((each for each in leaves if key[: len(each)] == each), None)
    origin = next((found for source in sources if (found := source.origin(leaf or key))), None)
    message = first["msg"].removeprefix("Value error, ")
    secret = leaf is not None and _is_secret(leaves[leaf])
    ours = first["type"] == "value_error"  # it says itself what is wrong, and quotes what may be quoted
    got = f", not {first['input']!r}" if leaf and not secret and not ours else ""
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{'.'.join(key)}: {message[:1].lower()}{message[1:]}{got}{f' ({origin})' if origin else ''}{more}"


def _is_secret(field: FieldInfo) -> bool:
    return any(
        isinstance(each, type) and issubclass(each, Secret | SecretStr)
        for each in (field.annotation, *get_args(field.annotation))
    )
