"""The startables: parts of the application that `beneath start` starts by name."""

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
    """The command line that started this process."""

    options: Sequence[str] = ()
    """Arguments that give a child process the same settings."""

    parent_fd: int | None = None
    """File descriptor of the socket to the parent process; None if this is not a child."""


@dataclass(frozen=True, slots=True)
class BuildContext:
    """The arguments from which a startable builds its runnables."""

    application: Application
    cleanup: ExitStack
    """Closed when all runnables have ended, or if building one of them failed."""

    started: Collection[str]
    """Names of all startables that start in this process."""

    launch: Launch | None
    """None if not started from the command line; then no child processes are started."""


@dataclass(frozen=True, slots=True)
class Startable:
    """A named set of runnables."""

    name: str
    summary: str
    build: Callable[[BuildContext], Sequence[Runnable]]


def control_server(context: BuildContext) -> Sequence[Runnable]:
    """Serve HTTP at `control.host`:`control.port`."""
    from beneath.control import build_server

    return [build_server(context, CONTROL_SERVER.name)]


def control_worker(context: BuildContext) -> Sequence[Runnable]:
    """Handle events; without the control server in this process, health and metrics are at `worker.port`."""
    from beneath.worker import build_worker

    return build_worker(context)


CONTROL_SERVER = Startable("control-server", "HTTP: the API, health and metrics.", control_server)
CONTROL_WORKER = Startable("control-worker", "Handles events: async, ordered and scheduled ones.", control_worker)
STARTABLES = (CONTROL_SERVER, CONTROL_WORKER)


def select(names: Sequence[str]) -> list[Startable]:
    """Return the startables with these names, each once; `all` selects every one.

    Raises:
        UsageError: a name is unknown. The text suggests the nearest name and lists all.
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
    """Build the runnables of `startables` in an opened application, and those that watch the event loop and the bus."""
    with ExitStack() as cleanup:
        context = BuildContext(application, cleanup, [each.name for each in startables], launch)
        runnables = [runnable for each in startables for runnable in each.build(context)]
        yield [*runnables, LoopWatch(application), BusWatch(application)]


class LoopWatch:
    """A runnable that measures the delay of the event loop for the metrics."""

    name = "loop-watch"

    def __init__(self, application: Application) -> None:
        self._telemetry = application.container.infra.telemetry()

    async def run(self) -> None:
        await self._telemetry.watch_loop()


class BusWatch:
    """A runnable that fails when a background task of the bus fails for good, or a broadcast listener exits."""

    name = "bus-watch"

    def __init__(self, application: Application) -> None:
        self._bus = application.bus

    async def run(self) -> None:
        with exit_requests():
            await self._bus.watch()
