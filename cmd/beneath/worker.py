"""The control worker: one process that handles events, or the parent of several."""

from collections.abc import Sequence

from beneath.control import build_health_server
from beneath.errors import StartError
from beneath.lifecycle import Runnable, exit_requests
from beneath.processes import Supervised, WorkerPool
from beneath.startables import CONTROL_SERVER, CONTROL_WORKER, Request
from bus import Bus

MAX_PORT = 65_535
NAME = CONTROL_WORKER.name
KILL_AFTER = 3.0
"""Seconds beyond `worker.grace` after which a worker process that has not stopped is killed."""


class BusWorker:
    """Handles deliveries until cancelled, then stops gracefully: a runnable."""

    name = NAME

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def run(self) -> None:
        with exit_requests():
            await self._bus.run()


def build_worker(request: Request) -> Sequence[Runnable]:
    """Return the worker, with its health and metrics unless the control server's in this process serve them.

    Raises:
        StartError: the port cannot be had.
    """
    application = request.application
    settings = application.settings.worker
    if request.launch is not None and settings.processes > 1:
        return [_pool(request)]
    worker = BusWorker(application.bus)
    if CONTROL_SERVER.name in request.started:
        return [worker]
    return [worker, build_health_server(request, NAME)]


def _pool(request: Request) -> WorkerPool:
    application, launch = request.application, request.launch
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
