"""The ASGI application without any domain: middleware, error handlers, health, metrics and the description."""

from collections.abc import Mapping, Sequence

from fastapi import FastAPI

from beneath.http.core import problems
from beneath.http.core.docs import docs_routes
from beneath.http.core.domain import Domain
from beneath.http.core.error_handlers import install
from beneath.http.core.health import Probe, Scrape, health_routes
from beneath.http.core.middleware import BodyGuard, Correlate, RequestContext
from beneath.http.core.openapi import describe


def create_api(
    domains: Sequence[Domain],
    *,
    title: str,
    description: str,
    version: str,
    correlate: Correlate,
    ready: Mapping[str, Probe],
    metrics: Scrape,
    max_body: int,
) -> FastAPI:
    """Return the API of `domains` under `/v1`, with health and metrics. Request bodies have at most `max_body` bytes.

    `correlate` is `bus.correlation`: it sets the correlation id of the events that a request publishes. `ready` has the
    probes of `/readyz` by name; `metrics` returns the body of `/metrics`.

    Raises:
        ValueError: two domains list an error with different problem types.
    """
    app = FastAPI(
        title=title,
        version=version,
        description=description,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
    )
    for router in (router for domain in domains for router in domain.routers):
        app.include_router(router, prefix="/v1")
    app.router.routes.extend([*health_routes(ready, metrics), *docs_routes()])
    app.openapi = describe(app)  # type: ignore[method-assign]  # FastAPI documents this way of replacing it
    install(app, _problems(domains))
    app.add_middleware(BodyGuard, max_body=max_body)
    app.add_middleware(RequestContext, correlate=correlate)  # added last, so it is the outermost
    return app


def _problems(domains: Sequence[Domain]) -> Mapping[type[Exception], problems.ProblemType]:
    found: dict[type[Exception], problems.ProblemType] = {}
    for error, kind in (item for domain in domains for item in domain.problems.items()):
        if found.setdefault(error, kind) != kind:
            raise ValueError(f"{error.__name__} has two problem types: {found[error].slug} and {kind.slug}")
    return found
