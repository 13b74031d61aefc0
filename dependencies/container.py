"""The container: the providers of all objects, constructed at their first use."""

from typing import cast

from dependency_injector.containers import DeclarativeContainer
from dependency_injector.providers import Container as SubContainer
from dependency_injector.providers import ThreadSafeSingleton

from dependencies.infra import Infra
from dependencies.services import Services
from dependencies.sources import load_settings


class Container(DeclarativeContainer):
    """The composition root: `settings`, `infra`, `services`.

    `Container()` reads the settings of the working directory and the environment; `Container(settings=Settings(...))`
    takes these. Each instance has its own objects. A test overrides providers of an instance before first use:
    `container.infra.mailer.override(...)`, `container.services.notification.override(...)`.
    """

    settings = ThreadSafeSingleton(load_settings)
    # dependency-injector types the providers of a sub-container as Any; the casts give each provider its own type.
    infra = cast("Infra", SubContainer(Infra, settings=settings))
    services = cast("Services", SubContainer(Services, infra=infra))
