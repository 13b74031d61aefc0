"""The list of startables, their selection by name, and the building of their runnables."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from beneath.errors import UsageError
from beneath.runtime.lifecycle import Runnable
from beneath.startables.control_server import CONTROL_SERVER
from beneath.startables.control_worker import CONTROL_WORKER
from beneath.startables.types import BuildContext, Launch, OpenedApplication, Startable
from beneath.startables.watches import BusWatch, LoopWatch
from dependencies.sources import nearest

ALL = "all"
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
    startables: Sequence[Startable], application: OpenedApplication, launch: Launch | None = None
) -> Iterator[list[Runnable]]:
    """Build the runnables of `startables` in an opened application, and those that watch the event loop and the bus."""
    with ExitStack() as cleanup:
        context = BuildContext(application, cleanup, [each.name for each in startables], launch)
        runnables = [runnable for each in startables for runnable in each.build(context)]
        telemetry = application.container.infra.telemetry()
        yield [*runnables, LoopWatch(telemetry), BusWatch(application.bus)]
