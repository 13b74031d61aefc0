"""The check that every service whose constructor takes the bus has a provider."""

import importlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from dependency_injector import providers

import dependencies.completeness
from dependencies import Container, IncompleteContainer, Settings
from dependencies.completeness import bus_takers, check_completeness

_numbers = itertools.count()

Plant = Callable[..., ModuleType]


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Return a function that creates a package of the given files and imports it."""

    def make(**files: str) -> ModuleType:
        name = f"planted_{next(_numbers)}"
        for module, source in files.items():
            path = tmp_path.joinpath(name, *module.split("__")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        (tmp_path / name / "__init__.py").write_text("")
        monkeypatch.syspath_prepend(tmp_path)
        return importlib.import_module(name)

    return make


def names(package: ModuleType) -> list[str]:
    return [f"{each.__module__}.{each.__name__}".removeprefix(f"{package.__name__}.") for each in bus_takers(package)]


@pytest.mark.parametrize(
    "constructor",
    [
        "def __init__(self, bus: Bus): ...",
        "def __init__(self, bus: 'Bus'): ...",
        "def __init__(self, *, events: Bus | None = None): ...",
        "def __init__(self, events: Annotated[Bus, 'x']): ...",
        "def __init__(self, bus): ...",
        "def __init__(self, events: 'Bus', other: 'OnlyForTypeCheckers'): ...",
    ],
)
def test_classes_whose_constructor_takes_a_bus_are_found(plant: Plant, constructor: str) -> None:
    source = f"from typing import Annotated\nfrom bus import Bus\nclass BillingService:\n    {constructor}\n"
    assert names(plant(billing__service=source)) == ["billing.service.BillingService"]


def test_inherited_constructors_and_dataclasses_count(plant: Plant) -> None:
    source = """
from dataclasses import dataclass
from bus import Bus
from bus import Bus as Imported
@dataclass
class Base:
    bus: Bus
class Derived(Base): ...
"""
    assert names(plant(billing__service=source)) == ["billing.service.Base", "billing.service.Derived"]


def test_namespace_packages_and_nested_modules_are_searched(plant: Plant) -> None:
    source = "from bus import Bus\nclass S:\n    def __init__(self, bus: Bus): ...\n"
    assert names(plant(billing__deep__er=source, flat=source)) == ["billing.deep.er.S", "flat.S"]


def test_classes_without_a_bus_are_ignored(plant: Plant) -> None:
    source = """
from abc import ABC, abstractmethod
from typing import Protocol
from bus import Bus
class Plain: ...
class Other:
    def __init__(self, business: int) -> None: ...
class Seam(Protocol):
    def __init__(self, bus: Bus) -> None: ...
class Abstract(ABC):
    def __init__(self, bus: Bus) -> None: ...
    @abstractmethod
    def work(self): ...
class Error(Exception): ...
"""
    assert names(plant(billing__service=source)) == []


def test_container_of_the_project_is_complete() -> None:
    check_completeness(Container(settings=Settings()))


def test_overridden_container_stays_complete() -> None:
    container = Container(settings=Settings())
    with container.services.secret.override(providers.Object(object())):
        check_completeness(container)


def test_service_without_a_provider_is_named_with_the_missing_lines(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from bus import Bus\nclass BillingService:\n    def __init__(self, bus: Bus): ...\n"
    package = plant(billing__service=source)
    monkeypatch.setattr(dependencies.completeness, "services", package)
    with pytest.raises(IncompleteContainer) as caught:
        check_completeness(Container(settings=Settings()))
    message = str(caught.value)
    assert message.startswith(f"{package.__name__}.billing.service.BillingService takes the bus, but ")
    assert "`self.billing = ThreadSafeSingleton(BillingService, bus=infra.bus, ...)`" in message
    assert "`billing: BillingService`" in message
    assert message.endswith("in dependencies/services.py")
    assert "\n" not in message


def test_a_provider_that_is_not_in_all_services_is_named(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "from bus import Bus\nclass BillingService:\n    def __init__(self, bus: Bus): ...\n"
    package = plant(billing__service=source)
    monkeypatch.setattr(dependencies.completeness, "services", package)
    service = importlib.import_module(f"{package.__name__}.billing.service").BillingService

    @dataclass(frozen=True)
    class Nothing:
        pass

    container = Container(settings=Settings())
    incomplete: Any = SimpleNamespace(
        billing=providers.ThreadSafeSingleton(service), all=providers.ThreadSafeSingleton(Nothing)
    )
    monkeypatch.setattr(container, "services", incomplete)
    with pytest.raises(IncompleteContainer) as caught:
        check_completeness(container)
    message = str(caught.value)
    assert "has a provider, but" in message
    assert "is not in AllServices" in message
    assert "`billing: BillingService`" in message
