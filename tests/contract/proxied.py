"""Harnesses of the drivers with a server, connected through a proxy that can break."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Protocol

from infra.clock import FakeClock
from tests import postgres_servers, servers
from tests.breakable_proxy import BreakableProxy
from tests.contract.harness import Harness
from tests.contract.postgres_harness import TEMPLATE, PostgresHarness, migrate
from tests.contract.redis_harness import RedisHarness

OpenBy = Callable[[BreakableProxy], AbstractAsyncContextManager[Harness]]


class Proxied(Protocol):
    """A function that gives a driver's server and a harness connected to it through a proxy."""

    def __call__(self, clock: FakeClock) -> tuple[int, OpenBy]:
        """Return the server's port, and a function that opens a harness on an empty store through a proxy."""
        ...


def redis(clock: FakeClock, *, kind: str) -> tuple[int, OpenBy]:
    """Return the server of a kind, and a function that opens a harness on a new namespace."""
    server = servers.shared(kind)

    @asynccontextmanager
    async def by(proxy: BreakableProxy) -> AsyncIterator[Harness]:
        harness = RedisHarness(proxy.instead_of(server.url), clock)
        with proxy:
            try:
                yield harness
            finally:
                await harness.close()

    return server.port, by


def postgres(clock: FakeClock) -> tuple[int, OpenBy]:
    """Return the server, and a function that opens a harness on a new database."""
    server = postgres_servers.shared()

    @asynccontextmanager
    async def by(proxy: BreakableProxy) -> AsyncIterator[Harness]:
        template = await server.template(TEMPLATE, migrate)
        async with server.database(template) as url:
            harness = PostgresHarness(proxy.instead_of(url), clock)
            with proxy:
                try:
                    yield harness
                finally:
                    await harness.close()

    return server.port, by


PROXIED: dict[str, Proxied] = {
    "postgres": partial(postgres),
    "valkey": partial(redis, kind="valkey"),
    "redis7": partial(redis, kind="redis7"),
    "redis8": partial(redis, kind="redis8"),
}
