"""Settings as text: a commented template, and the values in force."""

from collections.abc import Iterator

import yaml
from pydantic import BaseModel, Secret

from dependencies.settings import Settings
from dependencies.sources import Key, variable, walk_leaves

HEAD = """\
# Every setting of beneath, with its default. Uncomment what you change, and keep the file as config/.default.yaml,
# config/.development.yaml, config/.test.yaml or config/.production.yaml; later ones, and BENEATH_* variables, win.
"""


def render_template() -> str:
    """Return a YAML file with every setting, its default, meaning and variable, all commented out."""
    return HEAD + "".join(_sections(Settings, ()))


def in_force(settings: Settings) -> Iterator[tuple[Key, object]]:
    """Yield every setting's key and value, secrets masked."""
    values = settings.model_dump(mode="json")
    for key, _ in walk_leaves(Settings):
        value: object = values
        for name in key:
            value = value[name] if isinstance(value, dict) else None
        yield key, value


def _sections(model: type[BaseModel], above: Key) -> Iterator[str]:
    indent = "  " * len(above)
    for name, field in model.model_fields.items():
        key = (*above, name)
        if key == ("env",):
            continue  # selects the file, so it cannot be set in one
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield f"\n{indent}# {(section.__doc__ or '').strip()}\n{indent}{name}:\n"
            yield from _sections(section, key)
            continue
        for line in (field.description or "").splitlines():
            yield f"{indent}# {line.strip()}\n"
        yield f"{indent}# ({variable(key)})\n{indent}# {name}: {_yaml(field.default)}\n"


def _yaml(default: object) -> str:
    plain = default.get_secret_value() if isinstance(default, Secret) else default
    plain = plain if isinstance(plain, str | int | float | bool | list | dict | None) else str(plain)
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")
