"""The harness of the Redis driver: a store is a namespace, a process is a `RedisQueue`."""

import itertools
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

from infra.clock import FakeClock
from infra.mq import Consumer, MessageQueue
from infra.mq.drivers.redis import RedisQueue
from tests import servers
from tests.contract.harness import MAX_BODY

_namespaces = itertools.count(1)


class RedisHarness:
    """A harness whose simulated processes are queues in this process, on one server."""

    dedupe_window = 120.0
    lease: float | None = 12.0
    """A fifth more than the queues are told: only then others take over."""

    def __init__(self, url: str, clock: FakeClock) -> None:
        self.clock = clock
        self._url = url
        self._namespace = f"test{os.getpid()}-{next(_namespaces)}"
        self._queues: list[RedisQueue] = []

    async def queue(self) -> MessageQueue:
        queue = RedisQueue(
            self._url,
            clock=self.clock,
            namespace=self._namespace,
            lease=10.0,
            dedupe_window=self.dedupe_window,
            # The tests advance a fake clock, which neither the server nor its leases use.
            broker_time=False,
            takeover_patience=0.0,
            max_body=MAX_BODY,
        )
        await queue.open()
        self._queues.append(queue)
        return queue

    async def reopen(self) -> MessageQueue:
        await self.close()
        return await self.queue()

    async def crash(self, consumer: Consumer) -> None:
        consumer.abandon()

    def transaction(self, queue: MessageQueue) -> AbstractAsyncContextManager[object]:
        raise NotImplementedError("Redis has no part in the application's transactions")

    async def close(self) -> None:
        """Close all queues."""
        for queue in self._queues:
            await queue.close()
        self._queues.clear()


@asynccontextmanager
async def open_harness(folder: Path, clock: FakeClock, *, kind: str) -> AsyncIterator[RedisHarness]:
    """Open a harness on a new namespace."""
    harness = RedisHarness(servers.shared(kind).url, clock)
    try:
        yield harness
    finally:
        await harness.close()


on_redis7 = partial(open_harness, kind="redis7")
on_redis8 = partial(open_harness, kind="redis8")
on_valkey = partial(open_harness, kind="valkey")
