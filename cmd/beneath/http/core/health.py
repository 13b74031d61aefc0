"""The routes for liveness, readiness and metrics. They need no authentication and show no data of the domain."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Generic, TypeVar

import structlog
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

T = TypeVar("T")

Probe = Callable[[], Awaitable[None]]
"""Returns if a part works; raises its error otherwise."""

Scrape = Callable[[], Awaitable[bytes]]
"""Returns the metrics in the text format of Prometheus."""

PROBE_SECONDS: Final = 2.0


def health_routes(ready: Mapping[str, Probe], metrics: Scrape) -> list[Route]:
    """Return `/healthz`, `/metrics`, and `/readyz`: 200 if every probe returns within 2 seconds, else 503.

    Concurrent requests share one run of the probes, or one scrape: they need no authentication, and each run costs the
    database several queries.
    """

    async def probe_all() -> dict[str, str]:
        return dict(zip(ready, await asyncio.gather(*map(_state, ready, ready.values())), strict=True))

    probes, scrapes = _Shared(probe_all), _Shared(metrics)

    async def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_request: Request) -> Response:
        states = await probes()
        is_ready = all(state == "ok" for state in states.values())
        body = {"status": "ready" if is_ready else "not ready", "checks": states}
        return JSONResponse(body, 200 if is_ready else 503)

    async def scrape(_request: Request) -> Response:
        return Response(await scrapes(), media_type=CONTENT_TYPE_LATEST)

    return [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", scrape)]


def create_health_app(*, ready: Mapping[str, Probe], metrics: Scrape) -> Starlette:
    """Return an application with health and metrics only, for processes without the API."""
    return Starlette(routes=health_routes(ready, metrics))


class _Shared(Generic[T]):
    """A call that runs once at a time; concurrent callers get the same result or error."""

    def __init__(self, call: Callable[[], Awaitable[T]]) -> None:
        self._call = call
        self._running: asyncio.Task[T] | None = None

    async def __call__(self) -> T:
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        # A client that disconnects must not cancel the call for other clients.
        return await asyncio.shield(self._running)

    async def _run(self) -> T:
        return await self._call()


async def _state(name: str, probe: Probe) -> str:
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await probe()
    except Exception as error:  # noqa: BLE001 - with any error the part is not ready
        log.warning("readiness check failed", part=name, error=str(error) or type(error).__name__)
        return "failed"
    return "ok"
