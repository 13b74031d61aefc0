"""A process of this project's bus: publishes, or works until killed, as its job says."""

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, make_dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import structlog

from bus import Bus
from infra.clock import SystemClock
from infra.db import Database
from infra.mq import MessageQueue
from tests.bench.measure import SOME_ID
from tests.bench.protocol import TASKS, Job, Meter, Published, Shape, answer, cpu, job, peak_memory, publish_at_rate

AT_ONCE = 100
"""Events in one `publish_many`."""

DUE_EACH = 0.0001
"""Seconds that the publish of one delayed event may take, before the first becomes due."""

OUTBOX_POLL = 0.01
"""Seconds between two polls whether the outbox is empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event of the usual size: about 120 bytes of msgpack."""

    user_id: UUID = SOME_ID
    email: str = "ada@example.com"
    name: str = "Ada Lovelace"
    created_at: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    n: int = 0
    sent: float = 0.0
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyed(Event):
    """The same, with an ordering key."""

    key: str

    def ordering_key(self) -> str:
        return self.key


@dataclass(frozen=True, slots=True)
class Events:
    """The event classes and listeners of a shape."""

    shape: Shape
    classes: list[type[Event]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.shape.keys:
            self.classes.append(Keyed)
        elif self.shape.types == 1:
            self.classes.append(Event)
        else:
            for number in range(self.shape.types):
                made = make_dataclass(f"Event{number}", [], bases=(Event,), frozen=True, slots=True, kw_only=True)
                self.classes.append(made)

    def listen(self, bus: Bus, meter: Meter | None) -> None:
        """Add all listeners."""
        for kind in self.classes:
            for number in range(self.shape.fan_out):
                name = f"bench.{kind.__name__.lower()}_{number}"
                handler = _handler(kind, meter)
                if self.shape.keys:
                    bus.add_async_ordered_listener(handler, name=name)
                else:
                    bus.add_async_listener(handler, name=name)

    def make(self, count: int, begin: int = 0) -> list[Event]:
        """Return `count` events: of all types in turn, with all keys in turn."""
        text = "x" * self.shape.payload
        if self.shape.keys:
            return [Keyed(n=n, text=text, key=f"key-{n % self.shape.keys}") for n in range(begin, begin + count)]
        kinds = self.classes
        return [kinds[n % len(kinds)](n=n, text=text) for n in range(begin, begin + count)]


def _handler(kind: type[Event], meter: Meter | None) -> Callable[[Event], Awaitable[None]]:
    async def handle(event: Event) -> None:
        if meter is not None:
            meter.handled(event.sent)

    handle.__annotations__["event"] = kind
    return handle


@asynccontextmanager
async def opened(work: Job, events: Events, meter: Meter | None = None) -> AsyncIterator[tuple[Bus, Database | None]]:
    """Open the queue of the job and start the bus, with the listeners of these events."""
    clock = SystemClock()
    db = Database(work.url) if work.url.startswith(("sqlite:", "postgresql:")) else None
    mq = _queue(work, db, clock)
    bus = Bus(mq, db, clock=clock)
    events.listen(bus, meter)
    if db is not None:
        await db.open()
    await mq.open()
    await bus.start()
    try:
        yield bus, db
    finally:
        await bus.close()
        await mq.close()
        if db is not None:
            await db.close()


def _queue(work: Job, db: Database | None, clock: SystemClock) -> MessageQueue:
    """Return the queue of a job; only its driver is imported, as in an application."""
    if db is None and not work.url:
        from infra.mq.drivers.memory import MemoryQueue

        return MemoryQueue(clock=clock, lease=float("inf"))
    if db is None or work.broker:
        from infra.mq.drivers.redis import RedisQueue

        return RedisQueue(work.broker or work.url, clock=clock)
    from infra.mq.drivers.sql import SqlQueue

    return SqlQueue(db, clock=clock)


async def publish(work: Job) -> None:
    """Publish all events in the mode of the job, and report how long it took."""
    events = Events(work.shape)
    async with opened(work, events) as (bus, db):
        if work.mode == "many":
            await _publish_many(work, events, bus, db)
            return
        made = events.make(work.count)
        call = _scheduled(bus, work.count) if work.shape.delayed else bus.publish

        async def one_by_one(share: list[Event]) -> None:
            for event in share:
                await call(event)

        published = Published(work.count)
        if work.mode == "one":
            await one_by_one(made)
        else:
            await asyncio.gather(*(one_by_one(made[at::TASKS]) for at in range(TASKS)))
        published.report()


async def _publish_many(work: Job, events: Events, bus: Bus, db: Database | None) -> None:
    """Publish in batches, each in a transaction if there is an outbox, and report; events are made between batches."""
    seconds = used = 0.0
    for at in range(0, work.count, AT_ONCE):
        batch = events.make(min(AT_ONCE, work.count - at), at)
        began, cpu_before = time.perf_counter(), cpu()
        if bus.has_outbox and db is not None:
            async with db.transaction():
                await bus.publish_many(batch)
        else:
            await bus.publish_many(batch)
        seconds += time.perf_counter() - began
        used += cpu() - cpu_before
    while bus.has_outbox and (await bus.outbox_backlog())[0]:  # noqa: ASYNC110  # the relay tells the queue alone
        await asyncio.sleep(OUTBOX_POLL)
    answer(published=work.count, seconds=seconds, cpu=used, memory=peak_memory())


def _scheduled(bus: Bus, count: int) -> Callable[[Event], Awaitable[object]]:
    """Return a call that publishes events which all become due at one moment."""
    due = datetime.now(UTC) + timedelta(seconds=1 + count * DUE_EACH)
    return lambda event: bus.publish_scheduled(event, due)


async def pace(work: Job) -> None:
    """Publish events at the rate of the job, each with the time of its publish."""
    async with opened(work, Events(work.shape)) as (bus, _):
        await publish_at_rate(work, lambda sent, n: bus.publish(Event(n=n, sent=sent)))


async def consume(work: Job) -> None:
    """Handle events until killed; with other workers, from the moment at which the runner says so."""
    async with opened(work, Events(work.shape), Meter(work.count)) as (bus, _):
        if work.wait:
            answer(ready=True)
            await asyncio.to_thread(sys.stdin.readline)
        await bus.run()


async def loop(work: Job) -> None:
    """Publish a backlog and handle it, in one process."""
    events = Events(work.shape)
    async with opened(work, events, Meter(work.count * work.shape.fan_out)) as (bus, db):
        await _publish_many(work, events, bus, db)
        await bus.run()


async def prepare(work: Job) -> None:
    """Create the tables of an empty queue; a worker does not import what only this needs."""
    from dependencies.migrations import BUS
    from infra.db.migrate import upgrade

    async with contextlib.AsyncExitStack() as stack:
        db = Database(work.url)
        await db.open()
        stack.push_async_callback(db.close)
        await upgrade(db, [BUS])


ROLES = {"publish": publish, "pace": pace, "work": consume, "loop": loop, "prepare": prepare}


def main() -> None:
    """Do the job of this process."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    work = job()
    asyncio.run(ROLES[work.role](work))


if __name__ == "__main__":
    main()
