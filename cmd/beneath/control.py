"""The control server, and what it and the worker answer about health."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sqlalchemy import text

from beneath.http import HttpOptions, Probe, create_app, create_health_app
from beneath.http.connections import ConnectionLimits
from beneath.server import HttpServer
from beneath.startables import Request
from dependencies.version import application_version

if TYPE_CHECKING:
    from beneath.application import Application

HEALTH_GRACE = 1.0
"""Seconds that a scrape under way gets when a worker stops."""


HEALTH_TIMEOUT = 5.0
"""Seconds in which a request to a worker's port must be complete: it has no body."""


class BackgroundTaskFailing(Exception):
    """A background task of the bus fails for a reason that will not pass by itself."""


class Stopping(Exception):
    """The process is about to end: send it nothing new."""


def build_server(request: Request, name: str) -> HttpServer:
    """Return the HTTP server of the API, listening.

    Raises:
        StartError: the port cannot be had.
    """
    application = request.application
    infra, settings = application.container.infra, application.settings.control
    app = create_app(
        application.services,
        correlate=application.bus.correlation,
        # With an outbox, requests succeed while the queue is away; `/metrics` tells of it.
        ready=probes(application, queue_needed=not application.bus.has_outbox),
        metrics=infra.telemetry().scrape,
        clock=infra.clock(),
        options=HttpOptions(
            version=application_version(),
            max_body=settings.max_body,
            max_auth_failures=settings.max_auth_failures,
            max_sign_ups=settings.max_sign_ups,
            max_invites=settings.max_invites,
        ),
    )
    server = HttpServer(
        name,
        app,
        section="control",
        host=settings.host,
        port=settings.port,
        grace=settings.grace,
        limits=ConnectionLimits(
            max_connections=settings.max_connections,
            request_timeout=settings.request_timeout,
            keep_alive=settings.keep_alive,
        ),
        proxies=settings.trusted_proxies,
    )
    return _announced(request, name, server)


def build_health_server(request: Request, name: str) -> HttpServer:
    """Return the HTTP server of a worker: health and metrics, listening.

    Raises:
        StartError: the port cannot be had.
    """
    application = request.application
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
    return _announced(request, name, server)


def _announced(request: Request, name: str, server: HttpServer) -> HttpServer:
    request.cleanup.callback(server.close)
    request.application.urls[name] = server.url
    request.application.container.infra.telemetry().add(server.samples)
    return server


def probes(application: "Application", *, queue_needed: bool) -> Mapping[str, Probe]:
    """Return what must work for this process to do its own."""
    infra = application.container.infra

    async def database() -> None:
        async with infra.db().read() as session:
            await session.execute(text("SELECT 1"))

    async def queue() -> None:
        await infra.mq().registry()

    async def lifecycle() -> None:
        if application.stopping:
            raise Stopping("the process is stopping")

    async def tasks() -> None:
        for each in application.bus.background_tasks:
            if each.failing:
                raise BackgroundTaskFailing(f"{each.name}: {each.failures} failures in a row: {each.error}")

    needed: dict[str, Probe] = {"database": database, "lifecycle": lifecycle, "tasks": tasks}
    if queue_needed:
        needed["queue"] = queue
    return needed
