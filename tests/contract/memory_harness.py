"""The harness of the memory driver: a store is one object."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from infra.clock import FakeClock
from infra.mq import Consumer, MessageQueue
from infra.mq.drivers.memory import MemoryQueue
from tests.contract.harness import MAX_BODY


class MemoryHarness:
    """A harness with one queue for all simulated processes."""

    dedupe_window = 120.0
    lease: float | None = 10.0

    def __init__(self, clock: FakeClock, queue: MemoryQueue) -> None:
        self.clock = clock
        self._queue = queue

    async def queue(self) -> MessageQueue:
        return self._queue

    async def reopen(self) -> MessageQueue:
        raise NotImplementedError("nothing survives in memory")

    async def crash(self, consumer: Consumer) -> None:
        consumer.abandon()

    def transaction(self, queue: MessageQueue) -> AbstractAsyncContextManager[object]:
        raise NotImplementedError("memory has no transactions")


@asynccontextmanager
async def open_harness(folder: Path, clock: FakeClock) -> AsyncIterator[MemoryHarness]:
    """Open an empty memory queue."""
    queue = MemoryQueue(clock=clock, dedupe_window=MemoryHarness.dedupe_window, lease=10.0, max_body=MAX_BODY)
    await queue.open()
    yield MemoryHarness(clock, queue)
    await queue.close()
