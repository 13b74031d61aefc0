"""The events and listeners of the upgrade tests, which run unchanged on this code and on the previous release."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import text

from bus import Bus, Delivery, Retry, RetryLater
from infra.db import Database
from tests.torture.journal import Journal, Kind

AGAIN = 5.0
"""Seconds after which a failed or deferred delivery is due again; a worker of the release is killed before that."""

PATIENT = Retry(max_attempts=3, min_delay=AGAIN, jitter="none")
ONCE = Retry(max_attempts=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """An unordered event."""

    key: str
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """An ordered event."""

    key: str
    n: int

    def ordering_key(self) -> str:
        return self.key


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """An unordered event that an older worker does not know."""

    key: str
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewStep:
    """An ordered event that an older worker does not know."""

    key: str
    n: int

    def ordering_key(self) -> str:
        return self.key


@dataclass(frozen=True, slots=True, kw_only=True)
class Chime:
    """A broadcast."""

    key: str
    n: int


EVENTS = {each.__name__: each for each in (Job, Step, NewJob, NewStep, Chime)}


FAULTS = {
    *((fault, listener) for fault in ("held", "retried", "deferred") for listener in ("plain", "lined")),
    ("dead", "dying"),
    ("blocked", "blocking"),
}
"""The faults of a faulty worker, as the key of an event names them, and the listeners that have them.

The first attempt fails or is deferred; the next one hangs, in case it comes before the worker is killed.
"""


class Fault(Exception):
    """A handler's failure."""


class Listeners:
    """The listeners, which record their runs in the journal."""

    def __init__(self, bus: Bus, db: Database, journal: Journal, *, faulty: bool) -> None:
        self._bus = bus
        self._db = db
        self._journal = journal
        self._faulty = faulty
        self._met: set[tuple[str, str]] = set()

    def add(self, *, knows_new: bool) -> None:
        """Register them; an older worker does not know all events."""
        bus = self._bus
        bus.add_async_listener(self.plain, name="plain", retry=PATIENT)
        bus.add_async_listener(self.dying, name="dying", retry=ONCE)
        bus.add_async_listener(self.paused, name="paused", retry=PATIENT)
        bus.add_async_listener(self.once, name="once", retry=PATIENT, once=True)
        bus.add_async_ordered_listener(self.lined, name="lined", retry=PATIENT)
        bus.add_async_ordered_listener(self.blocking, name="blocking", retry=ONCE, on_exhausted="block")
        if knows_new:
            bus.add_async_listener(self.new_version, name="versioned", retry=PATIENT)
            bus.add_async_ordered_listener(self.new_line, name="lined_versioned", retry=PATIENT)
        else:
            bus.add_async_listener(self.old_version, name="versioned", retry=PATIENT)
            bus.add_async_ordered_listener(self.old_line, name="lined_versioned", retry=PATIENT)
        bus.add_broadcast_listener(self.chime)

    async def plain(self, event: Job, delivery: Delivery) -> None:
        await self._handle(event, delivery)

    async def dying(self, event: Job, delivery: Delivery) -> None:
        await self._handle(event, delivery)

    async def paused(self, event: Job, delivery: Delivery) -> None:
        await self._handle(event, delivery)

    async def once(self, event: Job, delivery: Delivery) -> None:
        # The inbox row is inserted when the handler's transaction begins.
        async with self._db.transaction() as transaction:
            await transaction.session.execute(text("SELECT 1"))
        await self._handle(event, delivery)

    async def lined(self, event: Step, delivery: Delivery) -> None:
        await self._handle(event, delivery)

    async def blocking(self, event: Step, delivery: Delivery) -> None:
        await self._handle(event, delivery)

    async def old_version(self, event: Job, delivery: Delivery) -> None:
        await self._handle(event, delivery)

    async def new_version(self, event: Job | NewJob, delivery: Delivery) -> None:
        await self._handle(event, delivery)

    async def old_line(self, event: Step, delivery: Delivery) -> None:
        await self._handle(event, delivery)

    async def new_line(self, event: Step | NewStep, delivery: Delivery) -> None:
        await self._handle(event, delivery)

    async def chime(self, event: Chime) -> None:
        self._journal.write("note", key=event.key, n=event.n, text="chime")

    async def _handle(self, event: Job | Step | NewJob | NewStep, delivery: Delivery) -> None:
        with self._recorded(event, delivery):
            fault = event.key.partition("-")[2]
            if self._faulty and event.n == 1 and (fault, delivery.listener) in FAULTS:
                await self._fail(fault, delivery.listener)

    async def _fail(self, fault: str, listener: str) -> None:
        if fault == "held" or (fault, listener) in self._met:
            await asyncio.Event().wait()
        self._met.add((fault, listener))
        if fault == "deferred":
            raise RetryLater(AGAIN)
        raise Fault(fault)

    @contextmanager
    def _recorded(self, event: Job | Step | NewJob | NewStep, delivery: Delivery) -> Iterator[None]:
        def write(kind: Kind, note: str = "") -> None:
            self._journal.write(
                kind,
                listener=delivery.listener,
                key=event.key,
                n=event.n,
                attempt=delivery.attempt,
                id=delivery.id,
                text=note,
            )

        write("start")
        try:
            yield
        except asyncio.CancelledError:
            write("cancelled")
            raise
        except RetryLater:
            write("cancelled", "deferred")
            raise
        except Exception as error:
            write("failed", type(error).__name__)
            raise
        write("end")
