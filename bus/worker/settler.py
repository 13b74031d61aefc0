"""The settler of a worker: sends settlements to the queue in batches, and repeats them until they arrive."""

import asyncio
from collections import deque
from collections.abc import Callable

import structlog
from msgspec.structs import replace
from sqlalchemy.exc import DataError, DBAPIError, StatementError

from bus.metrics import BusMetrics
from bus.supervisor import TRANSIENT
from infra.backoff import Backoff
from infra.clock import Clock
from infra.failures import describe
from infra.mq import Claim, Consumer, Failure, Outcome, QueueClosed, QueueRejected, Settlement

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

FIRST_BACKOFF, MAX_BACKOFF = 0.05, 5.0
"""The first and the longest delay, in seconds, between two attempts to settle the same batch."""

REJECTED_DELAY = 60.0
"""Seconds after which a delivery is retried whose outcome the queue rejects in every form."""


class Settler:
    """Sends one batch at a time; settlements added meanwhile form the next batch.

    A settlement that the queue rejects is found by bisection and replaced by one with less text; all others are sent.
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
        """Batches made of `_pending`, in order; each stays here until it has arrived or was dropped."""

        self._wanted = asyncio.Event()
        self._backoff = Backoff(FIRST_BACKOFF, MAX_BACKOFF)
        self.idle = asyncio.Event()
        """Set while every settlement added has arrived, or was dropped with the lease."""

        self.idle.set()

    def add(self, settlement: Settlement) -> None:
        """Add a settlement to the next batch."""
        self._pending.append(settlement)
        self._wanted.set()
        self.idle.clear()

    async def run(self) -> None:
        """Send batches until cancelled. A batch that a cancellation or an error interrupted is sent again."""
        while True:
            await self.drain()
            await self._wanted.wait()

    async def drain(self) -> None:
        """Send all settlements added; return once they have arrived or were dropped."""
        while self._pending or self._batches:
            self._wanted.clear()
            if not self._batches:
                batch, self._pending = self._pending, []
                self._batches.append(batch)
            await self._send(self._batches[0])
        self.idle.set()

    async def _send(self, batch: list[Settlement]) -> None:
        """Send the first batch and remove it, or replace it by smaller batches."""
        try:
            for fenced in await self._consumer.settle(batch):
                self._on_fenced(fenced)
        except QueueClosed:
            self._drop(batch)
        except Exception as error:  # noqa: BLE001 - no error of one settlement may block the others
            await self._settle_later(batch, error)
            return
        self._batches.popleft()
        self._backoff.succeeded()

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
            reduced = _reduced(batch[0])
            self._report(batch[0], error, dropped=reduced is None)
            if reduced is not None:
                self._batches.appendleft([reduced])
        else:
            self._move_to_the_end(batch[0].claim)
            await self._pause(batch, error)

    async def _pause(self, batch: list[Settlement], error: Exception) -> None:
        self._metrics.queue_errors += 1
        retry_in = self._backoff.failed()
        log.warning("settling failed", count=len(batch), error=describe(error), retry_in=round(retry_in, 2))
        await self._clock.sleep(retry_in)

    def _move_to_the_end(self, claim: Claim) -> None:
        """Send all other settlements first; those of one claim keep their order."""
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
        # The lease is lost: the worker that takes over runs these deliveries again.
        log.warning("settlements dropped", count=len(batch))
        for settlement in batch:
            self._on_fenced(settlement)


def is_final(error: Exception) -> bool:
    """Whether the queue will reject the settlement again because of a value in it."""
    if isinstance(error, StatementError) and not isinstance(error, DBAPIError):
        return True  # SQLAlchemy rejected a value before it reached the database
    return isinstance(error, QueueRejected | DataError | ValueError | TypeError)


def _reduced(settlement: Settlement) -> Settlement | None:
    """Return a settlement with less text to send in place of a rejected one, None if there is none."""
    failure = settlement.failure
    if failure is not None and failure != UNSTORABLE:
        return replace(settlement, failure=UNSTORABLE)
    if settlement.outcome is not Outcome.RELEASE:
        claim, delivery = settlement.claim, settlement.delivery
        return Settlement(
            claim=claim, delivery=delivery, outcome=Outcome.RELEASE, delay=REJECTED_DELAY, close=claim.ordered
        )
    return None


UNSTORABLE = Failure(error="the queue rejected the text of the error; see the worker's log")
