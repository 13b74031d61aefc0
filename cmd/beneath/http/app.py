"""The ASGI application of the control server: routes, middleware, limits and error handlers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fastapi import FastAPI

from beneath.http import problems
from beneath.http.docs import docs_routes
from beneath.http.health import Probe, Scrape, health_routes
from beneath.http.limits import HOUR, AddressLimit
from beneath.http.middleware import BodyGuard, Correlate, RequestContext
from beneath.http.openapi import describe
from beneath.http.routes import audit, invites, members, organizations, projects, secrets, users
from beneath.http.services import Services
from infra.clock import Clock, SystemClock

DESCRIPTION: Final = """\
Sign up with `POST /v1/users`; send the secret from its response as `Authorization: Bearer <secret>` with all other
requests. Errors are `application/problem+json`. Lists come in pages of `items`; `next` is the next page's cursor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """Options of the API."""

    version: str = "0.1.0"
    """Version of the application, shown in the API's description."""

    max_body: int = 1024 * 1024
    """Largest request body, in bytes."""

    max_auth_failures: int = 60
    """Wrong secrets that one address may send in 60 seconds."""

    max_sign_ups: int = 30
    """Sign-ups and changes of email from one address in an hour."""

    max_invites: int = 100
    """Invites from one address in an hour."""


def create_app(
    services: Services,
    *,
    correlate: Correlate,
    ready: Mapping[str, Probe],
    metrics: Scrape,
    clock: Clock | None = None,
    options: HttpOptions | None = None,
) -> FastAPI:
    """Return the API of `services`, with health and metrics.

    `correlate` is `bus.correlation`: it sets the correlation id of the events that a request publishes. `ready` has the
    probes of `/readyz` by name; `metrics` returns the body of `/metrics`.
    """
    options = options or HttpOptions()
    app = FastAPI(
        title="Beneath",
        version=options.version,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
    )
    app.state.services = services
    clock = clock or SystemClock()
    app.state.failure_limit = AddressLimit(clock, "wrong secrets", options.max_auth_failures, 60)
    app.state.sign_up_limit = AddressLimit(clock, "sign-ups and changes of email", options.max_sign_ups, HOUR)
    app.state.invite_limit = AddressLimit(clock, "invites", options.max_invites, HOUR)
    for routes in (users, secrets, organizations, members, invites, projects, audit):
        app.include_router(routes.router, prefix="/v1")
    app.router.routes.extend([*health_routes(ready, metrics), *docs_routes()])
    app.openapi = describe(app)  # type: ignore[method-assign]  # FastAPI documents this way of replacing it
    problems.install(app)
    app.add_middleware(BodyGuard, max_body=options.max_body)
    app.add_middleware(RequestContext, correlate=correlate)  # added last, so it is the outermost
    return app
