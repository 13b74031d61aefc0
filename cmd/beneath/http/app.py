"""The ASGI application of the control server: the API of all domains, its options and its rate limits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fastapi import FastAPI

from beneath.http.core.app import create_api
from beneath.http.core.health import Probe, Scrape
from beneath.http.core.limits import HOUR, AddressLimit
from beneath.http.core.middleware import Correlate
from beneath.http.domains import DOMAINS
from dependencies import AllServices
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
    services: AllServices,
    *,
    correlate: Correlate,
    ready: Mapping[str, Probe],
    metrics: Scrape,
    clock: Clock | None = None,
    options: HttpOptions | None = None,
) -> FastAPI:
    """Return the API of `services`, with health and metrics; `create_api` explains the other arguments."""
    options = options or HttpOptions()
    app = create_api(
        DOMAINS,
        title="Beneath",
        description=DESCRIPTION,
        version=options.version,
        correlate=correlate,
        ready=ready,
        metrics=metrics,
        max_body=options.max_body,
    )
    app.state.services = services
    clock = clock or SystemClock()
    app.state.failure_limit = AddressLimit(clock, "wrong secrets", options.max_auth_failures, 60)
    app.state.sign_up_limit = AddressLimit(clock, "sign-ups and changes of email", options.max_sign_ups, HOUR)
    app.state.invite_limit = AddressLimit(clock, "invites", options.max_invites, HOUR)
    return app
