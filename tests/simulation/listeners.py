"""The handlers of simulated processes: they do their work, or not, by a die that each attempt throws anew."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random

from sqlalchemy import text

from bus import Bus, Delivery, Retry, RetryLater
from infra.db import Database
from tests.simulation.events import Alarm, Chime, Event, Note, Postscript, RevisedNote, Step
from tests.simulation.journal import SimulatedJournal
from tests.simulation.loop import Process
from tests.simulation.misdeeds import MISDEEDS, TIMEOUT, Unlucky, exits
from tests.torture.journal import Kind

SOON = Retry(max_attempts=12, min_delay=0.05, max_delay=0.5)
PATIENT = Retry(max_attempts=1000, min_delay=0.05, max_delay=0.5)
"""For a handler that fails as long as its disk does."""

FEW = Retry(max_attempts=3, min_delay=0.05, max_delay=0.2)
GOOD_RUN = 5
"""From this run of a delivery on its handler behaves, so that everything comes to its end."""

HOPELESS = 7
"""Every event with this place in its key fails each time for the listener `giving_up`."""

DEADLY = ("1.0.1", 2)
"""The key and the place of the event that ends its process each time for the listener `deadly`."""

FORMERLY = {"lines": "note_line"}
"""What the old code calls a listener, and its name in the new code and in the journal."""

LEGACY = "legacy"
"""A listener that the new code does not have."""


class Listeners:
    """The listeners of one process."""

    def __init__(
        self,
        bus: Bus,
        db: Database | None,
        journal: SimulatedJournal,
        process: Process,
        seed: int,
        *,
        version: int,
        deadly: bool,
        on_exit: Callable[[], None],
    ) -> None:
        self._db = db
        self._journal = journal
        self._process = process
        self._seed = seed
        self._on_exit = on_exit
        bus.add_async_ordered_listener(self.ordered, name="ordered", retry=SOON, timeout=TIMEOUT)
        bus.add_async_listener(self.sibling, name="sibling", retry=SOON, timeout=TIMEOUT)
        bus.add_async_listener(self.threaded, name="threaded", retry=SOON)
        bus.add_async_ordered_listener(self.giving_up, name="giving_up", retry=FEW, timeout=TIMEOUT)
        bus.add_async_listener(self.alarm, name="alarm", retry=SOON, timeout=TIMEOUT)
        bus.add_broadcast_listener(self.chime)
        if version == 1:
            bus.add_async_ordered_listener(self.old_note_line, name="lines", retry=SOON, timeout=TIMEOUT)
            bus.add_async_listener(self.old_notes, name="notes", retry=SOON, timeout=TIMEOUT)
            bus.add_async_listener(self.legacy, name=LEGACY, retry=SOON, timeout=TIMEOUT)
        else:
            bus.add_async_ordered_listener(
                self.note_line, name="note_line", aliases=("lines",), retry=SOON, timeout=TIMEOUT
            )
            bus.add_async_listener(self.notes, name="notes", retry=SOON, timeout=TIMEOUT)
        if deadly:
            bus.add_async_listener(self.deadly, name="deadly", retry=SOON, timeout=TIMEOUT)
        if db is not None:
            bus.add_async_ordered_listener(self.once, name="once", retry=PATIENT, timeout=4 * TIMEOUT, once=True)

    async def ordered(self, event: Step, delivery: Delivery) -> None:
        await self._act(event, delivery)

    async def sibling(self, event: Step, delivery: Delivery) -> None:
        await self._act(event, delivery)

    def threaded(self, event: Step, delivery: Delivery) -> None:
        with self._written(event, delivery, in_thread=True) as die:
            if die.random() < 0.1 and self._may_fail(event, delivery):
                raise SystemExit(4) if die.random() < 0.3 else Unlucky

    async def giving_up(self, event: Step, delivery: Delivery) -> None:
        with self._written(event, delivery):
            await asyncio.sleep(0)
            if event.n == HOPELESS:
                raise Unlucky

    async def alarm(self, event: Alarm, delivery: Delivery) -> None:
        await self._act(event, delivery)

    async def chime(self, event: Chime, delivery: Delivery) -> None:
        self._journal.write(self._process, "note", listener="chime", key=event.key, n=event.n, id=delivery.id)

    async def old_note_line(self, event: Note, delivery: Delivery) -> None:
        await self._act(event, delivery)

    async def old_notes(self, event: Note, delivery: Delivery) -> None:
        await self._act(event, delivery)

    async def legacy(self, event: Note, delivery: Delivery) -> None:
        await self._act(event, delivery)

    async def note_line(self, event: RevisedNote | Postscript, delivery: Delivery) -> None:
        await self._act(event, delivery)

    async def notes(self, event: RevisedNote | Postscript, delivery: Delivery) -> None:
        await self._act(event, delivery)

    async def deadly(self, event: Step, delivery: Delivery) -> None:
        with self._written(event, delivery):
            await asyncio.sleep(0)
            if (event.key, event.n) == DEADLY:
                raise SystemExit(5)

    async def once(self, event: Step, delivery: Delivery) -> None:
        assert self._db is not None
        with self._written(event, delivery) as die:
            async with self._db.transaction() as transaction:
                await transaction.session.execute(
                    text("INSERT INTO effect (listener, key, n) VALUES ('once', :key, :n)"),
                    {"key": event.key, "n": event.n},
                )
            if die.random() < 0.1 and self._may_fail(event, delivery):
                raise SystemExit(6) if die.random() < 0.1 else Unlucky

    async def _act(self, event: Event, delivery: Delivery) -> None:
        with self._written(event, delivery) as die:
            await asyncio.sleep(die.uniform(0, 0.02))
            if die.random() < 0.3 and self._may_fail(event, delivery):
                await die.choice(MISDEEDS)(die)
            await asyncio.sleep(0)

    def _runs(self, event: Event, delivery: Delivery) -> int:
        return self._journal.runs[(_name_of(delivery), event.key, event.n)]

    def _may_fail(self, event: Event, delivery: Delivery) -> bool:
        return self._runs(event, delivery) < GOOD_RUN

    @contextmanager
    def _written(self, event: Event, delivery: Delivery, *, in_thread: bool = False) -> Iterator[Random]:
        loop = asyncio.get_running_loop()
        started = loop.time()
        listener = _name_of(delivery)
        die = Random(f"{self._seed} {listener} {event.key} {event.n} {self._runs(event, delivery)}")

        def write(kind: Kind, note: str = "") -> None:
            self._journal.write(
                self._process,
                kind,
                listener=listener,
                key=event.key,
                n=event.n,
                attempt=delivery.attempt,
                id=delivery.id,
                text=note,
            )

        write("start")
        try:
            yield die
        except (asyncio.CancelledError, RetryLater) as error:
            # Its own cancellation and its timeout are failures; a shutdown's and a deferral are not.
            own = loop.time() - started >= TIMEOUT or error.args == ("own",)
            write("failed" if own else "cancelled", type(error).__name__)
            raise
        except BaseException as error:
            ends = exits(error) and not in_thread
            if ends:
                self._on_exit()
            write("cancelled" if ends else "failed", type(error).__name__)
            raise
        write("end")


def _name_of(delivery: Delivery) -> str:
    return FORMERLY.get(delivery.listener, delivery.listener)
