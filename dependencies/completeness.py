"""The completeness check: every service that takes the bus must be in the container."""

import importlib
import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from dependency_injector.providers import BaseSingleton

import services
from bus import Bus
from dependencies.container import Container
from dependencies.errors import IncompleteContainer

PLACE = "dependencies/services.py"


def check_completeness(container: Container) -> None:
    """Check that every class under `services` whose constructor takes a `Bus` has a provider and is in `AllServices`.

    An overridden provider counts as a provider of the original class.

    Raises:
        IncompleteContainer: a class is missing. The text names it, and the lines to add.
    """
    providers: Mapping[str, Any] = vars(container.services)
    provided = {each.provides: name for name, each in providers.items() if isinstance(each, BaseSingleton)}
    whole = providers["all"]
    members = {each.name for each in fields(whole.provides)} & whole.kwargs.keys()
    for cls in bus_takers(services):
        name = provided.get(cls)
        path = f"{cls.__module__}.{cls.__qualname__}"
        if name is None:
            name = _field_name(cls)
            raise IncompleteContainer(
                f"{path} takes the bus, but the container does not construct it, so {_package(cls)} would listen to "
                f"nothing: add `self.{name} = ThreadSafeSingleton({cls.__name__}, bus=infra.bus, ...)` to Services, "
                f"`{name}: {cls.__name__}` to AllServices and `{name}=self.{name}` to its provider, in {PLACE}"
            )
        if name not in members:
            raise IncompleteContainer(
                f"{path} takes the bus and has a provider, but {_package(cls)} is not in AllServices, so nothing "
                f"constructs it: add the field `{name}: {cls.__name__}` and `{name}=self.{name}` to its provider, "
                f"in {PLACE}"
            )


def bus_takers(package: ModuleType) -> Iterator[type]:
    """Yield every concrete class defined under `package` whose constructor takes a `Bus`, importing all modules."""
    for module in _modules(package):
        for cls in vars(module).values():
            defined_here = isinstance(cls, type) and cls.__module__ == module.__name__
            if defined_here and not inspect.isabstract(cls) and _takes_bus(cls):
                yield cls


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    # pkgutil does not find folders without __init__.py, which can be imported as well.
    yield package
    for root in map(Path, package.__path__):
        for file in sorted(root.rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            names = parts[:-1] if parts[-1] == "__init__" else parts
            if names and all(each.isidentifier() for each in names):
                yield importlib.import_module(".".join((package.__name__, *names)))


def _takes_bus(cls: type) -> bool:
    if getattr(cls, "_is_protocol", False):
        return False
    constructor: Callable[..., object] = cls.__init__  # type: ignore[misc]  # it is not called
    try:
        annotated: Mapping[str, object] = typing.get_type_hints(constructor)
        takes = any(_mentions_bus(hint) for name, hint in annotated.items() if name != "return")
    except (NameError, AttributeError, TypeError):
        # Names that are imported for type checkers only: compare the source text of the annotations.
        annotated = _written_annotations(constructor)
        takes = any(re.search(r"\bBus\b", str(each)) for each in annotated.values())
    code: CodeType | None = getattr(constructor, "__code__", None)
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] if code else ()
    return takes or ("bus" in names and "bus" not in annotated)


def _written_annotations(constructor: Callable[..., object]) -> Mapping[str, object]:
    if sys.version_info >= (3, 14):
        import annotationlib

        return annotationlib.get_annotations(constructor, format=annotationlib.Format.STRING)
    return getattr(constructor, "__annotations__", {})


def _mentions_bus(hint: object) -> bool:
    if isinstance(hint, type) and issubclass(hint, Bus):
        return True
    return any(_mentions_bus(each) for each in typing.get_args(hint))


def _package(cls: type) -> str:
    return ".".join(cls.__module__.split(".")[:2])


def _field_name(cls: type) -> str:
    return cls.__module__.split(".")[1]
