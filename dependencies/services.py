"""Every service. To add one: a provider in `Services`, and a field of the same name in `AllServices`."""

from dataclasses import dataclass

from dependency_injector.containers import DeclarativeContainer
from dependency_injector.providers import DependenciesContainer, ThreadSafeSingleton


@dataclass(frozen=True, slots=True)
class AllServices:
    """Every service of the application; making one registers every listener."""


class Services(DeclarativeContainer):
    """One provider for each service, and `all`."""

    infra = DependenciesContainer()

    all = ThreadSafeSingleton(AllServices)
