"""A simulated deployment: a database, a remote queue, and several processes on a clock that the test advances."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import text

from bus import Bus, Delivery
from bus.codec import decode_frame
from bus.worker.claim_limits import CLAIM_LIMITS
from infra.clock import FakeClock
from infra.db import Database
from infra.mq import (
    Claim,
    Features,
    Message,
    Outcome,
    QueueIndeterminate,
    QueueRejected,
    QueueUnavailable,
    Settlement,
    Subscription,
    WorkerInfo,
)
from infra.mq.drivers.memory import MemoryQueue
from tests.bus.events import Deposited, Ticked, UserUpdated

PATIENCE = 30.0
"""Seconds of real time within which a condition must hold; the database's thread is slow on a busy machine."""


class RemoteQueue(MemoryQueue):
    """A memory queue that claims to be durable and remote, and fails on request as a remote queue does."""

    down = False
    unreached = False
    """Whether this process has never reached the queue, so that the queue's time is unknown."""

    lose_replies = 0
    refusal = ""
    """The error with which a reachable queue rejects every request, if any."""

    @property
    def features(self) -> Features:
        return Features(durable=True, multi_process=True, transactional=False)

    async def open(self) -> None:
        self._answer()
        await super().open()

    def time(self) -> float:
        if self.unreached:
            raise QueueUnavailable("never reached")
        return super().time()

    async def publish(self, messages: Sequence[Message]) -> None:
        self._answer()
        if any(each.event == "UserUpdated" for each in messages):
            raise QueueRejected("it does not like updates")
        await super().publish(messages)
        if self.lose_replies:
            self.lose_replies -= 1
            raise QueueIndeterminate("the reply was lost")

    async def cancel(self, message_id: str) -> bool:
        self._answer()
        return await super().cancel(message_id)

    async def scheduled(self, message_id: str) -> bool:
        self._answer()
        return await super().scheduled(message_id)

    async def declare(self, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> None:
        self._answer()
        await super().declare(subscriptions, broadcasts)

    def _answer(self) -> None:
        if self.down:
            raise QueueUnavailable("connection refused")
        if self.refusal:
            raise QueueRejected(self.refusal)


class Site:
    """A database, a remote queue, and the buses of all processes that a test starts."""

    def __init__(self, db: Database, clock: FakeClock, queue: type[RemoteQueue]) -> None:
        self.db = db
        self.clock = clock
        self.mq = queue(clock=clock)
        self.buses: list[Bus] = []

    async def process(self) -> Bus:
        bus = Bus(self.mq, self.db, clock=self.clock)
        bus.add_async_listener(ignore_tick, name="ticks")
        bus.add_async_listener(ignore_update, name="updates")
        bus.add_async_ordered_listener(ignore_deposit, name="deposits")
        self.buses.append(bus)
        starting = asyncio.create_task(bus.start())
        await self.until(starting.done)
        await starting
        return bus

    async def until(self, condition: Callable[[], bool | Awaitable[bool]]) -> None:
        """Advance the clock until `condition` holds."""
        patience = time.monotonic() + PATIENCE
        while time.monotonic() < patience:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await self.clock.advance(0.1)
            await asyncio.sleep(0.001)  # lets the database's thread run
        raise AssertionError("the condition was never met")

    async def pass_at_once(self, seconds: float) -> None:
        """Advance the clock as on a machine that was suspended: every waiter of that time is woken up once, late."""
        self.clock.move_to(self.clock.time() + seconds)
        await self.clock.advance(0)

    async def cancel(self, bus: Bus, message_id: str) -> bool:
        """Return the result of `bus.cancel` outside of a transaction, which may wait until a row is sent."""
        cancelling = asyncio.create_task(bus.cancel(message_id))
        await self.until(cancelling.done)
        return await cancelling

    async def subscribed(self, name: str) -> bool:
        return name in {each.name for each in await self.mq.stats()}

    async def empty(self) -> bool:
        return await self.rows() == []

    async def rows(self) -> list[str]:
        async with self.db.read() as session:
            return list((await session.scalars(text("SELECT event FROM beneath_outbox ORDER BY id"))).all())

    async def delivered(self, name: str) -> list[int]:
        """Claim all due deliveries of a listener, and return the numbers in their events."""
        consumer = await self.mq.consumer(
            WorkerInfo(id=f"reader of {name}", subscriptions=frozenset({name})), CLAIM_LIMITS
        )
        numbers: list[int] = []
        while claims := await consumer.fetch({name: 1000}, wait=0):
            for delivery in [delivery for claim in claims for delivery in claim.deliveries]:
                event = self.buses[0].event_types[delivery.event].decode(decode_frame(delivery.body).payload, 1)
                numbers.append(event.n if isinstance(event, Ticked) else event.amount)
            for claim in claims:
                if claim.ordered:  # a claim holds only the first deliveries of a long mailbox
                    await consumer.settle(done(claim))
        await consumer.close()
        return numbers


def done(claim: Claim) -> list[Settlement]:
    last = claim.deliveries[-1]
    return [
        Settlement(claim=claim, delivery=each, outcome=Outcome.DONE, close=each is last) for each in claim.deliveries
    ]


async def ignore_tick(event: Ticked) -> None: ...


async def ignore_update(event: UserUpdated) -> None: ...


async def ignore_deposit(event: Deposited, delivery: Delivery) -> None: ...


@asynccontextmanager
async def opened_site(database: Path, queue: type[RemoteQueue] = RemoteQueue) -> AsyncIterator[Site]:
    db = Database(f"sqlite:///{database}", busy_timeout=30)
    await db.open()
    site = Site(db, FakeClock(), queue)
    await site.mq.open()
    yield site
    for bus in site.buses:
        closing = asyncio.create_task(bus.close())  # a relay may be waiting for the lease of another one
        await site.until(closing.done)
        await closing
    await site.mq.close()
    await db.close()
