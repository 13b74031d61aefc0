"""The handlers of simulated processes, which succeed or misbehave at random, independently for each attempt."""

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
from tests.simulation.misbehaviours import MISBEHAVIOURS, TIMEOUT, HandlerFailed, exits
from tests.torture.journal import Kind

SOON = Retry(max_attempts=12, min_delay=0.05, max_delay=0.5)
PATIENT = Retry(max_attempts=1000, min_delay=0.05, max_delay=0.5)
"""For the handler that fails while the disk fails."""

FEW = Retry(max_attempts=3, min_delay=0.05, max_delay=0.2)
SUCCEEDS_FROM_RUN = 5
"""From this run on the handler of a delivery succeeds, so that every simulation ends."""

HOPELESS = 7
"""The listener `giving_up` always fails for events at this position of their key."""

DEADLY = ("1.0.1", 2)
"""The key and position of the event for which the listener `deadly` always ends the process."""

FORMER_NAMES = {"lines": "note_line"}
"""Names of listeners in the old code, and their names in the new code and in the journal."""

LEGACY = "legacy"
"""The listener that the new code does not have."""


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
        with self._written(event, delivery, in_thread=True) as random:
            if random.random() < 0.1 and self._may_fail(event, delivery):
                raise SystemExit(4) if random.random() < 0.3 else HandlerFailed

    async def giving_up(self, event: Step, delivery: Delivery) -> None:
        with self._written(event, delivery):
            await asyncio.sleep(0)
            if event.n == HOPELESS:
                raise HandlerFailed

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
        with self._written(event, delivery) as random:
            async with self._db.transaction() as transaction:
                await transaction.session.execute(
                    text("INSERT INTO effect (listener, key, n) VALUES ('once', :key, :n)"),
                    {"key": event.key, "n": event.n},
                )
            if random.random() < 0.1 and self._may_fail(event, delivery):
                raise SystemExit(6) if random.random() < 0.1 else HandlerFailed

    async def _act(self, event: Event, delivery: Delivery) -> None:
        with self._written(event, delivery) as random:
            await asyncio.sleep(random.uniform(0, 0.02))
            if random.random() < 0.3 and self._may_fail(event, delivery):
                await random.choice(MISBEHAVIOURS)(random)
            await asyncio.sleep(0)

    def _runs(self, event: Event, delivery: Delivery) -> int:
        return self._journal.runs[(_name_of(delivery), event.key, event.n)]

    def _may_fail(self, event: Event, delivery: Delivery) -> bool:
        return self._runs(event, delivery) < SUCCEEDS_FROM_RUN

    @contextmanager
    def _written(self, event: Event, delivery: Delivery, *, in_thread: bool = False) -> Iterator[Random]:
        loop = asyncio.get_running_loop()
        started = loop.time()
        listener = _name_of(delivery)
        random = Random(f"{self._seed} {listener} {event.key} {event.n} {self._runs(event, delivery)}")

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
            yield random
        except (asyncio.CancelledError, RetryLater) as error:
            # Its own cancellation and its timeout are failures; the cancellation by a shutdown and a deferral are not.
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
    return FORMER_NAMES.get(delivery.listener, delivery.listener)
