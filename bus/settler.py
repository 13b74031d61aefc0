"""Sends the ends of deliveries to the queue, many at a time, and until they have arrived."""

import asyncio
from collections.abc import Callable

import structlog

from bus.metrics import BusMetrics
from infra.clock import Clock
from infra.mq import Consumer, QueueClosed, QueueError, Settlement

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAX_BACKOFF = 5.0
"""The longest wait, in seconds, between two attempts to settle the same batch."""


class Settler:
    """One batch under way at a time; what ends meanwhile forms the next. A lone settlement leaves at once."""

    def __init__(
        self, consumer: Consumer, clock: Clock, metrics: BusMetrics, on_fenced: Callable[[Settlement], None]
    ) -> None:
        self._consumer = consumer
        self._clock = clock
        self._metrics = metrics
        self._on_fenced = on_fenced
        self._pending: list[Settlement] = []
        self._wanted = asyncio.Event()
        self.idle = asyncio.Event()
        """Set while everything taken on has arrived, or was given up with the lease."""

        self.idle.set()

    def add(self, settlement: Settlement) -> None:
        """Take a settlement on; it leaves with the next batch."""
        self._pending.append(settlement)
        self._wanted.set()
        self.idle.clear()

    async def run(self) -> None:
        """Send batches until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self._send_pending()
            if not self._pending:
                self.idle.set()

    async def _send_pending(self) -> None:
        batch, self._pending = self._pending, []
        backoff = 0.05
        while batch:
            try:
                for fenced in await self._consumer.settle(batch):
                    self._on_fenced(fenced)
            except QueueClosed:
                return self._drop(batch)
            except QueueError as error:
                if self._consumer.lost:
                    return self._drop(batch)
                self._metrics.queue_errors += 1
                log.warning("deliveries could not be settled yet", count=len(batch), error=str(error))
                await self._clock.sleep(backoff)
                backoff = min(backoff * 2, MAX_BACKOFF)
            else:
                return None
        return None

    def _drop(self, batch: list[Settlement]) -> None:
        # Whoever took over runs these again: that is what at-least-once means.
        log.warning("the lease was lost with deliveries unsettled", count=len(batch))
        for settlement in batch:
            self._on_fenced(settlement)
