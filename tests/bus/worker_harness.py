"""A harness for tests of the worker: a bus and a worker on a memory queue, and a clock that the test advances."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random

from bus import Bus, BusOptions
from infra.clock import FakeClock
from infra.mq import ClaimLimits, Consumer, WorkerInfo
from infra.mq.drivers.memory import MemoryQueue


class WorkerHarness:
    """A bus on a memory queue, and a worker that runs inside `working()`."""

    def __init__(self, options: BusOptions | None = None) -> None:
        self.clock = FakeClock()
        self.mq = MemoryQueue(clock=self.clock, lease=float("inf"))
        self.consumers: list[Consumer] = []
        self._join = self.mq.consumer
        self.mq.consumer = self._recorded  # type: ignore[method-assign,assignment]  # records the consumers
        self.options = options or BusOptions()
        self.bus = self.another_bus()

    async def _recorded(self, info: WorkerInfo, limits: ClaimLimits) -> Consumer:
        consumer = await self._join(info, limits)
        self.consumers.append(consumer)
        return consumer

    def another_bus(self) -> Bus:
        return Bus(self.mq, clock=self.clock, options=self.options, random=Random(1))

    @asynccontextmanager
    async def working(self, bus: Bus | None = None) -> AsyncIterator[asyncio.Task[None]]:
        bus = bus or self.bus
        await self.mq.open()
        starting = asyncio.create_task(bus.start())
        await self.clock.advance(2)
        await starting
        worker = asyncio.create_task(bus.run())
        await self.clock.settle()
        try:
            yield worker
        finally:
            await self.stop(worker)
            await bus.close()

    async def stop(self, worker: asyncio.Task[None]) -> None:
        worker.cancel()
        for _ in range(100):
            if worker.done():
                break
            await self.clock.advance(1)
        with contextlib.suppress(asyncio.CancelledError):
            await worker

    async def until(self, condition: Callable[[], object]) -> None:
        """Let tasks and threads run until `condition` holds, without advancing the clock."""
        for _ in range(2000):
            if condition():
                return
            await asyncio.sleep(0.001 if threading.active_count() > 2 else 0)
        raise AssertionError("the condition was never met")
