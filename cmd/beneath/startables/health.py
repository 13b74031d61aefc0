"""The health server of a worker, and the readiness probes of every process."""

from collections.abc import Mapping

from sqlalchemy import text

from beneath.http.core.connections import ConnectionLimits
from beneath.http.core.health import Probe, create_health_app
from beneath.runtime.server import HttpServer
from beneath.startables.types import BuildContext, OpenedApplication

HEALTH_GRACE = 1.0
"""Seconds that a shutdown of a worker waits for open requests to its health server."""

HEALTH_TIMEOUT = 5.0
"""Seconds within which a request to a worker's port must have arrived; such requests have no body."""


class BackgroundTaskFailing(Exception):
    """A background task of the bus fails repeatedly, for a reason that does not look temporary."""


class ProcessStopping(Exception):
    """The process is shutting down and should get no new requests."""


def build_health_server(context: BuildContext, name: str) -> HttpServer:
    """Return the HTTP server for health and metrics of a worker, which listens already.

    Raises:
        StartError: the port is in use or not permitted.
    """
    application = context.application
    settings = application.settings.worker
    scrape = application.container.infra.telemetry().scrape
    app = create_health_app(ready=probes(application, queue_needed=True), metrics=scrape)
    server = HttpServer(
        f"{name}-health",
        app,
        section="worker",
        host=settings.host,
        port=settings.port,
        grace=HEALTH_GRACE,
        limits=ConnectionLimits(max_connections=settings.max_connections, request_timeout=HEALTH_TIMEOUT),
    )
    return register(context, name, server)


def register(context: BuildContext, name: str, server: HttpServer) -> HttpServer:
    """Publish the URL and the metrics of `server`, and close it with the other parts; return it."""
    context.cleanup.callback(server.close)
    context.application.urls[name] = server.url
    context.application.container.infra.telemetry().add(server.samples)
    return server


def probes(application: OpenedApplication, *, queue_needed: bool) -> Mapping[str, Probe]:
    """Return the readiness probes of this process: database, lifecycle, background tasks and, if needed, the queue."""
    infra = application.container.infra

    async def database() -> None:
        async with infra.db().read() as session:
            await session.execute(text("SELECT 1"))

    async def queue() -> None:
        await infra.mq().registry()

    async def lifecycle() -> None:
        if application.stopping:
            raise ProcessStopping("the process is shutting down")

    async def tasks() -> None:
        for each in application.bus.background_tasks:
            if each.failing:
                raise BackgroundTaskFailing(f"{each.name}: {each.failures} failures in a row: {each.error}")

    needed: dict[str, Probe] = {"database": database, "lifecycle": lifecycle, "tasks": tasks}
    if queue_needed:
        needed["queue"] = queue
    return needed
