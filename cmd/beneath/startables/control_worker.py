"""The control worker: runs the bus's worker in this process, or supervises several worker processes."""

from collections.abc import Sequence

from beneath.errors import StartError
from beneath.runtime.lifecycle import Runnable, exit_requests
from beneath.runtime.processes import Supervised, WorkerPool
from beneath.startables.control_server import CONTROL_SERVER
from beneath.startables.health import build_health_server
from beneath.startables.types import BuildContext, Startable
from bus import Bus

MAX_PORT = 65_535
NAME = "control-worker"
KILL_AFTER = 3.0
"""Seconds beyond `worker.grace` after which a worker process that has not ended is killed."""


class BusWorker:
    """A runnable that handles deliveries until cancelled, then shuts down gracefully."""

    name = NAME

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def run(self) -> None:
        with exit_requests():
            await self._bus.run()


def build_control_worker(context: BuildContext) -> Sequence[Runnable]:
    """Return the worker, and its health server unless this process runs the control server.

    Raises:
        StartError: the port is in use or not permitted.
    """
    application = context.application
    settings = application.settings.worker
    if context.launch is not None and settings.processes > 1:
        return [_pool(context)]
    worker = BusWorker(application.bus)
    if CONTROL_SERVER.name in context.started:
        return [worker]
    return [worker, build_health_server(context, NAME)]


def _pool(context: BuildContext) -> WorkerPool:
    application, launch = context.application, context.launch
    settings = application.settings.worker
    if settings.port and settings.port + settings.processes - 1 > MAX_PORT:
        needed = f"{settings.processes} processes from {settings.port} on need ports above {MAX_PORT}"
        raise StartError(f"worker.port: {needed}; lower worker.port or worker.processes")
    options = launch.options if launch else ()
    children = [
        Supervised(
            f"{NAME} {number + 1} of {settings.processes}",
            (
                *options,
                *("--set", "worker.processes=1"),
                *("--set", f"worker.port={settings.port + number if settings.port else 0}"),
                *("start", NAME),
            ),
            grace=settings.grace + KILL_AFTER,
        )
        for number in range(settings.processes)
    ]
    return WorkerPool(NAME, children, grace=application.grace)


CONTROL_WORKER = Startable(NAME, "Handles events: async, ordered and scheduled ones.", build_control_worker)
