"""The parts of the application that can be started, each by its name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from beneath.errors import UsageError
from beneath.lifecycle import Runnable, exit_requests
from dependencies.sources import nearest

if TYPE_CHECKING:
    from beneath.application import Application

ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How this process was started from the command line."""

    options: Sequence[str] = ()
    """With these, a child process comes to the same settings."""

    parent_fd: int | None = None
    """The pipe from the process that started this one as its child."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a startable may look at when it makes its runnables."""

    application: Application
    cleanup: ExitStack
    """Closed when everything has ended: also what never ran, because another part could not be made."""

    started: Collection[str]
    """Everything that starts in this process."""

    launch: Launch | None
    """None: not from the command line, so everything stays in this process."""


@dataclass(frozen=True, slots=True)
class Startable:
    """A named set of runnables."""

    name: str
    summary: str
    build: Callable[[Request], Sequence[Runnable]]


def control_server(request: Request) -> Sequence[Runnable]:
    """Serve HTTP at `control.host`:`control.port`."""
    from beneath.control import build_server

    return [build_server(request, CONTROL_SERVER.name)]


def control_worker(request: Request) -> Sequence[Runnable]:
    """Handle events; without the control server in this process, health and metrics are at `worker.port`."""
    from beneath.worker import build_worker

    return build_worker(request)


CONTROL_SERVER = Startable("control-server", "HTTP: the API, health and metrics.", control_server)
CONTROL_WORKER = Startable("control-worker", "Handles events: async, ordered and scheduled ones.", control_worker)
STARTABLES = (CONTROL_SERVER, CONTROL_WORKER)


def select(names: Sequence[str]) -> list[Startable]:
    """Return the startables called `names`, each once; `all` stands for every one.

    Raises:
        UsageError: there is none of that name; names the nearest, and all.
    """
    known = {each.name: each for each in STARTABLES}
    for name in names:
        if name not in known and name != ALL:
            valid = ", ".join([*known, ALL])
            raise UsageError(f"there is no startable {name!r}{nearest(name, [*known, ALL])} (there are: {valid})")
    return [each for each in STARTABLES if ALL in names or each.name in names]


@contextmanager
def built(
    startables: Sequence[Startable], application: Application, launch: Launch | None = None
) -> Iterator[list[Runnable]]:
    """Make the runnables of `startables`, in an opened application, and the watches over event loop and bus."""
    with ExitStack() as cleanup:
        request = Request(application, cleanup, [each.name for each in startables], launch)
        runnables = [runnable for each in startables for runnable in each.build(request)]
        yield [*runnables, LoopWatch(application), BusWatch(application)]


class LoopWatch:
    """Measures how late the event loop is, for the metrics."""

    name = "loop-watch"

    def __init__(self, application: Application) -> None:
        self._telemetry = application.container.infra.telemetry()

    async def run(self) -> None:
        await self._telemetry.watch_loop()


class BusWatch:
    """Ends the process when a background task of the bus failed too often, or a broadcast listener asked for it."""

    name = "bus-watch"

    def __init__(self, application: Application) -> None:
        self._bus = application.bus

    async def run(self) -> None:
        with exit_requests():
            await self._bus.watch()
