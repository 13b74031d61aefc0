"""One process of the simulated application: a worker, and publishers that repeat what may not have been accepted."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from bus import Bus, BusError
from bus.options import BusOptions
from infra.db import Database, DatabaseError
from tests.simulation.events import Alarm, Chime, Event, Note, Postscript, RevisedNote, Step, kind_of
from tests.simulation.journal import SimulatedJournal
from tests.simulation.link import Link
from tests.simulation.listeners import Listeners
from tests.simulation.loop import Process, SimulatedLoop, SimulatedTask
from tests.simulation.sealing import SimulatedClock
from tests.torture.journal import Kind

PUBLISHERS = 2
"""Publishing tasks of one process."""

EVENTS = 9
"""How many events one key gets."""

OPTIONS = BusOptions(
    concurrency=4, prefetch=6, grace=3.0, renew_every=0.5, recover_every=0.4, connect_timeout=3.0, max_crashes=1000
)
"""Processes are killed too often for the rule of poison: which deaths are a delivery's own fault is chance."""

MAX_CRASHES = 3
"""Where only their own handlers kill processes, that rule holds."""

PAUSE = 0.8
"""Seconds between two events of a key, at most."""


class RolledBack(Exception):
    """Ends a transaction that is not to commit."""


class Program:
    """Runs until it is stopped, or a handler ends it; `worker_error` says so if the worker gave up before."""

    def __init__(
        self,
        process: Process,
        link: Link,
        loop: SimulatedLoop,
        journal: SimulatedJournal,
        path: Path | None,
        seed: int,
        *,
        version: int,
        deadly: bool,
    ) -> None:
        self.process = process
        self.link = link
        self.version = version
        """Of its code: the old one is 1, the new one 2."""

        self.deadly = deadly
        """Whether an event kills its process each time, and nothing else does."""

        self.ready = False
        """Whether `start()` of its bus has returned."""

        self.exiting = False
        """Whether a handler ends the process."""

        self.hurried = False
        """Whether it was stopped although it was ending: what its threads do then does not count."""

        self.collapsing = False
        """Whether all its tasks were cancelled, as at the end of `asyncio.run`."""

        self.ending_since = float("inf")
        """Since when it is to end, by the loop's time."""

        self.worker_error: BaseException | None = None
        """Why the worker ended although nobody had stopped it."""

        self.surprises: list[str] = []
        """What publishing raised that it does not say."""

        self.publishers: list[SimulatedTask] = []
        self._loop = loop
        self._journal = journal
        self._path = path
        self._seed = seed
        self._quiet = False
        self._stopped = asyncio.Event()
        self._clock = SimulatedClock(process, loop)
        self.task = loop.spawn(process, self._run())
        link.cut_off = self._cut_off

    def _cut_off(self) -> None:
        self._journal.write(self.process, "cut off")
        # Threads that were asked for before may begin a little later.
        self._loop.call_later(0.1, self._journal.write, self.process, "cut off")

    def stop(self) -> None:
        """Ask it to end gracefully; if it is just doing so, to end at once."""
        self.hurried = self.hurried or self.exiting
        self.ending_since = min(self.ending_since, self._loop.time())
        self._stopped.set()

    def _note_exit(self) -> None:
        self.exiting = True
        self.ending_since = min(self.ending_since, self._loop.time())

    def is_undisturbed(self, since: float) -> bool:
        """Whether it has been running, and has reached the server each time, from a moment on."""
        process = self.process
        runs = not (process.dead or process.frozen or self.stopping or self.exiting or self.collapsing)
        return self.ready and runs and max(process.thawed_at, self.link.failed_at) < since

    def hush(self) -> None:
        """Let every publisher end after the event that it is at."""
        self._quiet = True

    async def _run(self) -> None:
        db = (
            Database(f"sqlite:///{self._path}", busy_timeout=2.0, clock=self._clock) if self._path is not None else None
        )
        try:
            await self._live(db)
        finally:
            await self.link.close()
            if db is not None:
                await db.close()

    async def _live(self, db: Database | None) -> None:
        if db is not None:
            await db.open()
        await self.link.open()
        options = replace(OPTIONS, max_crashes=MAX_CRASHES) if self.deadly else OPTIONS
        bus = Bus(self.link, db, clock=self._clock, options=options, random=self.process.random)
        Listeners(
            bus,
            db,
            self._journal,
            self.process,
            self._seed,
            version=self.version,
            deadly=self.deadly,
            on_exit=self._note_exit,
        )
        await bus.start()
        self.ready = True
        self._journal.write(self.process, "ready", text=f"version {self.version}")
        worker = asyncio.create_task(self._work(bus), name="worker")
        worker.add_done_callback(self._note_end)
        self.publishers = [self._publisher(bus, db, number) for number in range(PUBLISHERS)]
        stopped = asyncio.create_task(self._stopped.wait(), name="stop")
        try:
            await asyncio.wait((worker, stopped), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stopped.set()
            for task in (stopped, *self.publishers):
                task.cancel()
            await asyncio.gather(stopped, *self.publishers, return_exceptions=True)
            worker.cancel()
            await asyncio.wait((worker,))
            await bus.close()

    async def _work(self, bus: Bus) -> None:
        """Run the worker; a handler's exit ends the process in an orderly way."""
        try:
            await bus.run()
        except SystemExit:
            if not self.exiting:
                raise RuntimeError("the worker exited, and no handler did") from None

    def _note_end(self, worker: "asyncio.Task[None]") -> None:
        if not self._stopped.is_set() and not (self.exiting and not worker.cancelled() and worker.exception() is None):
            error = asyncio.CancelledError() if worker.cancelled() else worker.exception()
            self.worker_error = error or RuntimeError("it returned")

    def _publisher(self, bus: Bus, db: Database | None, number: int) -> SimulatedTask:
        publisher = Publisher(self, bus, db, number)
        task = asyncio.create_task(publisher.run(), name=f"publisher {number}")
        assert isinstance(task, SimulatedTask)
        task.add_done_callback(self._note_surprise)
        return task

    def _note_surprise(self, publisher: "asyncio.Task[None]") -> None:
        if not publisher.cancelled() and (error := publisher.exception()) is not None:
            self.surprises.append(f"{type(error).__name__}: {error}")

    @property
    def quiet(self) -> bool:
        """Whether publishers are to end."""
        return self._quiet or self._stopped.is_set()

    @property
    def stopping(self) -> bool:
        """Whether the process is to end."""
        return self._stopped.is_set()

    @property
    def journal(self) -> SimulatedJournal:
        """Where it writes what it did."""
        return self._journal


class Publisher:
    """Publishes one key's events after another. Whatever an attempt ends in, it repeats it by the same id."""

    def __init__(self, program: Program, bus: Bus, db: Database | None, number: int) -> None:
        self._program = program
        self._bus = bus
        self._db = db
        self._name = f"{program.process.pid}.{number}"
        self._random = program.process.random

    async def run(self) -> None:
        """Publish until the program is quiet."""
        turn = 0
        while not self._program.quiet:
            turn += 1
            await self._one_key(f"{self._name}.{turn}")

    async def _one_key(self, key: str) -> None:
        era = self._program.link.era
        for n in range(1, EVENTS + 1):
            if self._program.quiet or not await self._one_event(Step(key=key, n=n)):
                return
            await self._pause(PAUSE)
            if self._program.link.era != era:
                return  # of what the server forgot, nothing is promised: a new key begins

    async def _one_event(self, step: Step) -> bool:
        db = self._db
        publish = partial(self._bus.publish, step, id=_id(step))
        if db is not None and self._random.random() < 0.5:
            publish = partial(self._in_transaction, db, step)
        if not await self._until_accepted(step, publish):
            return False
        if self._random.random() < 0.2:
            await self._alarm(Alarm(key=step.key, n=step.n))
        if self._random.random() < 0.4 and not await self._note(step):
            return False
        if self._random.random() < 0.1:
            await self._attempt(partial(self._bus.publish, Chime(key=step.key, n=step.n)))
        return True

    async def _in_transaction(self, db: Database, step: Step) -> None:
        if self._random.random() < 0.2:
            await self._rolled_back(db, step)
        async with db.transaction() as transaction:
            await transaction.session.execute(
                text("INSERT INTO effect (listener, key, n) VALUES ('published', :key, :n)"),
                {"key": step.key, "n": step.n},
            )
            await self._bus.publish(step, id=_id(step))

    async def _rolled_back(self, db: Database, step: Step) -> None:
        with suppress(RolledBack):
            async with db.transaction():
                await self._bus.publish(Step(key=f"rolled back {step.key}", n=step.n))
                raise RolledBack

    async def _note(self, step: Step) -> bool:
        if self._program.version == 1:
            event: Event = Note(key=step.key, n=step.n)
        elif self._random.random() < 0.5:
            event = RevisedNote(key=step.key, n=step.n, author=self._name)
        else:
            event = Postscript(key=step.key, n=step.n)
        publish = partial(self._bus.publish, event, id=_id(event))
        return await self._until_accepted(event, publish, note=type(event).__name__)

    async def _alarm(self, alarm: Alarm) -> None:
        delay = self._random.uniform(0, 3)
        earliest = self._program.link.time() + delay

        async def publish() -> None:
            await self._bus.publish_delayed(alarm, delay, id=_id(alarm))

        await self._until_accepted(alarm, publish, note=repr(earliest))

    async def _until_accepted(self, event: Event, act: Callable[[], Awaitable[object]], *, note: str = "") -> bool:
        """Repeat a publish until it is accepted; False if the queue would take a repetition for something new."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._program.link.dedupe_window / 2
        self._write("note", event, "tried " + note)
        while not await self._attempt(act):
            await self._pause(0.5)
            if loop.time() > deadline:
                return False
        self._write("accepted", event, note)
        return True

    async def _attempt(self, act: Callable[[], Awaitable[object]]) -> bool:
        try:
            await act()
        except asyncio.CancelledError:
            self._survive()
        except (BusError, DatabaseError, SQLAlchemyError, sqlite3.Error) as error:
            self._program.journal.note(self._program.process, f"publish failed: {type(error).__name__}: {error}")
        else:
            return True
        return False

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.sleep(self._random.uniform(0, seconds))
        except asyncio.CancelledError:
            self._survive()

    def _survive(self) -> None:
        """Go on after a cancellation, unless the process ends."""
        if self._program.stopping:
            raise asyncio.CancelledError
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()

    def _write(self, kind: Kind, event: Event, note: str) -> None:
        self._program.journal.write(
            self._program.process,
            kind,
            listener=kind_of(event),
            key=event.key,
            n=event.n,
            text=note,
        )


def _id(event: Event) -> str:
    return f"{kind_of(event)} {event.key} {event.n}"
