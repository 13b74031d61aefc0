"""The listeners of the torture tests: they record their runs, and fail in various ways."""

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from sqlalchemy import text

from bus import Bus, Delivery, Retry
from infra.db import Database
from tests.torture.events import Chime, Job, Novelty, Step
from tests.torture.journal import Journal, Kind

SOON = Retry(max_attempts=10, min_delay=0.02, max_delay=0.5)
PATIENT = Retry(max_attempts=100, min_delay=0.02, max_delay=0.5)
"""A policy for handlers that fail as long as their database is unavailable."""

FAILURE_RATE = 0.1
LONG = 2.0
"""Seconds that a long handler takes, many times every lease and interval of these tests."""

TIMEOUT = 0.4


class Unlucky(Exception):
    """A handler's own failure."""


class Listeners:
    """All listeners of the programs; `add` registers those of one program."""

    def __init__(self, bus: Bus, db: Database, journal: Journal, gate: Path) -> None:
        self._bus = bus
        self._db = db
        self._journal = journal
        self._gate = gate
        self._all: dict[str, Callable[[], None]] = {
            "flaky": lambda: bus.add_async_ordered_listener(self.flaky, name="flaky", retry=SOON),
            "sibling": lambda: bus.add_async_listener(self.sibling, name="sibling", retry=SOON),
            "held": lambda: bus.add_async_ordered_listener(self.held, name="held", retry=SOON, timeout=None),
            "booked": lambda: bus.add_async_ordered_listener(self.booked, name="booked", retry=SOON, timeout=None),
            "poisoned": lambda: bus.add_async_listener(self.poisoned, name="poisoned", retry=SOON),
            "poisoned_key": lambda: bus.add_async_ordered_listener(self.poisoned_key, name="poisoned_key", retry=SOON),
            "long": lambda: bus.add_async_listener(self.long, name="long", timeout=None),
            "long_thread": lambda: bus.add_async_listener(self.long_thread, name="long_thread", timeout=None),
            "quiet": lambda: bus.add_async_listener(self.quiet, name="quiet"),
            "quiet_key": lambda: bus.add_async_ordered_listener(self.quiet_key, name="quiet_key"),
            "late": lambda: bus.add_async_listener(self.late, name="late", retry=SOON),
            "done": lambda: bus.add_async_listener(self.done, name="done", retry=SOON),
            "failing": lambda: bus.add_async_listener(
                self.failing, name="failing", retry=Retry(max_attempts=4, min_delay=0.02, jitter="none")
            ),
            "old": lambda: bus.add_async_listener(self.old, name="versioned", retry=SOON),
            "new": lambda: bus.add_async_listener(self.new, name="versioned", retry=SOON),
            "impatient": lambda: bus.add_async_ordered_listener(
                self.impatient, name="impatient", retry=SOON, timeout=TIMEOUT
            ),
            "once": lambda: bus.add_async_ordered_listener(self.once, name="once", retry=PATIENT, once=True),
            "blocking": lambda: bus.add_async_ordered_listener(self.blocking, name="blocking", timeout=None),
            "chime": lambda: bus.add_broadcast_listener(self.chime, on_gap=self.gap),
        }

    def add(self, names: Iterable[str]) -> None:
        """Register listeners by name."""
        for name in names:
            self._all[name]()

    async def flaky(self, event: Step, delivery: Delivery) -> None:
        """Fail in some attempts, drawn from a seed per attempt."""
        die = Random(f"{event.key} {event.n} {delivery.attempt}")
        with self._written(event, delivery):
            await asyncio.sleep(die.uniform(0, 0.004))
            if die.random() < FAILURE_RATE:
                raise Unlucky

    async def sibling(self, event: Step, delivery: Delivery) -> None:
        """Never fail."""
        with self._written(event, delivery):
            await asyncio.sleep(0)

    async def held(self, event: Step, delivery: Delivery) -> None:
        """Run until the gate opens."""
        with self._written(event, delivery):
            if not self._gate.exists():
                await asyncio.Event().wait()

    async def booked(self, event: Step, delivery: Delivery) -> None:
        """Stay in a transaction until the gate opens: event 0 waits in it, the other events query the database."""
        with self._written(event, delivery):
            if self._gate.exists():
                return
            async with self._db.transaction() as tx:
                await tx.session.execute(text("INSERT INTO effect (key, n) VALUES (:key, 0)"), {"key": event.key})
                while event.n:
                    await tx.session.execute(text("SELECT 1"))
                self._journal.write("note", listener="booked", key=event.key, n=event.n)
                await asyncio.Event().wait()

    async def poisoned(self, event: Job, delivery: Delivery) -> None:
        """Kill the process, if the event says so."""
        with self._written(event, delivery):
            await self._perhaps_die(event.key)

    async def poisoned_key(self, event: Step, delivery: Delivery) -> None:
        """Kill the process, if the event says so."""
        with self._written(event, delivery):
            await self._perhaps_die(event.key if event.n == 1 else "")

    async def long(self, event: Job, delivery: Delivery) -> None:
        """Take `LONG` seconds."""
        with self._written(event, delivery):
            await asyncio.sleep(LONG)

    def long_thread(self, event: Job, delivery: Delivery) -> None:
        """Take `LONG` seconds in a thread."""
        with self._written(event, delivery):
            time.sleep(LONG)

    async def done(self, event: Job, delivery: Delivery) -> None:
        """Only record the run."""
        with self._written(event, delivery):
            pass

    async def late(self, event: Job, delivery: Delivery) -> None:
        """Record the run, as a listener of newer code."""
        with self._written(event, delivery):
            pass

    async def quiet(self, event: Job) -> None:
        """Record nothing."""

    async def quiet_key(self, event: Step) -> None:
        """Record nothing."""

    async def failing(self, event: Job, delivery: Delivery) -> None:
        """Fail until the gate opens."""
        with self._written(event, delivery):
            if not self._gate.exists():
                raise Unlucky("the gate is closed")

    async def old(self, event: Job, delivery: Delivery) -> None:
        """Handle one event, as old code."""
        with self._written(event, delivery):
            pass

    async def new(self, event: Job | Novelty, delivery: Delivery) -> None:
        """Handle another event as well, as new code."""
        with self._written(event, delivery):
            pass

    async def impatient(self, event: Step, delivery: Delivery) -> None:
        """Exceed the timeout at first: event 1 ends when cancelled, event 2 ignores the cancellation for a while."""
        with self._written(event, delivery):
            if delivery.attempt > 1 or event.n > 2:
                return
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if event.n == 2:
                    await asyncio.sleep(4 * TIMEOUT)
                raise

    async def once(self, event: Step, delivery: Delivery) -> None:
        """Write a row and publish an event; sometimes fail before, between or after these."""
        die = Random(f"{event.key} {event.n} {delivery.attempt}")
        with self._written(event, delivery):
            for act in (self._write_row, self._publish_job):
                self._perhaps_fail(die)
                await act(event)
            await asyncio.sleep(die.uniform(0, 0.004))
            self._perhaps_fail(die)

    async def blocking(self, event: Step, delivery: Delivery) -> None:
        """Block the event loop for long, until the gate opens."""
        with self._written(event, delivery):
            if not self._gate.exists():
                time.sleep(LONG)  # noqa: ASYNC251 - the fault under test

    async def chime(self, event: Chime) -> None:
        """Record a broadcast."""
        self._journal.write("note", listener="chime", key=event.key, n=event.n)

    async def gap(self) -> None:
        """Record a gap."""
        self._journal.write("note", listener="chime", text="gap")

    async def _write_row(self, event: Step) -> None:
        async with self._db.transaction() as tx:
            await tx.session.execute(
                text("INSERT INTO effect (key, n) VALUES (:key, :n)"), {"key": event.key, "n": event.n}
            )

    async def _publish_job(self, event: Step) -> None:
        await self._bus.publish(Job(key=event.key, n=event.n))

    @staticmethod
    def _perhaps_fail(die: Random) -> None:
        if die.random() < FAILURE_RATE / 3:
            raise Unlucky

    async def _perhaps_die(self, key: str) -> None:
        await asyncio.sleep(0.05)
        if key == "poison":
            self._journal.write("killing")
            os._exit(9)

    @contextmanager
    def _written(self, event: Step | Job | Novelty, delivery: Delivery) -> Iterator[None]:
        """Record the block as a run."""

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
        except Exception as error:
            write("failed", type(error).__name__)
            raise
        write("end")
