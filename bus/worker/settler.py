"""Sends the ends of deliveries to the queue, many at a time, and until they have arrived."""

import asyncio
from collections import deque
from collections.abc import Callable

import structlog
from msgspec.structs import replace
from sqlalchemy.exc import DataError, DBAPIError, StatementError

from bus.metrics import BusMetrics
from bus.supervisor import TRANSIENT
from infra.clock import Clock
from infra.failures import describe
from infra.mq import Claim, Consumer, Failure, Outcome, QueueClosed, QueueRejected, Settlement

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAX_BACKOFF = 5.0
"""The longest wait, in seconds, between two attempts to settle the same batch."""

REJECTED_DELAY = 60.0
"""Seconds after which a delivery comes again whose end the queue does not store in any form."""


class Settler:
    """One batch under way at a time; what ends meanwhile forms the next. A lone settlement leaves at once.

    A settlement that the queue rejects is found by bisection and replaced by one that says less; the others go on.
    """

    def __init__(
        self, consumer: Consumer, clock: Clock, metrics: BusMetrics, on_fenced: Callable[[Settlement], None]
    ) -> None:
        self._consumer = consumer
        self._clock = clock
        self._metrics = metrics
        self._on_fenced = on_fenced
        self._pending: list[Settlement] = []
        self._batches: deque[list[Settlement]] = deque()
        """What `_pending` was made into, in order; each stays here until it has arrived or was dropped."""

        self._wanted = asyncio.Event()
        self._backoff = 0.0
        self.idle = asyncio.Event()
        """Set while everything taken on has arrived, or was dropped with the lease."""

        self.idle.set()

    def add(self, settlement: Settlement) -> None:
        """Take a settlement on; it leaves with the next batch."""
        self._pending.append(settlement)
        self._wanted.set()
        self.idle.clear()

    async def run(self) -> None:
        """Send batches until cancelled. What was under way at a cancellation or an error is sent again."""
        while True:
            await self.drain()
            await self._wanted.wait()

    async def drain(self) -> None:
        """Send everything taken on; return once it has arrived or was dropped."""
        while self._pending or self._batches:
            self._wanted.clear()
            if not self._batches:
                batch, self._pending = self._pending, []
                self._batches.append(batch)
            await self._send(self._batches[0])
        self.idle.set()

    async def _send(self, batch: list[Settlement]) -> None:
        """Settle the first batch and take it away, or replace it by smaller ones."""
        try:
            for fenced in await self._consumer.settle(batch):
                self._on_fenced(fenced)
        except QueueClosed:
            self._drop(batch)
        except Exception as error:  # noqa: BLE001 - whatever it is, one settlement must not hold up the others
            await self._settle_later(batch, error)
            return
        self._batches.popleft()
        self._backoff = 0.0

    async def _settle_later(self, batch: list[Settlement], error: Exception) -> None:
        if self._consumer.lost:
            self._batches.popleft()
            self._drop(batch)
            return
        if isinstance(error, TRANSIENT) and not is_final(error):
            await self._pause(batch, error)
        elif len(batch) > 1:
            self._batches.popleft()
            middle = len(batch) // 2
            self._batches.extendleft([batch[middle:], batch[:middle]])
        elif is_final(error):
            self._batches.popleft()
            plainer = _plainer(batch[0])
            self._report(batch[0], error, dropped=plainer is None)
            if plainer is not None:
                self._batches.appendleft([plainer])
        else:
            self._move_to_the_end(batch[0].claim)
            await self._pause(batch, error)

    async def _pause(self, batch: list[Settlement], error: Exception) -> None:
        self._metrics.queue_errors += 1
        self._backoff = min(max(0.05, self._backoff * 2), MAX_BACKOFF)
        log.warning("settling failed", count=len(batch), error=describe(error), retry_in=round(self._backoff, 2))
        await self._clock.sleep(self._backoff)

    def _move_to_the_end(self, claim: Claim) -> None:
        """Let everything else go first; the settlements of one claim keep their order."""
        moved = [each for batch in self._batches for each in batch if each.claim is claim]
        rest = ([each for each in batch if each.claim is not claim] for batch in self._batches)
        self._batches = deque([*filter(None, rest), moved])

    def _report(self, settlement: Settlement, error: Exception, *, dropped: bool) -> None:
        self._metrics.queue_errors += 1
        log.error(
            "settlement rejected",
            listener=settlement.claim.subscription,
            event_id=settlement.delivery.message_id,
            outcome=settlement.outcome.name,
            error=describe(error),
            dropped=dropped,
        )

    def _drop(self, batch: list[Settlement]) -> None:
        # The worker that took over runs these again: that is what at-least-once means.
        log.warning("settlements dropped", count=len(batch))
        for settlement in batch:
            self._on_fenced(settlement)


def is_final(error: Exception) -> bool:
    """Whether a settlement will be refused again because of a value in it."""
    if isinstance(error, StatementError) and not isinstance(error, DBAPIError):
        return True  # a value that did not even reach the database
    return isinstance(error, QueueRejected | DataError | ValueError | TypeError)


def _plainer(settlement: Settlement) -> Settlement | None:
    """Return a settlement that says less and may be stored in the place of a rejected one; None if there is none."""
    failure = settlement.failure
    if failure is not None and failure != UNSTORABLE:
        return replace(settlement, failure=UNSTORABLE)
    if settlement.outcome is not Outcome.RELEASE:
        claim, delivery = settlement.claim, settlement.delivery
        return Settlement(
            claim=claim, delivery=delivery, outcome=Outcome.RELEASE, delay=REJECTED_DELAY, close=claim.ordered
        )
    return None


UNSTORABLE = Failure(error="the queue rejected the error's text; the log of its worker has it")
