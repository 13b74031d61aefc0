"""The control server: serves the API, health and metrics by HTTP."""

from collections.abc import Sequence

from beneath.http.core.connections import ConnectionLimits
from beneath.runtime.lifecycle import Runnable
from beneath.runtime.server import HttpServer
from beneath.startables.health import probes, register
from beneath.startables.types import BuildContext, Startable
from dependencies.version import application_version

NAME = "control-server"


def build_control_server(context: BuildContext) -> Sequence[Runnable]:
    """Return the HTTP server of the API, which listens already at `control.host`:`control.port`.

    Raises:
        StartError: the port is in use or not permitted.
    """
    from beneath.http.app import HttpOptions, create_app  # the API and FastAPI, which a worker does not need

    application = context.application
    infra, settings = application.container.infra, application.settings.control
    app = create_app(
        application.services,
        correlate=application.bus.correlation,
        # With an outbox, requests succeed while the queue is unavailable; `/metrics` shows the backlog.
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
        NAME,
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
    return [register(context, NAME, server)]


CONTROL_SERVER = Startable(NAME, "HTTP: the API, health and metrics.", build_control_server)
