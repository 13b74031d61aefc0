"""Fixtures of the Redis driver's tests: a server, a namespace, a clock, a proxy, and open queues."""

import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from infra.clock import FakeClock, SystemClock
from infra.mq.drivers.redis import RedisQueue
from tests import servers
from tests.infra.redis.proxy import Proxy, proxy_to

_namespaces = itertools.count(1)

Open = Callable[..., Awaitable[RedisQueue]]


@pytest.fixture
def server() -> servers.RedisServer:
    return servers.shared(servers.any_kind())


@pytest.fixture
def namespace() -> str:
    return f"own{os.getpid()}-{next(_namespaces)}"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def proxy(server: servers.RedisServer) -> AsyncIterator[Proxy]:
    async with proxy_to(server.port) as opened:
        yield opened


@pytest.fixture
async def opened(server: servers.RedisServer, namespace: str) -> AsyncIterator[Open]:
    """Return a function that opens queues on one namespace, by default with the system clock; close them at the end."""
    queues: list[RedisQueue] = []

    async def open_(url: str | None = None, **options: Any) -> RedisQueue:  # noqa: ANN401 - the queue's own
        settings: dict[str, Any] = {"clock": SystemClock(), "namespace": namespace, "registry_ttl": 0.0} | options
        queue = RedisQueue(url or server.url, **settings)
        queues.append(queue)
        await queue.open()
        return queue

    yield open_
    for queue in queues:
        await queue.close()
