"""Harnesses of the drivers with a server, connected through a wire that can break."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Protocol

from infra.clock import FakeClock
from tests import postgres_servers, servers
from tests.contract.harness import Harness
from tests.contract.postgres_harness import TEMPLATE, PostgresHarness, migrate
from tests.contract.redis_harness import RedisHarness
from tests.wire import Wire

OpenBy = Callable[[Wire], AbstractAsyncContextManager[Harness]]


class Wired(Protocol):
    """A function that gives a driver's server and a harness connected to it through a wire."""

    def __call__(self, clock: FakeClock) -> tuple[int, OpenBy]:
        """Return the server's port, and a function that opens a harness on an empty store through a wire."""
        ...


def redis(clock: FakeClock, *, kind: str) -> tuple[int, OpenBy]:
    """Return the server of a kind, and a function that opens a harness on a new namespace."""
    server = servers.shared(kind)

    @asynccontextmanager
    async def by(wire: Wire) -> AsyncIterator[Harness]:
        harness = RedisHarness(wire.instead_of(server.url), clock)
        with wire:
            try:
                yield harness
            finally:
                await harness.close()

    return server.port, by


def postgres(clock: FakeClock) -> tuple[int, OpenBy]:
    """Return the server, and a function that opens a harness on a new database."""
    server = postgres_servers.shared()

    @asynccontextmanager
    async def by(wire: Wire) -> AsyncIterator[Harness]:
        template = await server.template(TEMPLATE, migrate)
        async with server.database(template) as url:
            harness = PostgresHarness(wire.instead_of(url), clock)
            with wire:
                try:
                    yield harness
                finally:
                    await harness.close()

    return server.port, by


WIRED: dict[str, Wired] = {
    "postgres": partial(postgres),
    "valkey": partial(redis, kind="valkey"),
    "redis7": partial(redis, kind="redis7"),
    "redis8": partial(redis, kind="redis8"),
}
