"""The container: the providers of all objects, constructed at their first use.

The containers are plain classes. `dependency_injector.containers` would import FastAPI and Starlette into each process.
"""

from dependency_injector.providers import Object, Provider, ThreadSafeSingleton

from dependencies.infra import Infra
from dependencies.services import Services
from dependencies.settings import Settings
from dependencies.sources import load_settings


class Container:
    """The composition root: `settings`, `infra`, `services`.

    `Container()` reads the settings of the working directory and the environment; `Container(settings=Settings(...))`
    takes these. Each instance has its own objects. A test overrides providers of an instance before first use:
    `container.infra.mailer.override(...)`, `container.services.notification.override(...)`.
    """

    def __init__(self, *, settings: Settings | None = None) -> None:
        self.settings: Provider[Settings] = ThreadSafeSingleton(load_settings) if settings is None else Object(settings)
        self.infra = Infra(self.settings)
        self.services = Services(self.infra)
